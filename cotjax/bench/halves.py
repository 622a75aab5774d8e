"""`cotjax bench rollout --halves`: one batch of slots compared with two halves in turn.

One kind of action is decoded, so nothing but the other half hides the environments' time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from rich.console import Console

from cotjax.bench.comparison import check_agreement, print_table, say
from cotjax.bench.sides import Side

# The rollouts of one batch, as `our_rollouts` names them -> the kind of action.
_ALONE = {"alone": "cot", "prompt": "prompt"}
HALVES = ", halves"


def halves_figures(ours: Side) -> dict[str, float]:
    """Return what one batch and two halves take, by the kind of action that is decoded.

    For "cot" and "prompt": "<kind>_batch/min" and "<kind>_halves/min", episodes a minute;
    "<kind>_batch_hidden" and "<kind>_halves_hidden", the share of environment time in which
    something was decoded; "<kind>_waited", the share of the batch's rollout in which nothing was;
    "<kind>_ratio", how many times as fast the halves are (the median round's), with
    "<kind>_ratio_low" and "<kind>_ratio_high".
    """
    row: dict[str, float] = {}
    for name, kind in _ALONE.items():
        batch = [each[name] for each in ours.rounds]
        halves = [each[name + HALVES] for each in ours.rounds]
        for side, rounds in (("batch", batch), ("halves", halves)):
            seconds = median(each["seconds"] for each in rounds)
            row[f"{kind}_{side}/min"] = 60 * len(rounds[-1]["acted"]) / seconds
            row[f"{kind}_{side}_hidden"] = hidden(rounds)
        row[f"{kind}_waited"] = median(each["waited_s"] / each["seconds"] for each in batch)
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(batch, halves, strict=True)]
        row |= {f"{kind}_ratio": median(ratios)}
        row |= {f"{kind}_ratio_low": min(ratios), f"{kind}_ratio_high": max(ratios)}
    return row


def hidden(rounds: Sequence[Mapping[str, float]]) -> float:
    """Return the share of environment time in which something was decoded."""
    waited_s, environment_s = (
        sum(each[name] for each in rounds) for name in ("waited_s", "environment_s")
    )
    return 1 - waited_s / environment_s


def check_halves(ours: Side, games: Sequence[str]) -> None:
    """Raise InternalError where halves do not play what one batch plays."""
    for name in _ALONE:
        batch, halves = (ours.started[each]["acted"] for each in (name, name + HALVES))
        check_agreement(games, batch, halves, f"cotjax in two halves, by {_ALONE[name]} actions,")


def print_halves(console: Console, row: Mapping[str, float], latency: float) -> None:
    """Print the figures of `halves_figures`."""
    rows = []
    for kind in _ALONE.values():
        for side, words in (("batch", "one batch"), ("halves", "two halves")):
            name = f"{kind}_{side}"
            speed, share = row[f"{name}/min"], f"{100 * row[f'{name}_hidden']:.0f} %"
            rows.append([f"{kind} actions alone, {words}", f"{speed:,.1f}", share])
    print_table(console, ("decoded", "episodes/min", "hidden"), rows)
    if latency:
        say(console, f"each environment sleeps {1000 * latency:g} ms before each answer")
    for kind in _ALONE.values():
        rounds = f"rounds {row[f'{kind}_ratio_low']:.2f} to {row[f'{kind}_ratio_high']:.2f}"
        say(
            console,
            f"{kind} actions: two halves play {row[f'{kind}_ratio']:.2f} times as fast as one "
            f"batch ({rounds}), which waits for environments {100 * row[f'{kind}_waited']:.0f} % "
            "of its time",
        )
