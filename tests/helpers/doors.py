"""A world of two doors for reinforcement learning, an untrained policy, and a run of both.

An episode has two steps. An action that names the open door wins; the observation says which one it
is. A game whose id has "broken" in it fails at its first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
from ml_collections import ConfigDict

from cotjax.config import default_config
from cotjax.data.codec import Codec
from cotjax.data.word_tokenizer import build_word_tokenizer, save_tokenizer
from cotjax.envs.base import Game, Observation
from cotjax.envs.pool.pool import EnvPool
from cotjax.envs.worlds import IN_DOMAIN, World
from cotjax.errors import EnvError
from cotjax.formats import CHATML
from cotjax.masking import Dropping
from cotjax.model import lora
from cotjax.model.config import LoRA, ModelConfig
from cotjax.model.params import init_params
from cotjax.rl.main import reinforce
from cotjax.rl.play import Actors
from cotjax.rl.run import RLRun, policy_of
from cotjax.rollout.elicitation import Elicitation
from cotjax.sample.sampler import Sampler
from cotjax.train.metrics import read_metrics
from cotjax.weights.huggingface import save_hf
from helpers import tiny
from helpers.training import ONE, Hears

WORDS = ("Your task is to: go in.", "The red door is open. The blue door is open. It is shut.")
MODEL = tiny.model_config(vocab_size=64, layers=1, tied_embeddings=True, qk_norm=False)
LORA_MODEL = replace(MODEL, lora=LoRA(2, 4.0, r".*\.(q|v|up)_proj"))
# The response begins inside the action, so that an untrained policy is valid now and then.
ELICITATION = Elicitation(
    temperature=1.0,
    max_new_tokens=6,
    max_action_tokens=4,
    max_steps=2,
    cot_prefix="<action>",
    greedy=("prompt",),
)

CONFIG = '''
"""cotjax rl on two doors."""
from cotjax.config import default_config


def get_config():
    config = default_config("helpers.doors:WORLD")
    config.workers = 0
    config.games.in_domain, config.games.ood = 4, 0
    config.rl.tasks, config.rl.group, config.rl.slots, config.rl.need_thought = 2, 3, 6, False
    config.train.steps, config.train.save_every, config.train.batch = 2, 1, 2
    config.train.row_length = config.data.max_length = config.evaluate.max_length = 128
    config.train.warmup = 0
    config.train.information_examples = 0
    config.evaluate.max_steps, config.evaluate.slots = 2, 4
    config.evaluate.max_new_tokens, config.evaluate.max_action_tokens = 6, 4
    config.evaluate.cot_prefix = "<action>"
    config.arms = {"grpo": {"label": "GRPO", "fraction": 0.3, "advantage": "rloo"}}
    return config
'''


class Door:
    """One door is open; the action that names it wins."""

    def reset(self, game: Game) -> tuple[str, Observation]:
        self.game, self.steps, self.open = game, 0, game.task_type
        return "go in", self._see(f"The {self.open} door is open.", False)

    def step(self, action: str) -> Observation:
        self.steps += 1
        if "broken" in self.game.id:
            raise EnvError(f"{self.game.id}, step {self.steps}: the door fell off")
        won = self.open in action.split()
        return self._see("It is open." if won else "It is shut.", won)

    def _see(self, text: str, won: bool) -> Observation:
        return Observation(text, None, won, won or self.steps >= 2, accepted=won, score=float(won))

    def close(self) -> None:
        pass


class Doors(World):
    name = "doors"
    domains = MappingProxyType({"red": IN_DOMAIN, "blue": IN_DOMAIN})
    splits = ("train", "test")
    lists_commands = False

    def games(self, root, split, left_out=None):
        return [game(f"{split}-{n}-{kind}", split) for n in range(2) for kind in self.domains]

    def make_env(self, max_steps, games_kept=None):
        return Door


WORLD = Doors()


def game(name: str, split: str = "train") -> Game:
    """Return a game; the last word of its name is the open door."""
    return Game(name, "", split, name.rpartition("-")[2])


@cache
def codec() -> Codec:
    """Return the codec of the world's words."""
    return Codec(build_word_tokenizer(WORDS), CHATML)


