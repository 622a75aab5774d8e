"""Measures D1, D2, D4, D6 and D7 at the expert's states (`cotjax.diagnostics.aligned`)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cotjax.data.codec import Codec
from cotjax.data.growing_text import text_segments
from cotjax.data.grown import piece_roles
from cotjax.diagnostics.aligned import (
    ATTENTION,
    GRADIENT,
    UNIFORM,
    Aligned,
    Share,
    Side,
    read_aligned,
    write_aligned,
)
from cotjax.envs.base import Game
from cotjax.envs.lessons import Lesson
from cotjax.envs.worlds import World
from cotjax.formats import search
from cotjax.masking import Role
from cotjax.probes import groups
from cotjax.probes.asking import Answer, Programs, Row
from cotjax.probes.groups import Tokens
from cotjax.probes.responses import by_group
from cotjax.rollout.contracts import Policy
from cotjax.rollout.elicitation import Elicitation
from cotjax.rollout.episode import response_seed
from cotjax.rollout.growing import ANSWER_NOW, read_piece
from cotjax.rollout.record import Response

_OPENERS = (search.SEARCH_OPEN, ANSWER_NOW)
_COT = "cot"
_GROUPS = {
    Role.REASONING: groups.REASONING,
    Role.ACTION_OPEN: groups.TAGS,
    Role.ACTION_CLOSE: groups.TAGS,
    Role.END: groups.TAGS,
}


@dataclass(frozen=True)
class ExpertState:
    """What stands before a piece of the expert's text, and its action.

    text: of the growing text so far. seen, acted: what was shown before each action, this state's
    included, and the actions before it.
    """

    game: Game
    number: int
    task: str
    text: str
    seen: tuple[str, ...]
    acted: tuple[str, ...]
    reference: str
    searches: bool


def expert_states(
    codec: Codec, lessons: Sequence[Lesson], games: Mapping[str, Game], most: int, seed: int
) -> list[ExpertState]:
    """Return at most so many states, half before a search and half before an answer.

    lessons: the expert's, named by their games. games: id -> game.
    """
    order = sorted(lessons, key=lambda lesson: lesson.id)
    random.Random(f"expert states {seed}").shuffle(order)
    sides: dict[bool, list[ExpertState]] = {True: [], False: []}
    for lesson in order:
        for state in _states_of(codec, lesson, games[lesson.id]):
            sides[state.searches].append(state)
    each = min(most // 2, *map(len, sides.values()))
    return [state for own in sides.values() for state in own[:each]]


def _states_of(codec: Codec, lesson: Lesson, game: Game) -> list[ExpertState]:
    assert codec.growing is not None, "the prompt is of turns"
    found: list[ExpertState] = []
    seen, acted, at = [lesson.observation], list[str](), 0
    for piece, results in search.pieces(lesson.text):
        action = codec.growing.action_of(piece)
        place = lesson.text[:at], tuple(seen), tuple(acted)
        searches = piece.query is not None
        found.append(ExpertState(game, len(acted), lesson.task, *place, action, searches))
        if not searches:
            break
        at = lesson.text.index(results, at) + len(results)
        seen.append(results.strip())
        acted.append(action)
    return found


def state_tokens(codec: Codec, state: ExpertState) -> Tokens:
    """Return a state's tokens, with their groups: those that training has there."""
    first = codec.first_turn(state.task, state.seen[0], lenient=True)
    segments = text_segments(codec, state.text)
    # Behind the opening: the task, what the environment says, and what opens the response.
    said = groups.HISTORY if segments else groups.OBSERVATION
    named = [groups.SCAFFOLD, groups.TASK, said]
    named += [groups.SCAFFOLD] * (len(first) - len(named))
    # The text ends with the latest results.
    latest = max((at + 1 for at, x in enumerate(segments) if x[1] != Role.OBSERVATION), default=0)
    named += [_GROUPS.get(role, groups.HISTORY) for _, role in segments[:latest]]
    named += [groups.OBSERVATION] * (len(segments) - latest)
    ids, of_ids = list[int](), list[int]()
    for (own, _), group in zip([*first, *segments], named, strict=True):
        ids += own
        of_ids += [group] * len(own)
    return Tokens(ids, of_ids)


