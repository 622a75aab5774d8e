"""Training on pairs in the training loop: the reference, resumption, and what its metrics say."""

import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import tiny, training
from helpers.training import LORA_MODEL, MODEL, rows

from cotjax.data.pair_store import PairSource, write_pairs
from cotjax.data.pairs import OtherStates, PairCounts, step_pairs
from cotjax.errors import UsageError
from cotjax.masking import Dropping
from cotjax.model.params import init_params
from cotjax.objectives.frodo import Frodo
from cotjax.objectives.preference import Preference
from cotjax.train.failed import keep_failed, load_failed, objective_of
from cotjax.train.main import train
from cotjax.train.metrics import read_held_out
from cotjax.train.reference import model_hash
from cotjax.train.run import Run
from cotjax.train.step import FIELDS

SETTINGS = {
    **{"batch": 4, "steps": 6, "save_every": 3, "schedule_steps": 6, "row_length": 160},
    **{"learning_rate": 1e-2, "warmup": 0},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    codec = tiny.word_codec(folder / "tokenizer", tiny.TINY_WORDS)
    anywhere = tuple(f"open cabinet {number + 1}" for number in range(9))
    episodes = []
    for number in range(12):
        episode = tiny.trajectory(f"t{number}", 2)
        steps = tuple(replace(step, admissible_commands=anywhere) for step in episode.steps)
        episodes.append(replace(episode, steps=steps))
    for name, triples in (("steps", False), ("triples", True)):
        counts = PairCounts()
        pairs = step_pairs(codec, episodes, OtherStates(codec), 160, counts, triples=triples)
        write_pairs(folder / name, pairs, counts)
    return folder


@pytest.fixture
def pairs(made, tmp_path):
    """Pairs without a reference beside them."""
    return {
        name: PairSource(Path(shutil.copytree(made / name, tmp_path / name)))
        for name in ("steps", "triples")
    }


def run(folder, source, objective, *, lora=False, seed=3, dropping=None, say=print, **changes):
    what = Run(
        training.settings(**SETTINGS | changes),
        dropping or Dropping.of(),
        LORA_MODEL if lora else MODEL,
        training.init_lora_params if lora else training.init_params,
        seed,
        objective=objective,
    )
    return train(
        what,
        folder=Path(folder),
        source=source,
        mesh_shape=training.ONE,
        listener=training.Hears(say=say),
    )


def test_dpo_starts_at_log_2_learns_to_prefer_and_resumes_to_the_bit(pairs, tmp_path):
    said = []
    source = pairs["steps"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, source, Preference(), say=said.append, accumulate=2)
    assert said[0] == "computing the reference's log-probabilities of 24 pairs"
    found = rows(whole)
    assert found[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert found[-1]["loss"] < found[0]["loss"]
    first, last = found[0]["objective"], found[-1]["objective"]
    assert abs(first["margin"]) < 1e-4 and last["margin"] > 0.01 and last["accuracy"] > 0.5
    assert last["chosen_reward"] > last["rejected_reward"]
    assert set(first) == {
        "chosen_log_prob",
        "rejected_log_prob",
        "chosen_nll",
        "chosen_reward",
        "rejected_reward",
        "margin",
        "accuracy",
    }
    run(parts, source, Preference(), steps=3, accumulate=2)
    said.clear()
    run(parts, source, Preference(), say=said.append, accumulate=2)
    assert not any("computing the reference" in line for line in said), "it is kept"
    training.assert_same(whole, parts, 6)
    with pytest.raises(UsageError, match=r"objective.beta is 0.1 there, 0.5 here"):
        run(parts, source, Preference(0.5))


def test_dropped_actions_are_counted_and_both_sides_lose_them(pairs, tmp_path):
    dropping = Dropping.of(fraction=1.0)
    run(tmp_path / "run", pairs["steps"], Preference(), dropping=dropping, steps=1, save_every=1)
    (row,) = rows(tmp_path / "run")
    assert row["dropped"]["tokens"] > 0 and "ACTION" not in row["supervised"]
    assert row["loss"] == pytest.approx(np.log(2), abs=1e-5)


def test_frodo_trains_and_names_its_terms(pairs, tmp_path):
    run(tmp_path / "run", pairs["triples"], Frodo(), steps=4, eval_every=2, eval_share=0.3)
    found = rows(tmp_path / "run")
    terms = found[0]["objective"]
    total = sum(terms[f"{name}_loss"] for name in ("inference", "lm", "counterfactual", "ranking"))
    assert found[0]["loss"] == pytest.approx(total, rel=1e-5)
    assert terms["inference_loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert found[-1]["objective"]["lm_loss"] < terms["lm_loss"]
    held = read_held_out(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in held] == [0, 2, 3, 4]
    assert held[0]["held_out"]["loss"] > np.log(2), "the loss of the objective"


def test_adapters_share_the_reference_of_their_base_and_other_weights_do_not(pairs, tmp_path):
    source = pairs["steps"]
    for number in (0, 1):
        run(tmp_path / f"lora{number}", source, Preference(), lora=True, seed=number, steps=1)
    base = model_hash(MODEL, training.init_params(tiny.mesh()))
    assert [file.stem for file in source.folder.glob("reference-*.npy")] == [
        f"reference-{base[:12]}"
    ]
    row = rows(tmp_path / "lora1")[0]
    assert row["loss"] == pytest.approx(np.log(2), abs=1e-5)
    changed = init_params(MODEL, jax.random.key(1))
    assert model_hash(MODEL, changed) != base


def test_what_is_no_source_of_pairs_is_refused(tmp_path):
    with pytest.raises(UsageError, match="a preference objective is trained on pairs"):
        run(tmp_path / "run", [{"id": b"x"}], Preference())


def test_a_failed_step_keeps_its_objective_and_all_of_its_fields(tmp_path):
    batch = {name: np.zeros((2, 8)) for name in FIELDS["preference"]}
    spec = Preference(0.3, nll=1.0)
    about = {"objective": spec.values(), "masking": {"normalizer": "token_sum"}}
    kept, facts = load_failed(keep_failed(tmp_path, 3, batch, about))
    assert kept.keys() == batch.keys()
    assert objective_of(facts, MODEL, tiny.mesh()).func.__self__ == spec
