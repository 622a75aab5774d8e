"""Run by test_weights_memory.py as each of two processes that share the parameters: both read their
part, the first writes all.
"""

import sys
from pathlib import Path

import jax
from weights_memory import CONFIG, PART, SLACK, forget_peak, status

from cotjax.model.params import abstract_params
from cotjax.model.sharding import make_mesh
from cotjax.weights.huggingface import load_hf, save_hf


def main(folder: Path, address: str, process: int) -> None:
    jax.distributed.initialize(address, num_processes=2, process_id=process)
    sizes = [4 * x.size for x in jax.tree.leaves(abstract_params(CONFIG))]
    mesh = make_mesh(data=1, fsdp=-1)
    before = forget_peak()
    config, params = load_hf(folder, mesh)
    above = status("VmHWM") - before
    own = sum(shard.data.nbytes for x in jax.tree.leaves(params) for shard in x.addressable_shards)
    assert not params["lm_head"]["weight"].is_fully_addressable and own < 0.51 * sum(sizes)
    assert above <= own + 2 * max(sizes) + SLACK, (above, own)
    save_hf(folder.with_name("two processes"), config, params, max_shard_bytes=PART)
    assert (folder.with_name("two processes") / "model.safetensors.index.json").exists(), (
        "there for every process on return"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
