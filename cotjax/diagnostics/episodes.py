"""What one episode record counts for: hits and states per metric.

How a state is judged:

- Two actions are the same when their texts are equal after whitespace is normalised.
- An invalid response has no action: it is wrong for D1.
- D1: the action is the reference action. D2: prompt action and CoT action are the same. Revision is
  the opposite of D2. A state in which one of the two responses is invalid is not comparable: it
  counts for neither, and its share is a metric of its own.
- A constrained action is admissible by construction, so it has no validity. Where no action is
  admissible there is none, and it equals nothing. Its D1 is by the total log-probability, "_mean"
  by the mean per token, whichever of the two drove episodes.
- A metric of a kind is counted where the record has that kind.
- A revision is helpful when only the CoT action is the reference action, harmful when only the
  prompt action is, neutral when neither is. All three are shares of the comparable expert states,
  so helpful + harmful + neutral = revision, and helpful - harmful = the gap of D1 in these states.
- An episode that the environment broke (`ended` is "env_error") says nothing about the agent: it is
  excluded everywhere, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cotjax.errors import DataError
from cotjax.formats import normalize_action
from cotjax.rollout.record import Choice, Driver, Record, Response, Turn, read_record, record_files

# The kinds of action that are decoded freely, and may go wrong.
FREE = ("cot", "prompt", "instructed")


@dataclass(frozen=True)
class EpisodeCounts:
    """One record, judged. Its texts stay in the file.

    Attributes:
      steps: number of turns.
      revisions: turns of a CoT-driven episode whose two actions differ.
      env_faults: faults of the environment, retried with success or not.
      invalid: kind of response, of FREE -> reason -> number of responses.
      played_on: (hash of the games, hash of the checkpoint).
      counts: metric -> (total, number of states or episodes) over its turns.
    """

    path: Path
    world: str
    arm: str
    checkpoint: int
    driver: Driver
    domain: str
    game: str
    sample: int
    seed: int
    success: bool
    ended: str
    steps: int
    revisions: int
    elicitation: dict[str, Any]
    environment_s: float
    sampler_s: float
    env_faults: int
    invalid: Mapping[str, Counter[str]]
    played_on: tuple[str, str]
    counts: Mapping[str, tuple[float, int]]

    @property
    def key(self) -> tuple[str, int, str, str, str, int, int]:
        """What no two records of a study have in common."""
        return (
            self.arm,
            self.checkpoint,
            self.driver,
            self.domain,
            self.game,
            self.sample,
            self.seed,
        )


def count_records(folder: Path) -> list[EpisodeCounts]:
    """Judge every record under `folder`, in the order of paths.

    Raises:
      DataError: there is no record, one is malformed, or two are of the same episode; the message
        names the folder or the file.
    """
    episodes: list[EpisodeCounts] = []
    seen: dict[tuple, Path] = {}
    for path in record_files(folder):
        episode = count(path, read_record(path))
        if episode.key in seen:
            raise DataError(
                f"{path}: the same game, sample and seed as {seen[episode.key]} at the same arm, "
                "checkpoint and driver; keep one of the two files"
            )
        seen[episode.key] = path
        episodes.append(episode)
    return episodes


def count(path: Path, record: Record) -> EpisodeCounts:
    """Judge one record, which was read from `path`."""
    counts: dict[str, tuple[float, int]] = {}
    invalid: dict[str, Counter[str]] = {kind: Counter() for kind in FREE}
    if record.ended != "env_error":
        for turn in record.steps:
            for kind in FREE:
                response: Response | None = getattr(turn, kind)
                if response is not None and not response.valid:
                    invalid[kind][str(response.reason)] += 1
            for name, hit in _judge(turn, record.driver).items():
                total, n = counts.get(name, (0.0, 0))
                counts[name] = (total + hit, n + 1)
        if record.driver != "reference":
            counts[f"d3_{record.driver}"] = (float(record.success), 1)
            counts[f"steps_{record.driver}"] = (float(len(record.steps)), 1)
            scores = [turn.score for turn in record.steps if turn.score is not None]
            if scores and record.driver in ("cot", "prompt"):
                counts[f"score_{record.driver}"] = (scores[-1], 1)
    return EpisodeCounts(
        path=path,
        world=record.world,
        arm=record.member,
        checkpoint=record.checkpoint,
        driver=record.driver,
        domain=record.domain,
        game=record.game.id,
        sample=record.sample,
        seed=record.seed,
        success=record.success,
        ended=record.ended,
        steps=len(record.steps),
        revisions=int(counts.get("revision_cot_driven", (0.0, 0))[0]),
        elicitation=record.elicitation,
        environment_s=record.timing.environment_s,
        sampler_s=record.timing.sampler_s,
        env_faults=len(record.env_faults),
        invalid=invalid,
        played_on=(record.games_hash, record.checkpoint_hash),
        counts=counts,
    )


def action_of(response: Response | None) -> str | None:
    """Return the response's action with whitespace normalised; None where it has no valid one."""
    if response is None or not response.valid or response.action is None:
        return None
    return normalize_action(response.action)


