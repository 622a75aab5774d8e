"""What one episode record counts for: hits and states per metric.

How a state is judged:

- Two actions are the same when their texts are equal after whitespace is normalised.
- An invalid response has no action. It equals nothing: it is wrong for D1, and two invalid
  responses are not consistent.
- D1: the action is the reference action. D2: prompt action and CoT action are the same. Revision is
  the opposite of D2.
- A revision is helpful when only the CoT action is the reference action, harmful when only the
  prompt action is, neutral when neither is. All three are shares of all expert states, so
  helpful + harmful + neutral = revision, and helpful - harmful = the gap of D1.
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
from cotjax.rollout.record import Driver, Record, Response, Turn, read_record, record_files


@dataclass(frozen=True)
class EpisodeCounts:
    """One record, judged. Its texts stay in the file.

    Attributes:
      steps: number of turns.
      revisions: turns of a CoT-driven episode whose two actions differ.
      env_faults: faults of the environment, retried with success or not.
      invalid: "cot" or "prompt" -> reason -> number of responses.
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
    invalid: dict[str, Counter[str]] = {"cot": Counter(), "prompt": Counter()}
    if record.ended != "env_error":
        for turn in record.steps:
            for kind, response in (("cot", turn.cot), ("prompt", turn.prompt)):
                if response is not None and not response.valid:
                    invalid[kind][str(response.reason)] += 1
            for name, hit in _judge(turn, record.driver).items():
                total, n = counts.get(name, (0.0, 0))
                counts[name] = (total + hit, n + 1)
        if record.driver != "reference":
            counts[f"d3_{record.driver}"] = (float(record.success), 1)
            counts[f"steps_{record.driver}"] = (float(len(record.steps)), 1)
    return EpisodeCounts(
        path=path,
        world=record.world,
        arm=record.arm,
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


def same_action(first: Response | None, second: Response | None) -> bool:
    """Whether two responses have the same action. An invalid response equals nothing."""
    return action_of(first) is not None and action_of(first) == action_of(second)


def _judge(turn: Turn, driver: Driver) -> dict[str, float]:
    """Return what one state adds to each metric."""
    if driver == "reference":
        return _judge_reference(
            action_of(turn.cot), action_of(turn.prompt), normalize_action(turn.reference or "")
        )
    own = turn.cot if driver == "cot" else turn.prompt
    assert own is not None, "a record has its driver's responses"
    judged: dict[str, float] = {
        f"valid_{driver}": own.valid,
        f"new_tokens_{driver}": own.new_tokens,
    }
    if own.admissible is not None:
        judged[f"admissible_{driver}"] = own.valid and own.admissible
    if driver == "cot":
        judged["reasoned_cot"] = bool((own.thought or "").strip())
        if turn.prompt is not None:
            same = same_action(own, turn.prompt)
            judged |= {"d2_cot_driven": same, "revision_cot_driven": not same}
    if turn.accepted is not None:
        judged[f"not_accepted_{driver}"] = not turn.accepted
    return judged


def _judge_reference(cot: str | None, prompt: str | None, reference: str) -> dict[str, float]:
    cot_right, prompt_right = cot == reference, prompt == reference
    consistent = cot is not None and cot == prompt
    return {
        "d1_cot": cot_right,
        "d1_prompt": prompt_right,
        "d2": consistent,
        "revision": not consistent,
        "revision_helpful": cot_right and not prompt_right,
        "revision_harmful": prompt_right and not cot_right,
        "revision_neutral": not consistent and not cot_right and not prompt_right,
    }
