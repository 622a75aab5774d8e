"""The stages of AutoCoA: order, checks, resumption, and what each names as its start."""

import json
import os
import signal
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from cotjax.cli.main import main
from cotjax.config import default_config, load_config
from cotjax.data.codec import Codec
from cotjax.data.growing import recall_example
from cotjax.data.growing_text import TOKENS
from cotjax.data.word_tokenizer import build_word_tokenizer
from cotjax.envs.lessons import Recall
from cotjax.envs.search_qa.growing import SearchPieces
from cotjax.errors import DataError, Stopped, UsageError
from cotjax.formats import CHATML, Prompt
from cotjax.masking import Role
from cotjax.model import decoder
from cotjax.model.config import ModelConfig
from cotjax.objectives.trigger import Trigger
from cotjax.report.autocoa import PAPER
from cotjax.rollout.elicitation import longest_response
from cotjax.runtime.claim import checkpoint_steps
from cotjax.runtime.progress import Reporter
from cotjax.study.autocoa import open_autocoa
from cotjax.study.closed_book import ClosedBook, answered, closed_book
from cotjax.study.ready import check_stages
from cotjax.study.stages import arms_of_stages, plans_of, programs_of
from cotjax.train.checkpoint import Checkpoints
from cotjax.train.metrics import read_metrics

CONFIG = '''
"""A tiny run: cotjax autocoa."""
from cotjax.config import default_config


def get_config():
    config = default_config("search_qa")
    config.games.train, config.games.in_domain, config.games.ood = 30, 0, 0
    config.task_types.in_domain = config.task_types.collect = ("one_hop",)
    config.data.layout = "growing"
    config.data.max_length = config.train.row_length = 256
    config.model.base = "random"
    config.model.width, config.model.layers, config.model.heads, config.model.kv_heads = 16, 1, 2, 1
    config.model.head_size, config.model.feed_forward = 8, 16
    config.train.batch, config.train.warmup = 2, 0
    config.train.steps = config.train.save_every = 4
    config.autocoa.choices, config.autocoa.episodes, config.autocoa.thinking = 8, 10, 2
    config.autocoa.other_episodes = 4
    config.autocoa.least_known = 0.0
    with config.unlocked():
        for stage in ("sft2_alone", "few", "rl2", "rl2_alone"):
            del config.autocoa.stages[stage]
        config.autocoa.arms = {}
    for stage in ("base", "sft1", "rl"):
        config.autocoa.stages[stage].steps = 4
    config.autocoa.stages.rl.simulated_steps = 2
    config.autocoa.stages.sft2.replay, config.autocoa.replay_episodes = 0.5, 4
    config.rl.tasks, config.rl.group, config.rl.slots, config.rl.flat = 1, 2, 2, "keep"
    config.rl.information, config.rl.refills, config.rl.live_prompt = 0, 0, False
    config.evaluate.max_length, config.evaluate.max_new_tokens = 128, 16
    config.evaluate.max_result_tokens, config.evaluate.max_steps = 16, 2
    config.workers = 0
    return config
'''
REPLAYS_LESS = "--config.autocoa.stages.sft2.replay=0.25"
STAGES = ("base", "sft1", "sft2", "sft3", "rl")


class Killer(Reporter):
    """Sends SIGTERM behind the second update of a stage."""

    def __init__(self, stage):
        super().__init__()
        self._killed = stage

    @contextmanager
    def stage(self, name, title):
        with super().stage(name, title) as stage:
            update = stage.update

            def kill(done, total, detail=""):
                update(done, total, detail)
                if name == self._killed and done == 2:
                    os.kill(os.getpid(), signal.SIGTERM)

            stage.update = kill
            yield stage


def params_at(run: Path, stage: str, step: int = 4):
    model = ModelConfig.from_saved(run / "model.json")
    checkpoints = Checkpoints(run / "stages" / stage / "checkpoints")
    found = checkpoints.restore_params(step, model, tiny.mesh()), checkpoints.digest(step)
    checkpoints.close()
    return jax.tree.map(np.asarray, found[0]), found[1]


def rows(run: Path, stage: str):
    read = read_metrics(run / "stages" / stage / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "time"} for row in read]


