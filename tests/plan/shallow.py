"""Run by test_plan.py in a process of its own: the memory that a config's sampler takes, by depth.

    python shallow.py CONFIG TOPOLOGY SLICES DEPTH DEPTH

Prints one line of JSON: peaks (bytes a device of each program, a list a depth), layers (of the
config's model) and room (bytes of a device).
"""

import json
import sys
from dataclasses import replace

from cotjax.config import load_config, sampler_mesh
from cotjax.model.sharding import make_mesh
from cotjax.plan.main import device_memory, model_of
from cotjax.plan.measure import sampler_programs
from cotjax.plan.topology import Topology, use_compiler_alone


def main():
    use_compiler_alone()
    file, name, slices, *depths = sys.argv[1:]
    config, topology = load_config(file), Topology(name, int(slices))
    model, devices = model_of(config), topology.devices()
    mesh = make_mesh(**sampler_mesh(config), devices=devices)
    peaks = [
        [
            program.peak
            for program in sampler_programs(config, replace(model, layers=int(depth)), mesh)
        ]
        for depth in depths
    ]
    print(
        json.dumps(
            {"peaks": peaks, "layers": model.layers, "room": device_memory(topology, devices)}
        )
    )


main()