def base_folder(folder: Path) -> Path:
    """Write the untrained policy as a Hugging Face folder."""
    save_hf(folder, MODEL, init_params(MODEL, jax.random.key(0)))
    save_tokenizer(build_word_tokenizer(WORDS), folder)
    return folder


def arguments(folder: Path) -> list[str]:
    """Return those of `cotjax rl` for a run in `folder`, after the command's name."""
    (folder / "doors.py").write_text(CONFIG)
    base = base_folder(folder / "base")
    return [
        *("--config", str(folder / "doors.py"), "--out", str(folder / "run")),
        f"--config.model.base={base}",
    ]


def settings(**changes: Any) -> ConfigDict:
    """Return `config.rl` for steps of 2 groups of 3 plays."""
    values = default_config().rl
    values.update({"tasks": 2, "group": 3, "slots": 6, "need_thought": False, "refills": 1})
    values.information = 0  # one program less to compile
    values.update(changes)
    return values


@contextmanager
def acting(
    slots: int = 6,
    model: ModelConfig = MODEL,
    elicitation: Elicitation = ELICITATION,
    mesh: jax.sharding.Mesh | None = None,
) -> Iterator[Actors]:
    """Yield what plays the world, in this process, on a mesh (None: of one device)."""
    sampler = Sampler(
        model,
        mesh or tiny.mesh(),
        slots=slots,
        max_length=96,
        stop=codec().stop_texts,
        pad_id=codec().pad_id,
        max_new=elicitation.max_new_tokens,
        pieces=codec().pieces,
    )
    with EnvPool(Door, slots, 0) as pool:
        yield Actors(sampler, [pool], codec(), elicitation, ("cot", "prompt"))


def make_params(model: ModelConfig, mesh: jax.sharding.Mesh) -> Any:
    """Return the untrained policy, with adapters if the model has them."""
    params = init_params(MODEL, jax.random.key(0), mesh)
    if model.lora is None:
        return params
    return lora.add(MODEL, params, model.lora, jax.random.key(1), mesh)[1]


def rl_run(
    train: dict[str, Any] | None = None,
    dropping: Dropping | None = None,
    model: ModelConfig = MODEL,
    **changes: Any,
) -> RLRun:
    """Return a run of 3 steps. `train`: fields of config.train; `changes`: of config.rl."""
    values = default_config().train
    values.update({"steps": 3, "save_every": 2, "batch": 2, "row_length": 128})
    values.update({"warmup": 0, "schedule": "constant", "learning_rate": 3e-3})
    values.update(train or {})
    rl = settings(**changes)
    return RLRun(
        values,
        dropping=dropping or Dropping.of(),
        model=model,
        make_params=partial(make_params, model),
        seed=3,
        objective=policy_of(rl),
        rl=rl,
    )


# What follows a target from step to step, in steps that are played by earlier weights.
ADAPTED = {"kl_target": 1e-3, "kl_rate": 0.5, "entropy_target": 5.0, "entropy_step": 0.05}


def stale_run(steps: int = 3, **changes: Any) -> RLRun:
    """Return a run off policy whose weights move far. `changes`: of config.rl."""
    stale = {"off_policy_steps": 1, "old": "trainer", "flat": "keep", "kl": 0.1}
    train = {"steps": steps, "learning_rate": 0.03}
    return rl_run(train, **stale | ADAPTED | changes)


def run(folder: Path, what: RLRun, actors: Actors, **more: Any) -> Path:
    """Train in `folder`; `more` are arguments of `reinforce` and methods of a listener."""
    heard = {name: more.pop(name) for name in ("report", "say", "warn") if name in more}
    return reinforce(
        what,
        folder=folder,
        games=WORLD.games("", "train"),
        actors=actors,
        mesh_shape=ONE,
        listener=Hears(**heard),
        **more,
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run without their times."""
    found = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "time"} for row in found]
