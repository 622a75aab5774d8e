"""Run by test_ragged.py in a process of its own: kernels compiled for TPUs that are not here."""

from cotjax.plan.topology import Topology, use_compiler_alone

use_compiler_alone()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from cotjax.model.kernels import attend_by  # noqa: E402
from cotjax.model.ragged import ragged_step_attention  # noqa: E402
from cotjax.model.sharding import make_mesh  # noqa: E402

SLOTS, CAPACITY, HEAD, LENGTH = 8, 1024, 128, 512
HALF, WHOLE = jnp.bfloat16, jnp.int32


def compiled(mesh, function, *shapes):
    """Compile for the mesh's device; the compiler's own error is the test's."""
    place = NamedSharding(mesh, PartitionSpec())
    arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape, dtype in shapes]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.jit(function).lower(*arrays).compile()


def ragged(q, pairs, seen):
    return ragged_step_attention(q, pairs, seen, 128)


def splash(q, k, v, segments, branches):
    def total(*heads):
        return attend_by("splash")(*heads, segments, branches).astype(jnp.float32).sum()

    return jax.value_and_grad(total, argnums=(0, 1, 2))(q, k, v)


def main():
    for name in ("v5e:2x2", "v5p:2x2x1", "v6e:1x1", "tpu7x:2x2x1"):
        mesh = make_mesh(devices=Topology(name).devices()[:1])
        for K in (8, 2):
            pairs = (SLOTS, CAPACITY, 2 * K, HEAD)
            queries = (SLOTS, 4 * K, 1, HEAD)
            compiled(mesh, ragged, (queries, HALF), (pairs, HALF), ((SLOTS,), WHOLE))
            print(f"{name}: ragged, {K} key heads", flush=True)
        heads = [((1, count, LENGTH, HEAD), HALF) for count in (4, 2, 2)]
        compiled(mesh, splash, *heads, *[((1, LENGTH), WHOLE)] * 2)
        print(f"{name}: splash with branches", flush=True)


if __name__ == "__main__":
    main()
