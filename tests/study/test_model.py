"""`cotjax evaluate --model`: any model is played without a run."""

import json
import shutil
import sys

import pytest
from helpers import tiny

from cotjax.cli.main import main
from cotjax.data.word_tokenizer import build_word_tokenizer, save_tokenizer
from cotjax.rollout.record import read_records
from cotjax.weights.convert import save_orbax
from cotjax.weights.huggingface import save_hf

WORLD = '''
"""Three doors, of which the task names one. The split "hard" names it after a step."""
from functools import partial

from cotjax.envs.base import Decision, Game, Observation
from cotjax.envs.worlds import IN_DOMAIN, OOD, World

COMMANDS = ("open door 1", "open door 2", "open door 3")


class Doors:
    def __init__(self, max_steps):
        self.max_steps = max_steps

    def reset(self, game):
        self.target, self.steps = game.id[-1], 0
        return f"open door {self.target}", Observation("You see doors.", COMMANDS, False, False)

    def step(self, action):
        self.steps += 1
        won = action == f"open door {self.target}"
        done = won or self.steps >= self.max_steps
        return Observation("You see doors.", COMMANDS, won, done, action in COMMANDS)

    def close(self):
        pass


class Expert:
    def start(self, task, observation):
        self.task = task

    def act(self, observation):
        return Decision(thought="the task says so.", action=self.task)


class DoorWorld(World):
    name = "doors"
    domains = {"left": IN_DOMAIN, "right": OOD}
    splits = ("train", "test", "hard")
    agents = ("expert",)

    def games(self, root, split, left_out=None):
        doors = (1, 2, 3) if split == "test" else (2, 3)
        return [Game(f"{split}-{n}", "", split, "left" if n < 3 else "right") for n in doors]

    def make_env(self, max_steps, games_kept=None):
        return partial(Doors, max_steps)

    def agent(self, name, seed, settings):
        return Expert()


class Unexplained(DoorWorld):
    agents = ()


class ManyDomains(DoorWorld):
    domains = {"left": IN_DOMAIN, "right": "ood_right", "third": "lost_keys"}

    def games(self, root, split, left_out=None):
        types = ("left", "right", "third", "third")
        return [Game(f"{split}-{n}", "", split, kind) for n, kind in enumerate(types, start=1)]


DOORS, UNEXPLAINED, MANY = DoorWorld(), Unexplained(), ManyDomains()
'''
DOORS = ("open door 1", "open door 2", "open door 3")
TEXTS = ("Your task is to: open door 1.", "door 2 3 You see doors.", "the task says so.")
QUICK = [
    "--config.evaluate.max_steps=2",
    "--config.evaluate.max_new_tokens=8",
    "--config.evaluate.max_action_tokens=6",
    "--config.workers=0",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of the world's module and of `model`, a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("doors")
    (folder / "door_world.py").write_text(WORLD)
    config = tiny.model_config(vocab_size=64)
    save_hf(folder / "model", config, tiny.params(config))
    save_tokenizer(build_word_tokenizer(TEXTS), folder / "model")
    save_orbax(folder / "orbax", config, tiny.params(config))
    shutil.copyfile(folder / "model" / "tokenizer.json", folder / "orbax" / "tokenizer.json")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def played(folder):
    """A finished evaluation of the model."""
    assert evaluate(folder, folder / "run") == 0
    return folder / "run"


def evaluate(folder, out, *more, model="model", world="door_world:DOORS", split="test"):
    arguments = ["--model", str(folder / model), "--world", world, "--split", split]
    return main(["evaluate", *arguments, "--out", str(out), *QUICK, *more])


def written(run):
    return {path: path.stat().st_mtime_ns for path in (run / "records").rglob("*.json")}


def test_records_and_the_report_are_those_of_a_base(played, capsys):
    records = list(read_records(played / "records"))
    assert {(record.arm, record.checkpoint, record.world) for record in records} == {
        ("base", 0, "doors")
    }
    assert sorted({record.driver for record in records}) == ["cot", "prompt", "reference"]
    assert len(records) == 3 * 3
    assert {record.game.id for record in records if record.domain == "ood"} == {"test-3"}
    summary = json.loads((played / "summary.json").read_text())
    assert list(summary["arms"]) == ["base"] and summary["checkpoints"] == [0]
    run = json.loads((played / "run.json").read_text())
    assert run["data"]["held_out_trajectories"] == 3 and run["arms"] == {}
    assert run["made_from"]["base"]["file"].endswith("model") and run["train"] == {}
    assert "d1_cot" in (played / "summary.json").read_text()
    assert (played / "report.html").stat().st_size > 10_000


def test_every_ood_domain_is_reported_by_its_name_with_an_interval(folder, tmp_path, capsys):
    flags = ["--kinds", "prompt", "--config.evaluate.max_length=256"]
    assert evaluate(folder, tmp_path, *flags, world="door_world:MANY") == 0
    said = capsys.readouterr().out
    assert "out-of-domain (right)" in said and "out-of-domain (lost keys)" in said
    points = json.loads((tmp_path / "summary.json").read_text())["points"]
    intervals = {point["domain"]: point["metrics"]["d3_prompt"] for point in points}
    assert intervals.keys() == {"in_domain", "ood_right", "lost_keys"}
    assert all(found["games"] and None not in found.values() for found in intervals.values())


def test_the_same_command_plays_only_what_is_missing(folder, played, tmp_path):
    run = shutil.copytree(played, tmp_path / "run")
    before = written(run)
    lost = next(path for path in before if "prompt" in path.parts)
    text = lost.read_text()
    lost.unlink()
    assert evaluate(folder, run) == 0
    after = written(run)
    assert {path: after[path] for path in before if path != lost} == {
        path: before[path] for path in before if path != lost
    }
    new, old = json.loads(lost.read_text()), json.loads(text)
    assert new.pop("timing") and old.pop("timing") and new == old


@pytest.mark.slow
def test_an_orbax_folder_plays_the_same(folder, played, tmp_path):
    assert evaluate(folder, tmp_path, model="orbax") == 0
    for record in read_records(played / "records"):
        path = next(tmp_path.rglob(f"records/**/{record.driver}/{record.game.id}*.json"))
        assert [turn["executed"] for turn in json.loads(path.read_text())["steps"]] == [
            turn.executed for turn in record.steps
        ]


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_a_real_instruct_model_plays_by_its_own_template(folder, smollm2, tmp_path):
    """SmolLM2 is prompted as its user says, and acts by each kind of action."""
    flags = [
        *("--kinds", "cot,prompt,prompt_constrained", "--config.evaluate.slots=1"),
        *("--config.games.in_domain=1", "--config.games.ood=0", "--config.evaluate.max_length=256"),
        *("--config.prompt.system=template", "--config.prompt.instruction=world"),
        "--config.prompt.admissible=all",
    ]
    assert evaluate(folder, tmp_path / "run", *flags, model=smollm2.folder) == 0
    records = list(read_records(tmp_path / "run" / "records"))
    assert sorted(record.driver for record in records) == [
        *("cot", "prompt", "prompt_constrained", "reference")
    ]
    chosen = [record for record in records if record.driver == "prompt_constrained"]
    assert {turn.executed for record in chosen for turn in record.steps} <= {*DOORS}
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["model"]["parameters"] == 134_515_008
    prompt = run["prompt"]["text"]
    assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert "Admissible actions: open door 1, open door 2, open door 3." in prompt


def test_a_config_file_gives_the_settings_and_no_expert_is_needed(folder, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from cotjax.config import default_config\n\n\ndef get_config():\n"
        "    config = default_config('door_world:UNEXPLAINED')\n"
        "    config.games.eval_split, config.games.in_domain, config.games.ood = 'hard', 1, 0\n"
        "    config.evaluate.max_length = 256\n    config.evaluate.temperature = 0.5\n"
        "    return config\n"
    )
    out = tmp_path / "run"
    arguments = ["--model", str(folder / "model"), "--config", str(file), "--out", str(out)]
    assert main(["evaluate", *arguments, "--kinds", "prompt", *QUICK]) == 0
    records = list(read_records(out / "records"))
    assert {record.game.id for record in records} == {"hard-2"}
    assert {record.elicitation["temperature"] for record in records} == {0.5}
    assert [record.driver for record in records] == ["prompt"]
    assert (out / "report.html").exists()


# What differs from the run in the folder, the arguments, and what the message says.
OTHERS = {
    "a setting": (["--config.evaluate.max_steps=3"], "evaluate.max_steps is 2 there, 3 here"),
    "a split": (["--split", "hard"], "games.eval_split is 'test' there, 'hard' here"),
    "fewer games": (["--config.games.in_domain=1"], "games.in_domain is 2 there, 1 here"),
    "a seed": (["--config.seed=5"], "seed is 0 there, 5 here"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_with_another_run_is_refused(name, folder, played, capsys):
    more, message = OTHERS[name]
    before = written(played)
    assert evaluate(folder, played, *more) == 2
    said = capsys.readouterr().err
    assert message in said and "choose another folder with --out" in said
    assert written(played) == before


def test_other_content_is_refused(folder, played, tmp_path, capsys):
    run, model = shutil.copytree(played, tmp_path / "run"), folder / "changed"
    shutil.copytree(folder / "model", model)
    config = tiny.model_config(vocab_size=64)
    shutil.rmtree(model)
    save_hf(model, config, tiny.params(tiny.model_config(vocab_size=64, rope_theta=9e3)))
    shutil.copyfile(folder / "model" / "tokenizer.json", model / "tokenizer.json")
    # The path may change, the content may not.
    file = run / "config.json"
    file.write_text(file.read_text().replace(str(folder / "model"), str(model)))
    tensors = model / "model.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-4] ^= 1
    tensors.write_bytes(content)
    assert evaluate(folder, run, model="changed") == 2
    assert "the base model: the content of" in capsys.readouterr().err


def test_a_run_that_trains_is_another(folder, played, tmp_path, capsys):
    run = shutil.copytree(played, tmp_path / "run")
    file = run / "config.json"
    config = json.loads(file.read_text())
    config["arms"] = {"sft": {"label": "standard SFT", "fraction": 0.0}}
    file.write_text(json.dumps(config))
    assert evaluate(folder, run) == 2
    assert "holds a run that trains arms" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--world", "alfworld"], "--world needs --model FOLDER"),
        (["--kinds", "cot"], "--kinds needs --model FOLDER"),
        (["--model", "{folder}", "--world", "door_world:DOORS"], "holds neither config.json"),
        (
            ["--model", "{folder}/model", "--world", "door_world:DOORS", "--split", "tset"],
            "world 'doors' has no split 'tset'; there are train, test, hard",
        ),
        (["--model", "{folder}/model", "--world", "dors"], "unknown world 'dors'"),
        (
            [
                *("--model", "{folder}/model", "--world", "door_world:DOORS", "--split", "test"),
                *("--kinds", "cot,guess"),
            ],
            "evaluate.elicitations: unknown kind 'guess'",
        ),
        (
            [
                *("--model", "{folder}/model", "--world", "door_world:DOORS", "--split", "test"),
                "--config.evaluate.max_length=4096",
            ],
            "evaluate.max_length",
        ),
    ],
)
def test_clear_errors(arguments, message, folder, tmp_path, capsys):
    arguments = [argument.format(folder=folder) for argument in arguments]
    assert main(["evaluate", *arguments, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
