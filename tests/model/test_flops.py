"""The count of a train step's arithmetic, by hand and by XLA, and what it is a share of."""

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import tiny

from cotjax.errors import CotjaxError
from cotjax.model.config import LoRA
from cotjax.model.flops import matmul_params, peak_flops, prompt_flops, train_flops, utilisation
from cotjax.model.params import abstract_params, bind, declared


def test_matmul_params_are_every_matrix_and_one_output():
    config = tiny.model_config(
        vocab_size=61, width=32, layers=2, heads=4, kv_heads=2, head_size=8, feed_forward=48
    )
    # q and o: 32 x 32 each; k and v: 32 x 16 each; gate, up and down: 32 x 48 each; the output: 61
    # x 32.
    by_hand = 2 * (2 * 1024 + 2 * 512 + 3 * 1536) + 1952
    assert matmul_params(config) == by_hand
    matrices = [weight for path, weight in declared(config).items() if len(weight.axes) > 1]
    assert by_hand == sum(jnp.zeros(weight.shape).size for weight in matrices)


def test_an_untied_look_up_is_not_counted():
    sizes = {"vocab_size": 61, "width": 32}
    assert matmul_params(tiny.model_config(**sizes, tied_embeddings=False)) == matmul_params(
        tiny.model_config(**sizes)
    )


def test_train_flops_by_hand():
    config = tiny.model_config(layers=2, heads=4, head_size=8)
    # One row of 10: 6 a weight a token, and 12 x 2 layers x 4 heads x 8 x (100 / 2) of attention.
    assert train_flops(config, [10]) == 6 * 17_312 * 10 + 12 * 2 * 4 * 8 * 50
    # Two sequences of 5 in a row cost half of its attention; the head size is the config's own, not
    # width / heads.
    assert train_flops(config, [5, 5]) == 6 * 17_312 * 10 + 12 * 2 * 4 * 8 * 25
    wide = tiny.model_config(layers=2, heads=4, head_size=16)
    assert train_flops(wide, [10]) - 6 * matmul_params(wide) * 10 == 12 * 2 * 4 * 16 * 50
    # Frozen weights get no gradient of their own.
    adapted = tiny.model_config(layers=2, heads=4, head_size=8, lora=LoRA(2, 4.0, ".*"))
    assert train_flops(config, [10]) - train_flops(adapted, [10]) == 2 * 17_312 * 10


def test_prompt_flops_are_a_third_of_a_train_steps_but_for_the_logits():
    config = tiny.model_config(layers=2, heads=4, head_size=8)
    output = config.vocab_size * config.width
    for slots, length in ((1, 10), (3, 4)):
        logits = 2 * output * slots * (length - 1)
        whole = train_flops(config, [length] * slots) // 3
        assert prompt_flops(config, slots, length) == whole - logits


@pytest.mark.parametrize("length", [32, 512])
def test_train_flops_are_those_of_the_compiled_program(length):
    """XLA counts plain attention over the whole square, twice the causal half; what is element-wise
    is its surplus.
    """
    config = tiny.model_config(
        vocab_size=512, width=256, layers=2, heads=4, kv_heads=2, head_size=128, feed_forward=512
    )
    params = abstract_params(config)
    ids_BT = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def attend(index, q_BNTH, k_BKTH, v_BKTH):
        k_BNTH, v_BNTH = (
            jnp.repeat(x, config.heads // config.kv_heads, axis=1) for x in (k_BKTH, v_BKTH)
        )
        shares_BNTS = jax.nn.softmax(jnp.einsum("BNTH,BNSH->BNTS", q_BNTH, k_BNTH), axis=-1)
        return jnp.einsum("BNTS,BNSH->BNTH", shares_BNTS, v_BNTH)

    def loss(params, ids_BT):
        model = bind(config, params)
        positions_BT = jnp.arange(length)[None]
        logits_BTV = model.logits(model.hidden_states(ids_BT, positions_BT, attend))
        return optax.softmax_cross_entropy_with_integer_labels(logits_BTV, ids_BT).mean()

    counted = jax.jit(jax.grad(loss)).lower(params, ids_BT).compile().cost_analysis()["flops"]
    causal_half = 6 * config.layers * config.heads * config.head_size * length**2
    assert counted == pytest.approx(train_flops(config, [length]) + causal_half, rel=0.04)


def test_utilisation_over_one_cannot_be():
    assert utilisation(5e14, 1.0, 1e15) == 0.5
    with pytest.raises(CotjaxError, match="MFU of 200 %"):
        utilisation(2e15, 1.0, 1e15)


def test_an_unknown_device_has_no_peak():
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("cpu") is None
