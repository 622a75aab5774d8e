r"""Prompt action and CoT action of one growing text: the answer at once, and the one after it all.

The prompt action of a question is its answer right behind the prompt, `</think> \boxed{…}`; the CoT
action is the answer that the episode ends with, behind reasoning and searches. Where all facts are
known, one hop away, prompts are short and nothing has to be searched for: the control of D2.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from cotjax.diagnostics.searches import Judged, difference, figures
from cotjax.diagnostics.statistics import NOTHING, Estimate, rate
from cotjax.envs.base import Game
from cotjax.envs.worlds import World


@dataclass(frozen=True)
class AtOnce:
    """An episode with the answer that the same checkpoint gives at once.

    prompt, cot: judged.
    same: whether both are one answer; False where one of them is none.
    """

    prompt: Judged
    cot: Judged
    same: bool

    @property
    def known(self) -> bool:
        """Whether no fact of the question has to be searched for."""
        return self.cot.counts.oracle == 0


def at_once(
    episodes: Sequence[Judged], world: World, games: Mapping[tuple[str, str], Game]
) -> list[AtOnce]:
    """Return the CoT-driven episodes in whose first state a prompt action was decoded."""
    found = []
    for episode in episodes:
        record = episode.record
        first = record.steps[0] if record.steps else None
        if record.driver != "cot" or first is None or first.prompt is None:
            continue
        action, game = first.prompt.action or "", games[record.game.split, record.game.id]
        counts = world.judge_searches(game, record.task, [first.observation], [action])
        assert counts is not None, f"world {world.name!r} judged its episodes before"
        alone = record.model_copy(update={"driver": "prompt", "steps": record.steps[:1]})
        last = record.steps[-1].executed
        same = bool(action) and _meaning(world, action) == _meaning(world, last)
        found.append(AtOnce(Judged(alone, counts), episode, same))
    return found


def compared(episodes: Sequence[AtOnce]) -> dict[str, Estimate]:
    """Return right answers of both (`prompt`, `cot`), their `gap`, and the share that is `same`."""
    prompts, cots = [each.prompt for each in episodes], [each.cot for each in episodes]
    if not episodes:
        return dict.fromkeys(("prompt", "cot", "gap", "same"), NOTHING)
    by_game: dict[str, list[bool]] = {}
    for each in episodes:
        by_game.setdefault(each.cot.record.game.id, []).append(each.same)
    return {
        "prompt": figures(prompts)["exact"],
        "cot": figures(cots)["exact"],
        "gap": difference(cots, prompts, "exact"),
        "same": rate([sum(own) for own in by_game.values()], [len(x) for x in by_game.values()]),
    }


def _meaning(world: World, action: str) -> Hashable:
    return world.meaning(action)
