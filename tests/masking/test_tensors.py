"""torch tensors instead of arrays: the same numbers, as tensors, and the same gradients."""

import numpy as np
import pytest

from cotjax.masking import (
    Dropping,
    MaskError,
    example_mean,
    fixed_budget,
    labels,
    policy_losses,
    spread,
    target_weights,
    targets,
    token_sum,
)

torch = pytest.importorskip("torch", reason="the tensors are torch's")

ROLES = np.array([[1, 3, 3, 4, 5, 5, 6, 7], [0, 0, 1, 3, 4, 5, 6, 7]])
IDS = np.arange(16).reshape(2, 8)
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 2], [0, 0, 1, 1, 1, 1, 1, 1]])


def _same(tensor, array):
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_allclose(tensor.detach().numpy(), array, rtol=1e-6)


def test_masks_of_tensors_are_tensors_with_the_same_numbers():
    drop = ROLES == 5
    of_numpy = target_weights(ROLES, drop_tokens=drop, segment_ids=SEGMENTS)
    of_torch = target_weights(
        torch.tensor(ROLES), drop_tokens=torch.tensor(drop), segment_ids=torch.tensor(SEGMENTS)
    )
    _same(of_torch, of_numpy)
    assert of_torch.dtype == torch.float32
    _same(targets(torch.tensor(IDS)), targets(IDS))
    _same(labels(torch.tensor(IDS), of_torch), labels(IDS, of_numpy))
    assert labels(torch.tensor(IDS), of_torch).dtype == torch.int64
    values = np.array([[1.0, 2.0], [3.0, 4.0]])
    _same(spread(torch.tensor(values), torch.tensor(SEGMENTS)), spread(values, SEGMENTS))
    np.testing.assert_array_equal(
        Dropping(1.0).tokens(torch.tensor(ROLES[0]), "x"), Dropping(1.0).tokens(ROLES[0], "x")
    )


@pytest.mark.parametrize("weights_of", ["numpy", "torch"])
def test_losses_of_tensors_have_the_numbers_and_the_gradients_of_jax(weights_of):
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    new, old = rng.normal(-1, 0.4, (2, 2, 8)).astype(np.float32)
    new[0, 0] = np.nan
    advantages, weights = np.array([1.5, -0.5], np.float32), target_weights(ROLES)
    weights[0, 0] = 0
    divide = {
        "token_sum": lambda losses, weights, segments: token_sum(losses, weights),
        "example_mean": lambda losses, weights, segments: example_mean(
            losses, weights, segments, segments=2
        ),
        "rows": lambda losses, weights, segments: example_mean(losses, weights),
        "fixed_budget": lambda losses, weights, segments: fixed_budget(losses, weights, 9.0),
    }
    for name, normalizer in divide.items():

        def loss(new, old, advantages, weights, segments, normalizer=normalizer):
            total, weight = normalizer(
                policy_losses(new, old, advantages, weights=weights), weights, segments
            )
            return total / weight

        arrays = (old, advantages, weights, SEGMENTS)
        value, gradient = jax.value_and_grad(loss)(jnp.asarray(new), *map(jnp.asarray, arrays))
        tensor = torch.tensor(new, requires_grad=True)
        ours = loss(tensor, *(map(torch.tensor, arrays) if weights_of == "torch" else arrays))
        ours.backward()
        assert ours.item() == pytest.approx(float(value), rel=1e-5), name
        np.testing.assert_allclose(
            tensor.grad.numpy(), gradient, rtol=1e-4, atol=1e-7, err_msg=name
        )


def test_what_cannot_be_converted_is_refused_in_a_sentence():
    with pytest.raises(MaskError, match="carries no gradient"):
        target_weights(torch.tensor(ROLES), drop_tokens=torch.zeros(2, 8, requires_grad=True))
    with pytest.raises(MaskError, match="from one library"):
        token_sum(np.zeros((2, 8)), torch.zeros(2, 8))