@pytest.mark.slow
def test_killed_in_a_stage_the_run_ends_as_if_undisturbed(tmp_path, capsys):
    file, calm, killed = tmp_path / "config.py", tmp_path / "calm", tmp_path / "killed"
    file.write_text(CONFIG)
    assert main(["autocoa", "--config", str(file), "--out", str(calm)]) == 0
    config = load_config(file, [f"out={killed}"])
    for stage in ("sft1", "rl"):
        with pytest.raises(Stopped, match=r"after step [23] of 4, which is saved"):
            open_autocoa(config, Killer(stage)).run()
    finished = killed / "stages" / "sft3" / "checkpoints" / "4" / "sums.json"
    stamp = finished.stat().st_mtime_ns
    capsys.readouterr()
    open_autocoa(config, Reporter()).run()
    said = capsys.readouterr().out
    assert said.count("is complete") == 4 and finished.stat().st_mtime_ns == stamp
    for stage in STAGES:
        ours, theirs = params_at(calm, stage), params_at(killed, stage)
        jax.tree.map(np.testing.assert_array_equal, ours[0], theirs[0])
        assert rows(calm, stage) == rows(killed, stage)
    for stage, before in zip(STAGES[1:], STAGES, strict=False):
        digest = params_at(killed, before)[1]
        settings = json.loads((killed / "stages" / stage / "settings.json").read_text())
        assert settings["made_from"]["base"]["checkpoint"] == digest
        assert f"from {before} {digest}" in said
        first, last = params_at(killed, stage, 0)[0], params_at(killed, before)[0]
        jax.tree.map(np.testing.assert_array_equal, first, last)
    # The roles of each stage, in what it was trained on.
    supervised = {stage: set(rows(calm, stage)[0]["supervised"]) for stage in STAGES[:4]}
    assert "OBSERVATION" in supervised["sft3"] and "OBSERVATION" not in supervised["sft2"]
    assert "END" in supervised["sft2"] and "margin" in rows(calm, "sft1")[0]["objective"]

    # Other settings of a stage are refused in one line.
    other = "--config.autocoa.stages.sft1.learning_rate=0.5"
    capsys.readouterr()
    assert main(["autocoa", "--config", str(file), "--out", str(calm), other]) == 2
    said = capsys.readouterr().err
    assert "train.learning_rate is 0.0001 there, 0.5 here" in said and said.count("\n") == 1
    assert main(["autocoa", "--config", str(file), "--out", str(calm), REPLAYS_LESS]) == 2
    said = capsys.readouterr().err
    assert "stages/sft2 holds another run" in said and "gives other examples" in said


@pytest.mark.slow
def test_seeds_have_runs_of_their_own_on_the_same_questions(tmp_path, capsys):
    file, out = tmp_path / "config.py", tmp_path / "run"
    file.write_text(CONFIG)
    how = ["--until", "base", "--config.seeds=(0, 1)"]
    assert main(["autocoa", "--config", str(file), "--out", str(out), *how]) == 0
    said = capsys.readouterr().out
    (ours, one), (_, other) = (params_at(out / "seeds" / str(seed), "base") for seed in (0, 1))
    assert one != other and f"seeds/1/stages/base/checkpoints ({other})" in said
    assert (out / "games").exists() and not (out / "seeds" / "0" / "games").exists()
    # Seed 0 is what a run without seeds is.
    alone = tmp_path / "alone"
    assert main(["autocoa", "--config", str(file), "--out", str(alone), "--until", "base"]) == 0
    jax.tree.map(np.testing.assert_array_equal, params_at(alone, "base")[0], ours)


def config_of(tmp_path, **stages):
    file = tmp_path / "config.py"
    file.write_text(CONFIG)
    config = load_config(file)
    for stage, own in stages.items():
        with config.unlocked():
            config.autocoa.stages[stage] = own
    return config