def compared(first: Response | None, second: Response | None) -> bool | None:
    """Return whether two responses have the same action; None where one has no valid action."""
    actions = action_of(first), action_of(second)
    return None if None in actions else actions[0] == actions[1]


def _judge(turn: Turn, driver: Driver) -> dict[str, float]:
    """Return what one state adds to each metric."""
    if driver == "reference":
        return _judge_reference(turn)
    own: Response | Choice | None = getattr(turn, driver)
    assert own is not None, "a record has its driver's actions"
    judged: dict[str, float] = {}
    if isinstance(own, Response):
        judged |= {f"valid_{driver}": own.valid, f"new_tokens_{driver}": own.new_tokens}
        if own.admissible is not None:
            judged[f"admissible_{driver}"] = own.valid and own.admissible
        if driver != "prompt":
            judged[f"reasoned_{driver}"] = bool((own.thought or "").strip())
    if driver == "cot" and turn.prompt is not None:
        same = compared(turn.cot, turn.prompt)
        judged["revision_not_comparable_cot_driven"] = same is None
        if same is not None:
            judged |= {"d2_cot_driven": same, "revision_cot_driven": not same}
    if turn.accepted is not None:
        judged[f"not_accepted_{driver}"] = not turn.accepted
    return judged


def _judge_reference(turn: Turn) -> dict[str, float]:
    """Return what an expert's state adds to each metric of the kinds that were decoded there."""
    reference = normalize_action(turn.reference or "")
    judged: dict[str, float] = {}
    for kind in FREE:
        response: Response | None = getattr(turn, kind)
        if response is None:
            continue
        judged[f"d1_{kind}"] = action_of(response) == reference
        judged[f"valid_{kind}_states"] = response.valid
        if response.admissible is not None:
            judged[f"admissible_{kind}_states"] = response.valid and response.admissible
    if turn.instructed is not None:
        judged["reasoned_instructed_states"] = bool((turn.instructed.thought or "").strip())
    if turn.cot is not None and turn.prompt is not None:
        judged |= _judge_pair(action_of(turn.cot), action_of(turn.prompt), reference)
    return judged | _judge_choices(turn.cot_constrained, turn.prompt_constrained, reference)


def _judge_pair(cot: str | None, prompt: str | None, reference: str) -> dict[str, float]:
    if cot is None or prompt is None:
        return {"revision_not_comparable": True}
    cot_right, prompt_right, consistent = cot == reference, prompt == reference, cot == prompt
    return {
        "revision_not_comparable": False,
        "d2": consistent,
        "revision": not consistent,
        "revision_helpful": cot_right and not prompt_right,
        "revision_harmful": prompt_right and not cot_right,
        "revision_neutral": not consistent and not cot_right and not prompt_right,
    }


def _judge_choices(cot: Choice | None, prompt: Choice | None, reference: str) -> dict[str, float]:
    def text(action: str | None) -> str | None:
        return None if action is None else normalize_action(action)

    judged: dict[str, float] = {}
    for kind, choice in (("cot_constrained", cot), ("prompt_constrained", prompt)):
        if choice is not None:
            judged[f"d1_{kind}"] = text(choice.by_total) == reference
            judged[f"d1_{kind}_mean"] = text(choice.by_mean) == reference
    if cot is not None and prompt is not None:
        same = text(cot.by_total) == text(prompt.by_total)
        judged["d2_constrained"] = same and cot.by_total is not None
    return judged
