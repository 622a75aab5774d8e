"""Parts of a study: which arms a part has, and that parts make what they share one at a time."""

import json
import re
import threading
from pathlib import Path

import pytest

from cotjax.cli.main import main
from cotjax.config import default_config, load_config, set_field
from cotjax.errors import UsageError
from cotjax.runtime.claim import protocol_hash
from cotjax.runtime.older import LATER
from cotjax.runtime.settings import flatten
from cotjax.study.parts import in_turn, part_of, parts_of, root_of

CONFIGS = Path(__file__).parents[2] / "configs"
# Config -> the beginning of the hash that its docstring tells.
TOLD = {
    path.stem: found[1]
    for path in sorted(CONFIGS.glob("*.py"))
    if (found := re.search(r"^Hash +([0-9a-f]{12})…", path.read_text(), re.M))
}


def config_of(seeds=(0, 1), **arms):
    config = default_config()
    config.arms = {name: {"label": name, **own} for name, own in arms.items()}
    config.seeds = seeds
    return config


def test_a_part_has_the_members_of_its_names_in_order_of_training():
    config = config_of(dpo={"start": "short"}, short={"steps": 2})
    every = ("short/seed-0", "short/seed-1", "dpo/seed-0", "dpo/seed-1")
    assert part_of(config, ()) == every
    assert part_of(config, ("dpo/seed-1", "short")) == ("short/seed-0", "short/seed-1", every[3])
    parts = [part_of(config, (name,)) for name in every]
    assert sum(parts, ()) == every, "parts of a member each are the whole"
    assert part_of(config_of((), b={}, a={}), ("b",)) == ("b",)
    with pytest.raises(UsageError, match="--arms names 'sft'; there are short/seed-0, short/seed-"):
        part_of(config, ("dpo", "sft"))


def test_the_root_of_a_chain_starts_from_the_base():
    config = config_of(a={"start": "b"}, b={"start": "c"}, c={})
    assert root_of(config, "a/seed-1") == "c/seed-1"
    assert root_of(config, "c/seed-0") == "c/seed-0"


def test_parts_need_nothing_of_each_other_and_are_the_whole(tmp_path, capsys):
    config = config_of((3, 1), dpo={"start": "short"}, sft={}, short={"steps": 2})
    parts = parts_of(config)
    assert parts == [
        *(("sft/seed-1",), ("short/seed-1", "dpo/seed-1")),
        *(("sft/seed-3",), ("short/seed-3", "dpo/seed-3")),
    ]
    assert sorted(sum(parts, ())) == sorted(part_of(config, ()))
    assert all(part_of(config, part) == part for part in parts)
    file = Path(__file__).parents[2] / "configs" / "study_made_pairs.py"
    assert main(["study", "--config", str(file), "--parts"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "short/seed-3,dpo/seed-3,dpo_plus/seed-3,more/seed-3",
        "short_named/seed-3,frodo/seed-3",
    ]
    assert len(lines) == 10


def test_one_part_waits_until_another_has_made_what_they_share(tmp_path):
    order, waiting = [], threading.Event()

    def second():
        with in_turn(tmp_path, lambda line: (order.append(line.split()[0]), waiting.set())):
            order.append("second")

    with in_turn(tmp_path, order.append):
        other = threading.Thread(target=second)
        other.start()
        assert waiting.wait(10)
        order.append("first")
    other.join(10)
    assert order == ["Waiting", "first", "second"]


def hash_of_config(config):
    return protocol_hash(json.loads(config.to_json_best_effort()))


def test_the_hash_of_a_config_leaves_out_the_machine_and_the_folder_alone():
    def hash_of(**fields):
        config = default_config()
        for name, value in fields.items():
            config.update_from_flattened_dict({name.replace("__", "."): value})
        return hash_of_config(config)

    same = {"out": "x", "workers": 0, "cpu_devices": 8, "evaluate__slots": 3, "mesh__tensor": 2}
    assert hash_of() == hash_of(**same) == hash_of(title="another title")
    others = {"primary__margin": 0.2, "seed": 1, "seeds": (1, 2), "evaluate__samples": 2}
    others |= {"train__steps": 7, "evaluate__episodes_at": (0,), "games__seed": 3}
    assert len({hash_of(**{name: value}) for name, value in others.items()} | {hash_of()}) == 8


@pytest.mark.parametrize(("name", "told"), TOLD.items())
def test_a_field_that_came_later_leaves_published_hashes_as_they_were(name, told):
    assert {"study_made", "study_made_pairs", "study_made_core"} <= TOLD.keys()
    config = load_config(CONFIGS / f"{name}.py")
    assert hash_of_config(config).startswith(told)
    for field, value in LATER.items():
        assert flatten(config.to_dict())[field] == value
        other = {str: "fast", bool: True, int: 1, float: 0.5}[type(value)]
        set_field(config, f"{field}={other}")
        assert not hash_of_config(config).startswith(told), field
        set_field(config, f"{field}={value}")