@dataclass(frozen=True)
class Measuring:
    """Measures one checkpoint. programs: with its weights. elicitation: how actions are drawn."""

    policy: Policy
    programs: Programs
    codec: Codec
    elicitation: Elicitation
    world: World

    def aligned(self, states: Sequence[ExpertState]) -> list[Aligned]:
        """Return what was measured in as many states as the policy has slots, or fewer."""
        responses = self._responses(states)
        rows = [
            [] if row is None else [Row(_COT, row)]
            for row in (
                self._row(*each) for each in zip(states, (cot for cot, _ in responses), strict=True)
            )
        ]
        answers = dict(self.programs.ask(rows))
        return [
            self._aligned(state, *responses[number], answers[number].get(_COT))
            for number, state in enumerate(states)
        ]

    def _responses(self, states: Sequence[ExpertState]) -> list[tuple[Response, Response]]:
        """Return (CoT response, prompt response) of each state."""
        policy, codec = self.policy, self.codec
        slots = range(len(states))
        policy.reset(range(policy.slots))
        policy.extend({slot: state_tokens(codec, states[slot]).ids for slot in slots})
        opened = [codec.prefill(opener) for opener in _OPENERS]
        # The tags alone: what follows `</think>` follows in either case.
        marks = [codec.encode(search.SEARCH_OPEN), codec.encode(search.THINK_CLOSE)]
        scores = policy.score_branches(dict.fromkeys(slots, ()), dict.fromkeys(slots, marks))
        likelier = [int(np.argmax([np.mean(own) for own in scores[slot]])) for slot in slots]
        found = []
        for kind, prefixes in (
            ("cot", dict.fromkeys(slots, ())),
            ("prompt", {slot: opened[likelier[slot]] for slot in slots}),
        ):
            seeds = {
                s: response_seed(0, states[s].game.id, 0, kind, states[s].number) for s in slots
            }
            made = policy.sample(
                prefixes,
                max_new=self.elicitation.max_new_tokens,
                seeds=seeds,
                **self.elicitation.how("cot"),
            )
            before = [_OPENERS[at] if kind == "prompt" else "" for at in likelier]
            found.append(
                [
                    read_piece(made[slot], codec, prefix=before[slot], seed=seeds[slot])[0]
                    for slot in slots
                ]
            )
        policy.reset(range(policy.slots))
        return list(zip(*found, strict=True))

    def _row(self, state: ExpertState, cot: Response) -> Tokens | None:
        """Return the state with a CoT response up to its action's last token; None without one."""
        if not cot.valid:
            return None
        before = state_tokens(self.codec, state)
        roles = [Role(int(role)) for role in piece_roles(self.codec, cot.ids)]
        own = [_GROUPS.get(role, groups.ACTION) for role in roles]
        if groups.ACTION not in own:
            return None
        end = len(own) - own[::-1].index(groups.ACTION)
        row = before + Tokens(list(cot.ids[:end]), own[:end])
        return row if len(row.ids) <= self.policy.max_length else None

    def _aligned(
        self, state: ExpertState, cot: Response, prompt: Response, answer: Answer | None
    ) -> Aligned:
        ours, theirs = (self._side(state, each.action or "") for each in (cot, prompt))
        meanings = {self.world.meaning(each.action) for each in (ours, theirs)}
        shares: dict[str, Share] = {}
        if answer is not None:
            assert answer.gradient is not None
            shares = {
                ATTENTION: by_group(answer.attention.sum(axis=0)),
                GRADIENT: by_group(answer.gradient.sum(axis=0)),
                UNIFORM: by_group(answer.uniform),
            }
        return Aligned(
            state.game.id,
            state.number,
            state.searches,
            state.reference,
            ours,
            theirs,
            agree=len(meanings) == 1 and bool(ours.action),
            shares=shares,
        )

    def _side(self, state: ExpertState, action: str) -> Side:
        if not action:
            return Side("", same=False, kind=False, good=False)

        def counts(seen: Sequence[str], acted: Sequence[str]):
            found = self.world.judge_searches(state.game, state.task, seen, acted)
            assert found is not None, f"world {self.world.name!r} has searches"
            return found

        before = counts(state.seen[:-1], state.acted)
        after = counts(state.seen, (*state.acted, action))
        return Side(
            action,
            same=self.world.meaning(action) == self.world.meaning(state.reference),
            kind=(after.searches > before.searches) == state.searches and not after.refused,
            good=bool(after.exact) or after.needed > before.needed,
        )


def measure_states(
    path: Path,
    checkpoint: str,
    measuring: Callable[[], Measuring],
    states: Sequence[ExpertState],
    report: Callable[[int, int], None],
) -> None:
    """Write what a checkpoint does in each state, unless it is there.

    Args:
      checkpoint: its hash.
      measuring: loads its weights.
    """
    if read_aligned(path)[0] == checkpoint:
        return
    own, found = measuring(), list[Aligned]()
    for start in range(0, len(states), own.policy.slots):
        found += own.aligned(states[start : start + own.policy.slots])
        report(len(found), len(states))
    write_aligned(path, checkpoint, found)
