"""Drills for a base model from random weights: looking things up in a list, many times a row, in the worlds' own words.

A pretrained language model comes with heads that find an earlier mention and read what stands beside it. A million parameters
trained on play alone hardly grow them: play asks for such a look-up once or twice an episode. Each step of a drill shows a list of
things at a place, and its thought recounts them in another order before it says whether the wanted class is among them. Nothing of
a game's goal, rooms or course is in them: places and things are drawn at random.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from cotjax.data.trajectories import SCRIPTED_BEFORE, Step, Trajectory

DRILL = "drill"  # their task type, environment and agent
STEPS = (3, 6)  # of one drill
THINGS = (2, 9)  # in one list
HIGHEST = 6  # number of a thing or place
WANTED_RATE = 0.5  # of the lists that hold the wanted class


def drills(count: int, seed: int, *, things: Sequence[str], places: Sequence[str]) -> Iterator[Trajectory]:
    """Yield `count` drills over these class names. The same arguments give the same drills."""
    things, places = sorted(things), sorted(places)
    for number in range(count):
        yield _drill(number, random.Random(f"drill/{seed}/{number}"), seed, things, places)


def _drill(number: int, rng: random.Random, seed: int, things: Sequence[str], places: Sequence[str]) -> Trajectory:
    wanted, goal = rng.choice(things), rng.choice(places)
    room = _numbered(rng, places, rng.randint(4, 10))
    steps = [
        Step(
            f"You are in the middle of a room. Looking quickly around you, you see {_listed(room)}.",
            f"i need {_article(wanted)} in the {goal}. i have checked nothing yet, so next i go to {(place := rng.choice(room))}.",
            f"go to {place}",
            SCRIPTED_BEFORE,
        )
    ]
    for _ in range(rng.randint(*STEPS)):
        shown = _numbered(rng, [thing for thing in things if thing != wanted], rng.randint(*THINGS))
        if rng.random() < WANTED_RATE:
            shown.insert(rng.randrange(len(shown) + 1), f"{wanted} {rng.randint(1, HIGHEST)}")
        observation = f"You arrive at {place}. On the {place}, you see {_listed(shown)}."
        recounted = rng.sample(shown, min(len(shown), rng.randint(1, 6)))
        found = next((thing for thing in shown if thing.startswith(f"{wanted} ")), None)
        told = f"i need {_article(wanted)} in the {goal}. i see {', '.join(recounted)} at {place}. "
        if found:
            thought = told + rng.choice((f"{found} is at {place}", f"i see {found} at {place}", f"there is {found} at {place}"))
            action = f"take {found} from {place}"
            thought += f", so next i {action}."
        else:
            thought = told + rng.choice((f"no {wanted} at {place}", f"i see no {wanted} at {place}", f"there is no {wanted} at {place}"))
            action = f"go to {rng.choice(room)}"
            thought += f", so next i {action}."
        steps.append(Step(observation, thought, action, SCRIPTED_BEFORE))
        place = rng.choice(room)
    return Trajectory(
        id=f"drill/{seed}/{number}",
        environment=DRILL,
        split="train",
        task=f"put a {wanted} in {goal}",
        task_type=DRILL,
        game=f"drill/{seed}/{number}",
        steps=tuple(steps),
        success=True,
        reward=0.0,
        seed=seed,
        agent=DRILL,
    )


def _numbered(rng: random.Random, kinds: Sequence[str], count: int) -> list[str]:
    return [f"{kind} {rng.randint(1, HIGHEST)}" for kind in rng.sample(list(kinds), count)]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"a {name}" for name in names[:-1]) + f", and a {names[-1]}" if len(names) > 1 else f"a {names[0]}"


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
