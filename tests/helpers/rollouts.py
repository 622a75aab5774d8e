"""A world of cabinets, a policy that answers by rule, and records of what they play."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from cotjax.envs.base import Game, Observation, Play
from cotjax.errors import EnvError
from cotjax.rollout.elicitation import Elicitation
from cotjax.rollout.loop import play
from cotjax.rollout.record import Episode, Heading, Record

HEADING = Heading(
    world="cabinets", arm="sft", checkpoint=1, checkpoint_hash="c", games_hash="g", domain="ood"
)


def as_record(episode) -> Record:
    """Return the record of an episode that the loop has played."""
    return Record.of(HEADING, episode)


@dataclass
class Generation:
    ids: list
    logprobs: list
    stopped: bool = True

    @property
    def new_tokens(self):
        return len(self.ids)


class Prompts:
    """The prompts of a policy's slots, in `prompts`, a dict by slot."""

    @property
    def lengths(self):
        return np.array([len(self.prompts.get(slot, ())) for slot in range(self.slots)])

    def prompt(self, slot):
        return self.prompts[slot]

    def reset(self, slots):
        for slot in slots:
            self.prompts[slot] = []

    def extend(self, pieces):
        for slot, ids in pieces.items():
            self.prompts[slot] = self.prompts[slot] + list(ids)


@dataclass
class RulePolicy(Prompts):
    """By CoT it opens the next unopened cabinet; by prompt action it always looks.

    `sampled`, `scored`: the arguments of these calls.
    """

    codec: object
    slots: int = 2
    max_length: int = 400
    prompts: dict = field(default_factory=dict)
    sampled: list = field(default_factory=list)
    scored: list = field(default_factory=list)

    def score_branches(self, prefixes, branches):
        """After reasoning the longest action is the most likely by total, else the shortest."""
        self.scored.append((prefixes, branches))
        scored = {}
        for slot, several in branches.items():
            reasoned = "plate" in self.codec.decode(prefixes[slot])
            scored[slot] = [
                [(-1.0 if reasoned else -(2.0 ** len(ids))) / len(ids) ** 2] * len(ids)
                for ids in several
            ]
        return scored

    def sample(self, prefixes, *, max_new, seeds, temperature, back=0, **how):
        self.sampled.append((prefixes, max_new, seeds, back))
        answers = {}
        for slot, prefix in prefixes.items():
            opened = self.codec.decode(self.prompts[slot]).count("<action> open")
            text = (
                "look </action>"
                if prefix
                else f"<think> i need a plate. </think><action> open cabinet {opened + 1} </action>"
            )
            if back:
                text = "<action> look </action>"
            ids = self.codec.encode(text)
            answers[slot] = Generation(ids, [-0.5] * len(ids))
        return answers


class Cabinets:
    """Won when cabinet `id` (its number) is opened; game 'g9' breaks at its second step."""

    def __init__(self):
        self.games, self.sent = {}, []

    def reset(self, games):
        self.games |= {slot: (game, 0) for slot, game in games.items()}
        first = Observation(
            "You see a cabinet 1, a cabinet 2, and a fridge 1.",
            ("open cabinet 1", "look"),
            False,
            False,
        )
        return {slot: ("put a plate in fridge", first) for slot in games}

    def step(self, actions):
        answers = {}
        for slot, action in actions.items():
            game, steps = self.games[slot]
            self.games[slot] = (game, steps + 1)
            self.sent.append((game.id, action))
            if game.id == "g9" and steps == 1:
                answers[slot] = EnvError("g9, step 2: the engine is gone")
                continue
            won, opens = action == f"open cabinet {game.id[1:]}", action.startswith("open")
            text = "You open the cabinet 1." if opens else "Nothing happens."
            answers[slot] = Observation(text, ("look",), won, won, accepted=opens)
        return answers

    def faults(self, slot):
        return ["the engine is gone"] if self.games[slot][0].id == "g9" else []


def games(*numbers) -> list[Game]:
    """Return the games of these numbers."""
    return [Game(f"g{number}", "", "valid_unseen", "pick_and_place_simple") for number in numbers]


def play_games(
    codec, games, driver="cot", *, policy=None, environments=None, max_steps=6, **kwargs
) -> list[Episode]:
    """Play the games and return their episodes, in the order in which they ended.

    `games`: plays, or games, of which one that comes again is its next sample.
    `kwargs`: further arguments of `play`, and the fields of Elicitation.
    """
    episodes, seen = [], Counter()
    plays = []
    for each in games:
        plays.append(each if isinstance(each, Play) else Play(each, seen[each.id]))
        seen[plays[-1].game.id] += 1
    fields = Elicitation.__dataclass_fields__.keys() & kwargs.keys()
    elicitation = Elicitation(max_steps=max_steps, **{name: kwargs.pop(name) for name in fields})
    play(
        plays,
        policy=policy or RulePolicy(codec),
        codec=codec,
        environments=environments or Cabinets(),
        driver=driver,
        elicitation=elicitation,
        seed=kwargs.pop("seed", 0),
        on_record=lambda play, episode: episodes.append(episode),
        **kwargs,
    )
    return episodes
