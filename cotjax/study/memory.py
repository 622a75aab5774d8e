"""The memory that playing needs, told before anything is trained."""

from __future__ import annotations

from ml_collections import ConfigDict

from cotjax.model.config import ModelConfig
from cotjax.model.sharding import whole_slots
from cotjax.rollout.elicitation import longest_response
from cotjax.sample.programs import Programs
from cotjax.sample.vocabulary import stop_table
from cotjax.study.players import playing_mesh
from cotjax.train.memory import bytes_a_device, devices_summed, gigabytes, memory_here


def playing_memory(config: ConfigDict, model: ModelConfig) -> str:
    """Return a line on what the sampler's parameters and its cache take when all slots are full."""
    settings, mesh = config.evaluate, playing_mesh(config)
    new = longest_response(settings, config.rl.simulated_steps > 0)
    slots = whole_slots(settings.slots, mesh)
    programs = Programs(model, mesh, slots, new, stop_table([[0]], model.vocab_size), pad_id=0)
    devices = devices_summed(mesh)
    parameters, cache = (
        bytes_a_device(tree) * devices
        for tree in (programs.abstract_params(), programs.abstract_cache(settings.max_length))
    )
    line = (
        f"  memory: playing needs at least {gigabytes(parameters + cache)}: parameters "
        f"{gigabytes(parameters)}, the cache of {slots} slots of {settings.max_length:,} tokens "
        f"{gigabytes(cache)}"
    )
    available = memory_here(mesh)
    if available is None or parameters + cache <= available * devices:
        return line
    return (
        f"{line}; that is more than the {gigabytes(available * devices)} that there are: lower "
        "evaluate.slots or evaluate.max_length"
    )
