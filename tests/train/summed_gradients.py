"""Run by test_two_devices.py in a process with two CPU devices: the same gradients four times."""

import jax
import numpy as np
from helpers import tiny

from cotjax.bench.ours import batch_of
from cotjax.model.params import init_params
from cotjax.model.platform import compiler_options
from cotjax.model.sharding import batch_sharding, make_mesh
from cotjax.objectives.supervised import token_losses


def main():
    """Print how many of the gradients' arrays differ from those of the first time."""
    # So large that a device still computes while the other one waits for the sum.
    config = tiny.model_config(
        **{"layers": 16, "width": 576, "feed_forward": 1536, "heads": 9, "kv_heads": 3},
        **{"head_size": 64, "vocab_size": 1024, "max_length": 512},
    )
    mesh = make_mesh()
    assert mesh.size == 2
    params = init_params(config, jax.random.key(0), mesh)
    ids = np.random.default_rng(0).integers(config.vocab_size, size=(2, 512), dtype=np.int32)
    batch = jax.device_put(batch_of(ids), batch_sharding(mesh))

    def loss(params):
        return token_losses(config, params, batch, remat="none", scan=False, kernel="xla").sum()

    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(loss), compiler_options=compiler_options(mesh))
        first, *others = (
            [np.asarray(array) for array in jax.tree.leaves(gradient(params))] for _ in range(4)
        )
    pairs = (pair for other in others for pair in zip(first, other, strict=True))
    print("different:", sum(not np.array_equal(*pair) for pair in pairs))


if __name__ == "__main__":
    main()