def test_stages_come_behind_the_ones_they_start_from(tmp_path):
    config = config_of(tmp_path, a_only={"start": "sft1", "supervised": ("ACTION",)})
    plans = plans_of(config)
    assert list(plans) == ["base", "sft1", "a_only", "sft2", "sft3", "rl"]
    assert plans["sft1"].objective == Trigger(0.2) and plans["sft2"].objective is None
    assert plans["a_only"].dropping.supervised == (Role.ACTION,)
    assert Role.OBSERVATION in plans["sft3"].dropping.supervised
    assert Role.OBSERVATION not in plans["sft2"].dropping.supervised
    default = plans_of(default_config("search_qa"))
    assert default["base"].train.learning_rate == 3e-3 and default["sft2"].train.steps == 200


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"start": "sft9"}, "stages.x.start is 'sft9'; there are base"),
        ({"start": "x"}, "x start from each other"),
        ({"lesson": "rl"}, "stages.x.lesson is 'rl'; there are facts, choices, episodes, play"),
        ({"episodes": 3, "lesson": "play"}, "stages.x.episodes is 3, but its lesson is 'play'"),
        ({"simulated_steps": 3}, "stages.x.simulated_steps is 3, but its lesson is 'episodes'"),
        ({"lesson": "play", "simulated_steps": 9}, "stages.x.simulated_steps is 9; it has 4 steps"),
        ({"replay": 1.0}, "stages.x.replay is 1.0; it is a share below 1 of the tokens"),
        ({"replay": 0.5, "lesson": "play"}, "stages.x.replay is 0.5, but its lesson is 'play'"),
        ({"stepz": 3}, "stages.x: unknown field 'stepz'; there are label"),
        ({"steps": -3}, "stages.x.steps is -3; it must be of type int"),
        ({"choices": "a.jsonl"}, "stages.x.choices is a.jsonl, but its lesson is 'episodes'"),
        ({"supervised": ("ACTIONS",)}, "stages.x: masking: supervised: unknown role 'ACTIONS'"),
    ],
)
def test_a_stage_that_is_not_possible_is_one_line(tmp_path, own, message):
    with pytest.raises(UsageError) as caught:
        plans_of(config_of(tmp_path, x=own))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_may_give_a_stage_and_an_arm_by_a_few_fields(tmp_path):
    file = tmp_path / "config.py"
    more = """    with config.unlocked():
        config.autocoa.stages = {"base": {"lesson": "facts"}, "more": {"start": "base"}}
        config.autocoa.arms = {"more": {"at": "more"}}
    return config
"""
    file.write_text(CONFIG.replace("    return config\n", more))
    config = load_config(file, ["autocoa.stages.more.steps=3"])
    plans = plans_of(config)
    assert list(plans) == ["base", "more"] and plans["more"].train.steps == 3
    assert list(arms_of_stages(config, plans)) == ["more"]


def test_a_stage_has_rows_of_its_own_and_texts_without_turns(tmp_path):
    plans = plans_of(config_of(tmp_path, short={"row_length": 64}))
    assert plans["short"].train.row_length == 64 and plans["base"].train.row_length == 256
    config = config_of(tmp_path)
    config.data.layout = "trajectory"
    with pytest.raises(UsageError, match=r"layout is 'trajectory', and .* set it to 'growing'"):
        check_stages(config)


def test_simulated_and_real_searches_are_steps_of_one_loop(tmp_path):
    plan = plans_of(config_of(tmp_path))["rl"]
    assert plan.rl.simulated_steps == 2 and plan.start == "sft3" and plan.objective is None
    assert checkpoint_steps(plan.train.steps, plan.train.save_every) == [0, 2, 4]
    default = plans_of(default_config("search_qa"))["rl"]
    assert (default.train.steps, default.rl.simulated_steps) == (96, 80)
    assert 80 in checkpoint_steps(96, default.train.save_every)


def test_arms_are_checkpoints_of_shared_stages():
    config = default_config("search_qa")
    plans = plans_of(config)
    arms = arms_of_stages(config, plans)
    places = {name: (arm.stage, arm.step) for name, arm in arms.items()}
    assert places["rl1"] == ("rl", 80) and places["rl1_2"] == ("rl", 96)
    assert places["sft1_2"] == ("sft2", 200) and places["sft2"] == ("sft2_alone", 200)
    assert list(arms)[2:] == [
        "sft1",
        "sft2",
        "sft1_2",
        "sft1_2_3",
        "rl1",
        "rl1_2",
        "sft1_2_rl2",
        "rl2",
    ]
    assert {arm.paper for arm in arms.values()} <= {"", *PAPER}
    # Each stage is the prefix of an arm, and stands there once.
    assert {arm.stage for arm in arms.values()} == {*plans}


def test_a_plan_compiles_each_program_of_the_stages_once():
    config = default_config("search_qa")
    config.autocoa.stages.sft3.batch = 2
    programs = {each.title: each for each in programs_of(config)}
    assert [*programs] == [
        "stage base, few, sft2, sft2_alone",
        "stage rl2_alone, rl2",
        "stage sft1",
        "stage sft3",
        "stage rl",
        "playing the arms",
    ]
    rl, alone = programs["stage rl"], programs["stage rl2_alone, rl2"]
    assert (rl.program, rl.config.rl.simulated_steps) == ("rl", 80)
    assert alone.config.rl.simulated_steps == 0
    assert programs["stage sft1"].objective == Trigger(0.2)
    playing = programs["playing the arms"].config.evaluate
    assert longest_response(playing) == playing.max_result_tokens == 256


