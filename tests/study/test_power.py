"""The power of a study: what it says before anything runs is what simulated studies find."""

from dataclasses import replace

import numpy as np
import pytest

from cotjax.cli.main import main
from cotjax.config import default_config
from cotjax.diagnostics import statistics
from cotjax.diagnostics.simulated import gap_change_of
from cotjax.errors import UsageError
from cotjax.study.power import check_primary, power_of, power_text, seeds_of, truth_of


def config_of(**primary):
    config = default_config()
    config.games.ood = 0
    for name, value in primary.items():
        config.primary[name] = value
    return config


@pytest.mark.parametrize("measure", ["d3", "d1"])
def test_four_studies_of_five_find_the_smallest_change(measure):
    config = config_of(measure=measure, assumed_base=(0.4, 0.4), assumed_last=(0.55, 0.4))
    (power,) = power_of(config)
    truth = truth_of(config, 60, 1)
    moved = replace(truth, last=((0.4 + power.smallest["gap"], 0.4),))
    rng, found = np.random.default_rng(9), 0
    for _ in range(200):
        combined = statistics.combine(gap_change_of(moved.draw(rng)))
        found += combined.estimate().sign > 0
    assert 0.7 < found / 200 < 0.9


def test_more_games_samples_and_seeds_find_smaller_changes():
    few, many = config_of(), config_of()
    many.games.in_domain = 240
    (small,), (large,) = power_of(few, 20), power_of(many, 20)
    assert large.half["gap"] < 0.6 * small.half["gap"]
    assert small.half["gap"] < small.smallest["gap"] < small.in_family["gap"]
    many.games.in_domain, many.evaluate.samples = 60, 4
    assert power_of(many, 20)[0].half["gap"] < 0.8 * small.half["gap"]
    assert "60 games x 4 samples, 1 seed (others are not covered)" in power_text(
        many, power_of(many, 20)[0]
    )


def test_seeds_of_an_arm_are_counted_by_cell():
    config = default_config()
    with config.unlocked():
        del config.arms.reduced
        for seed in (1, 2):
            config.arms[f"sft-s{seed}"] = {**config.arms.sft, "seed": seed}
    assert list(seeds_of(config).values()) == [3]
    assert power_of(config, 10)[0].seeds == 3


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("measure", "d2", "primary.measure is 'd2'; there are 'd3' and 'd1'"),
        ("kinds", ("cot", "instructed"), "primary.kinds is .*; it must be"),
        ("domains", ("ood_moon",), "primary.domains has 'ood_moon', of which no games are played"),
        ("arms", ("sft", "stf"), "primary.arms has 'stf', which is no arm of the config"),
        ("assumed_base", (0.3, 1.0), "primary.assumed_base is .* above 0 and below 1"),
    ],
)
def test_what_cannot_be_primary_is_refused(field, value, words):
    with pytest.raises(UsageError, match=words):
        check_primary(config_of(**{field: value}))


def test_power_is_said_without_running_anything(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "config.py"
    file.write_text("from cotjax.config import default_config as get_config\n")
    main(["study", "--power", f"--config={file}"])
    hashed, *said = capsys.readouterr().out.splitlines()
    assert hashed.startswith("hash of the config: ")
    assert len(said) == 2 and said[0].startswith("in-domain, success of whole episodes (D3), 60")
    assert "change of CoT actions ±" in said[0] and list(tmp_path.iterdir()) == [file]
