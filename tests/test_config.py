from pathlib import Path

import pytest

from cotjax.config import ARM_FIELDS, default_config, load_config, set_field
from cotjax.errors import UsageError
from cotjax.study.arms import dropping_of

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
CONFIGS_OF = {path.stem: path for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_says_how_to_run_it(path):
    config = load_config(path)
    assert set(config) == set(default_config())
    assert (
        "cotjax" in path.read_text().split('"""')[1]
        or "launch/" in path.read_text().split('"""')[1]
    )


def test_fields_are_set_with_their_type():
    config = load_config(
        CONFIGS[0],
        [
            "train.steps=7",
            "train.learning_rate=1",
            "out=runs/x",
            "train.remat=dots",
            "masking.supervised=ACTION,END",
        ],
    )
    assert config.train.steps == 7 and config.train.learning_rate == 1.0 and config.out == "runs/x"
    assert config.train.remat == "dots" and config.masking.supervised == ("ACTION", "END")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=7", "unknown config field 'train.step'; did you mean 'train.steps'"),
        ("trian.steps=7", "unknown config field 'trian.steps'; did you mean 'train.steps'"),
        ("train.steps=seven", "'seven' is not of type int"),
        ("train.steps=1.5", "'1.5' is not of type int"),
        ("masking.redraw=1", "'1' is not of type bool"),
        ("train=7", "this is a section"),
        ("train.steps.more=7", "train.steps is a value"),
        ("train.steps", "give a value"),
        ("train.steps=true", "'true' is not of type int"),
        ("zzz=1", "unknown config field 'zzz'; there are arms, autocoa, collect"),
    ],
)
def test_a_wrong_override_is_one_clear_line(override, message):
    with pytest.raises(UsageError) as caught:
        set_field(default_config(), override)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_every_field_of_an_arm_can_be_set(tmp_path):
    config = default_config()
    for name, value in (
        ("control", "random tokens"),
        ("fraction", 0.5),
        ("last_fraction", 0.25),
        ("fraction_steps", 7),
        ("label", "x"),
        ("thoughts", "unnamed"),
        ("trajectories", "mine.jsonl"),
        ("direct_share", 0.3),
        ("advantage", "rloo"),
        ("start", "sft"),
        ("steps", 7),
        ("learning_rate", 0.1),
        ("objective", "dpo"),
        ("rejected", "lost.jsonl"),
        ("task_types", ("look_at_obj_in_light",)),
        ("seed", 7),
    ):
        set_field(config, f"arms.reduced.{name}={value}")
        assert config.arms.reduced[name] == value and type(config.arms.reduced[name]) is type(
            ARM_FIELDS[name]
        )
    assert set(config.arms.reduced) == set(ARM_FIELDS) and set(config.arms.sft) == {
        "label",
        "fraction",
    }
    assert dropping_of(config, "reduced").fraction_at(7) == 0.25
    for override, words in (
        ("arms.reduced.contrl=x", "did you mean 'arms.reduced.control'"),
        ("arms.new.fraction=0.5", "unknown config field 'arms.new.fraction'"),
    ):
        with pytest.raises(UsageError, match=words):
            set_field(config, override)


def test_a_config_file_that_is_missing_or_broken_is_named(tmp_path):
    for text, message in (
        (None, "no such config file"),
        ("x = 1", "get_config"),
        ("def get_config(:", "line 1: invalid syntax"),
        ("def get_config():\n    return {}", "returned a dict"),
        ("def get_config():\n    return {}['steps']", "c.py, line 2: KeyError: steps"),
        ("import os\nimport no_such_config", "c.py, line 2: ModuleNotFoundError"),
    ):
        path = tmp_path / "c.py"
        if text is not None:
            path.write_text(text)
        with pytest.raises(UsageError, match=message) as caught:
            load_config(path)
        assert str(path) in str(caught.value)


def test_an_unknown_key_in_a_config_file_is_an_error(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(
        "from cotjax.config import default_config\n"
        "def get_config():\n    config = default_config()\n"
        "    config.train.step = 3\n    return config\n"
    )
    with pytest.raises(UsageError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(f'{path}, line 4: AttributeError: Key "step" does not exist')
    assert message.endswith('Did you mean "steps" instead of "step"?') and "\n" not in message


def test_an_error_below_a_config_names_the_config_line_that_led_there(tmp_path):
    """A value of a wrong type is noticed in ml_collections; the line to change is the config's."""
    (tmp_path / "shared_config.py").write_text(
        "from cotjax.config import default_config\ndef make():\n    config = default_config()\n"
        "    config.train.steps = 'many'\n    return config\n"
    )
    (tmp_path / "c.py").write_text(
        "import shared_config\ndef get_config():\n    return shared_config.make()\n"
    )
    with pytest.raises(UsageError, match=r"shared_config\.py, line 4: TypeError: .*'steps'"):
        load_config(tmp_path / "c.py")


def test_a_worlds_defaults_follow_the_world(tmp_path):
    for world in ("scienceworld", "bfcl", "search_qa", "cotjax.envs.search_qa:REAL"):
        config, usual = load_config(CONFIGS_OF["demo"], [f"world={world}"]), default_config(world)
        for name in ("source", "eval_split", "ood_domains"):
            assert config.games[name] == usual.games[name], (world, name)
        assert config.task_types.to_dict() == usual.task_types.to_dict()
        assert config.games.in_domain == 64
    # In any order, what the command line says comes after what the world sets.
    for overrides in (("world=bfcl", "games.eval_split=train"), ("games.eval_split=train",) * 2):
        assert load_config(CONFIGS_OF["demo"], overrides).games.eval_split == "train"
    overrides = ["games.ood_domains=miss_func", "task_types.in_domain=base", "world=bfcl"]
    config = load_config(CONFIGS_OF["demo"], overrides)
    assert config.games.ood_domains == ("miss_func",) and config.task_types.in_domain == ("base",)


def test_what_a_config_file_sets_stays_where_the_other_world_has_it(tmp_path):
    config = load_config(CONFIGS_OF["search_qa"], ["world=cotjax.envs.search_qa:REAL"])
    assert config.games.ood_domains == ("ood_chains", "ood_hops", "ood_entities")
    assert config.task_types.collect == config.task_types.in_domain != ()
    config = load_config(CONFIGS_OF["scienceworld"], ["world=cotjax.envs.scienceworld:PLAIN"])
    assert config.games.eval_split == "dev" and config.task_types.ood[0] == "find-plant"
    config = load_config(CONFIGS_OF["scienceworld"], ["world=bfcl"])
    assert config.games.eval_split == "test" and config.task_types.in_domain == ("base",)
    with pytest.raises(UsageError, match="unknown world 'nowhere'"):
        load_config(CONFIGS_OF["demo"], ["world=nowhere"])