def test_a_checkpoint_that_an_arm_plays_is_kept():
    config = default_config("search_qa")
    config.train.keep_last = 1
    with pytest.raises(UsageError, match=r"at is 'rl@simulated', and train.keep_last is 1"):
        arms_of_stages(config, plans_of(config))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"at": "sft9"}, "autocoa.arms.x.at is 'sft9'; there are the stages base, "),
        ({"at": "rl@3"}, "autocoa.arms.x.at is 'rl@3'; the stage saves at 0, 80, 96"),
        ({"at": "sft2@simulated"}, "autocoa.arms.x.at is 'sft2@simulated'; the stage saves at 0"),
        ({"at": "rl", "minus": "y"}, "autocoa.arms.x.minus is 'y'; there are "),
        ({"at": "rl", "paper": "RL-9"}, "autocoa.arms.x.paper is 'RL-9'; there are ReAct"),
        ({"at": "rl", "step": 3}, "autocoa.arms.x: unknown field 'step'; there are label"),
    ],
)
def test_an_arm_that_is_not_possible_is_one_line(own, message):
    config = default_config("search_qa")
    config.train.save_every = 100
    with config.unlocked():
        config.autocoa.arms.x = own
    with pytest.raises(UsageError) as caught:
        arms_of_stages(config, plans_of(config))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_field_of_a_stage_is_set_on_the_command_line(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(CONFIG)
    config = load_config(file, ["autocoa.stages.sft2.supervised=ACTION,END"])
    assert [role.name for role in plans_of(config)["sft2"].dropping.supervised] == ["ACTION", "END"]
    with pytest.raises(UsageError, match=r"did you mean 'autocoa.stages.sft2.steps'"):
        load_config(file, ["autocoa.stages.sft2.step=3"])


# ---- the gate


@pytest.fixture(scope="module")
def codec():
    texts = ("Your task is to: who is a b c d e f?", "You can search.", "</think> \\boxed{ }")
    tokenizer = build_word_tokenizer(texts, CHATML, TOKENS)
    return Codec(tokenizer, CHATML, Prompt(growing=SearchPieces()))


def test_closed_book_is_greedy_decoding(codec):
    model = tiny.model_config(vocab_size=64)
    params, mesh = tiny.params(model), tiny.mesh()
    recalls = [
        Recall(f"r{n}", f"who is {word}?", "", word, True, 4) for n, word in enumerate("abc")
    ]
    examples = [recall_example(codec, recall) for recall in recalls]
    for example in examples:
        assert set(example.roles) == {
            *(Role.PROMPT, Role.REASONING, Role.ACTION_OPEN, Role.ANSWER, Role.ACTION_CLOSE)
        }
    none = answered(model, params, mesh, examples, lambda done, total: None)

    @jax.jit
    def likeliest(ids, positions):
        one, zero = jnp.ones_like(ids), jnp.zeros_like(ids)
        hidden = decoder.hidden_states(model, params, ids, positions, one, zero)
        return decoder.logits(model, params, hidden).argmax(-1)

    def greedy(example):
        """The example whose answer and brace are what the model itself says there."""
        ids = example.ids.copy()
        for place in np.flatnonzero(np.isin(example.roles, (Role.ANSWER, Role.ACTION_CLOSE))):
            ids[place] = likeliest(ids[None], example.positions[None])[0, place - 1]
        return type(example)(**vars(example) | {"ids": ids})

    own = [greedy(example) for example in examples[:2]]
    assert answered(model, params, mesh, [*own, examples[2]], lambda *_: None).tolist() == [
        *(True, True),
        bool(none[2]),
    ]
    with pytest.raises(DataError, match="none of 3 facts is unknown"):
        closed_book(model, params, mesh, codec, recalls)


def test_the_gate_prints_and_refuses():
    found = ClosedBook(0.97, 100, 0.02, 100, 0.01)
    found.check(0.95, 0.02, "steps")
    assert list(found.lines()) == [
        "closed book: 97.0% of 100 known facts",
        "closed book: 2.0% of 100 unknown facts; a guess is right for 1.0%",
    ]
    with pytest.raises(DataError, match=r"knows 97.0% of the known facts, and autocoa.least_known"):
        found.check(0.98, 0.02, "steps")
    with pytest.raises(DataError, match=r"answers 2.0% of the questions about unknown facts"):
        found.check(0.95, 0.005, "steps")
