"""Every number of a config has a range, and one out of it is refused before anything is spent."""

import math
from pathlib import Path

import pytest

from cotjax.cli.main import main
from cotjax.config import default_config, load_config
from cotjax.errors import UsageError
from cotjax.runtime.ranges import INT32_MAX, RANGES, check_all_ranges
from cotjax.train.checks import check_counts

CONFIGS = Path(__file__).parents[2] / "configs"
FIELDS = [(section, field) for section, fields in RANGES.items() for field in fields]


def _section(config, name):
    return config[name] if name else config


def _refused(section, field, value):
    config = default_config()
    _section(config, section)[field] = value
    name = rf"{section}\.{field}" if section else field
    with pytest.raises(
        UsageError, match=rf"^{name} is \S+; it must be (at least|more than) [\d.]+"
    ) as error:
        check_all_ranges(config)
    assert f"{value}" in str(error.value)


@pytest.mark.parametrize(("section", "field"), FIELDS)
def test_what_no_number_may_be_is_refused_in_every_field(section, field):
    floats = isinstance(_section(default_config(), section)[field], float)
    for value in (-1.0, math.nan, math.inf, -math.inf, 1e39) if floats else (-1, INT32_MAX + 1):
        _refused(section, field, value)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("train", "learning_rate", 0.0),
        ("train", "b1", 1.0),
        ("train", "b2", 1.0),
        ("train", "b2", 2.0),
        ("train", "vector_rate", 0.0),
        ("train", "steps", 0),
        ("train", "batch", 0),
        ("train", "accumulate", 0),
        ("data", "direct_share", 1.5),
        ("collect", "slips", 1.01),
        ("model", "lora_alpha", 0.0),
        ("", "seed", 10**20),
        ("games", "seed", 2**31),
        ("collect", "max_steps", 0),
        ("", "cpu_devices", 0),
    ],
)
def test_an_end_that_is_out_is_refused(section, field, value):
    _refused(section, field, value)


def test_an_end_that_is_in_is_taken():
    config = default_config()
    config.train.update(
        {
            "b1": 0.0,
            "b2": 0.0,
            "weight_decay": 0.0,
            "clip_norm": 0.0,
            "warmup": 0,
            "learning_rate": 1e30,
        }
    )
    config.data.direct_share = 1.0
    check_all_ranges(config)
    check_counts(config.train)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.py")))
def test_every_shipped_config_is_within(name):
    path = CONFIGS / f"{name}.py"
    if "get_config" not in path.read_text():
        pytest.skip("shared by configs, and none itself")
    check_all_ranges(load_config(path))


def test_every_number_of_the_optimizer_has_a_range():
    """A new field of the section is either in the table, or its meaning is checked elsewhere."""
    train = default_config().train
    numbers = {
        name
        for name, value in train.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    assert numbers == set(RANGES["train"])


@pytest.mark.parametrize(
    "override",
    [
        "learning_rate=-0.001",
        "learning_rate=0.0",
        "learning_rate=1e999",
        "b1=2.0",
        "clip_norm=-1.0",
    ],
)
def test_the_command_line_refuses_it_before_anything_is_made(tmp_path, capsys, override):
    out = tmp_path / "run"
    assert (
        main(
            [
                "train",
                "--config",
                str(CONFIGS / "demo.py"),
                "--out",
                str(out),
                f"--config.train.{override}",
            ]
        )
        == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert f"train.{override.partition('=')[0]} is" in line and "it must be" in line
    assert not (out / "arms").exists() and not (out / "games").exists()


def test_a_plan_refuses_it_before_it_looks_for_a_compiler(capsys):
    arguments = [
        "plan",
        "--config",
        str(CONFIGS / "demo.py"),
        "--topology",
        "v5e:2x2",
        "--config.train.b2=1.0",
    ]
    assert main(arguments) == 2
    assert "train.b2 is 1.0; it must be at least 0 and less than 1" in capsys.readouterr().err
