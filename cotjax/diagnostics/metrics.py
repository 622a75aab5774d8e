"""The diagnostics of one (arm, checkpoint, domain), counted from episode records: D1, D2, D3, revision, and what explains them.

A record is one episode, a JSON file `records/<arm>/<checkpoint>/<driver>/<file>.json` written by the rollout loop. The driver says whose
actions were played: "cot", "prompt", or "reference" (held-out expert states, with the expert's action; nothing is played).

How a state is judged:

- Two actions are the same when they are the same text after whitespace is normalised.
- An invalid response has no action. It equals nothing: it counts as wrong for D1, and two invalid responses are not consistent.
- D1: the action is the reference action. D2: prompt action and CoT action are the same. Revision is the opposite of D2.
- A revision is helpful when only the CoT action is the reference action, harmful when only the prompt action is, neutral when neither
  is. All three are shares of all expert states, so helpful + harmful + neutral = revision, and helpful - harmful = the gap of D1.
- An episode that the environment broke (`ended` is "env_error") says nothing about the agent: it is left out everywhere and counted.
- The gap pairs games: games that either mode lacks (or that broke in one) are left out of it. Of several episodes of a game the one
  of the same sample number is the other one; a game's samples then count as one game, for they are not independent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cotjax.diagnostics import statistics
from cotjax.diagnostics.statistics import Estimate
from cotjax.errors import DataError
from cotjax.rollout.record import read_record

DRIVERS = ("cot", "prompt", "reference")
ENDED = ("won", "step_limit", "env_error", "length")
_REMEDY = "delete the file and run `cotjax evaluate` again"


@dataclass(frozen=True)
class Metric:
    """One diagnostic. `source`: the driver whose records it is counted on; `kind` is "rate" (0..1), "difference" (of two rates), "mean"."""

    label: str
    source: str
    kind: str = "rate"


METRICS = {
    "d3_cot": Metric("D3, success by CoT actions", "cot"),
    "d3_prompt": Metric("D3, success by prompt actions", "prompt"),
    "gap": Metric("D3, gap (CoT − prompt)", "both", "difference"),
    "d1_cot": Metric("D1, CoT action is the reference action", "reference"),
    "d1_prompt": Metric("D1, prompt action is the reference action", "reference"),
    "d1_gap": Metric("D1, gap (CoT − prompt)", "reference", "difference"),
    "d2": Metric("D2, both actions the same (expert states)", "reference"),
    "d2_cot_driven": Metric("D2, both actions the same (CoT-driven states)", "cot"),
    "revision": Metric("revision rate (expert states)", "reference"),
    "revision_helpful": Metric("helpful revisions", "reference"),
    "revision_harmful": Metric("harmful revisions", "reference"),
    "revision_neutral": Metric("neutral revisions", "reference"),
    "revision_cot_driven": Metric("revision rate (CoT-driven states)", "cot"),
    "reasoned_cot": Metric("CoT responses that did reason", "cot"),
    "valid_cot": Metric("valid CoT responses", "cot"),
    "valid_prompt": Metric("valid prompt responses", "prompt"),
    "admissible_cot": Metric("admissible CoT actions", "cot"),
    "admissible_prompt": Metric("admissible prompt actions", "prompt"),
    "nothing_happens_cot": Metric("“Nothing happens”, CoT-driven steps", "cot"),
    "nothing_happens_prompt": Metric("“Nothing happens”, prompt-driven steps", "prompt"),
    "steps_cot": Metric("steps an episode, CoT-driven", "cot", "mean"),
    "steps_prompt": Metric("steps an episode, prompt-driven", "prompt", "mean"),
    "new_tokens_cot": Metric("new tokens a CoT response", "cot", "mean"),
    "new_tokens_prompt": Metric("new tokens a prompt response", "prompt", "mean"),
}

# A difference is taken on the same games (the gap) or the same states (the gap of D1).
DIFFERENCES = {"gap": ("d3_cot", "d3_prompt"), "d1_gap": ("d1_cot", "d1_prompt")}


@dataclass(frozen=True)
class Episode:
    """One record, counted: `counts[metric]` is (total, states or episodes) over its steps. Texts are left in the file at `path`.

    `invalid`: "cot" or "prompt" -> reason -> responses. `env_faults`: times that its environment failed, replaced or not.
    `played_on`: (hash of the games, hash of the checkpoint), empty where the record does not say.
    """

    path: Path
    arm: str
    checkpoint: int
    driver: str
    domain: str
    game: str
    sample: int
    task_type: str
    seed: int
    success: bool
    ended: str
    steps: int
    revisions: int
    elicitation: dict
    timing: dict
    env_faults: int
    invalid: dict[str, Counter]
    played_on: tuple[str, str]
    counts: dict[str, tuple[float, int]]


def read_records(folder: Path) -> list[Episode]:
    """Every episode under `folder`, in the order of paths. Raises DataError naming the folder, or the record at fault."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder of episode records; run `cotjax evaluate` first, or name the run folder that holds records/"
        )
    paths = sorted(path for path in folder.rglob("*.json") if not path.name.startswith("."))
    if not paths:
        raise DataError(f"{folder}: holds no episode record (*.json); run `cotjax evaluate` first")
    episodes, seen = [], {}
    for path in paths:
        episode = read_episode(path)
        key = (
            episode.arm,
            episode.checkpoint,
            episode.driver,
            episode.domain,
            episode.game,
            episode.sample,
            episode.seed,
        )
        if key in seen:
            raise DataError(
                f"{path}: the same game, sample and seed as {seen[key]} at the same arm, checkpoint and driver; keep one of the two files"
            )
        seen[key] = path
        episodes.append(episode)
    return episodes


def checked_record(path: Path) -> dict:
    """One record as it stands in its file, its outer fields checked. Raises DataError naming the file."""
    record = read_record(path)
    for name, kind in _RECORD_FIELDS.items():
        _field(record, name, kind, path)
    for name, known in (("driver", DRIVERS), ("ended", ENDED)):
        if record[name] not in known:
            raise DataError(
                f"{path}: {name} is {record[name]!r}, not one of {', '.join(known)}; {_REMEDY}"
            )
    _field(record["game"], "id", str, path, "game.")
    return record


def read_episode(path: Path) -> Episode:
    """One record, counted. Raises DataError naming the file (and the step)."""
    record = checked_record(path)
    counts: dict[str, tuple[float, int]] = {}
    invalid = {"cot": Counter(), "prompt": Counter()}
    if record["ended"] != "env_error":
        steps = [
            _judge(step, record["driver"], f"{path}: step {i}")
            for i, step in enumerate(record["steps"])
        ]
        for step in record["steps"]:
            for kind, reasons in invalid.items():
                if step[kind] is not None and not step[kind]["valid"]:
                    reasons[str(step[kind].get("reason"))] += 1
        for step in steps:
            for name, hit in step.items():
                total, n = counts.get(name, (0.0, 0))
                counts[name] = (total + hit, n + 1)
        if record["driver"] != "reference":
            counts[f"d3_{record['driver']}"] = (float(record["success"]), 1)
            counts[f"steps_{record['driver']}"] = (float(len(steps)), 1)
    return Episode(
        path=path,
        arm=record["arm"],
        checkpoint=record["checkpoint"],
        driver=record["driver"],
        domain=record["domain"],
        game=record["game"]["id"],
        sample=_field(record, "sample", int, path) if "sample" in record else 0,
        task_type=str(record["game"].get("task_type", "")),
        seed=record["seed"],
        success=record["success"],
        ended=record["ended"],
        steps=len(record["steps"]),
        revisions=int(counts.get("revision_cot_driven", (0, 0))[0]),
        elicitation=record["elicitation"],
        timing=record.get("timing") or {},
        env_faults=len(record["env_faults"]),
        invalid=invalid,
        played_on=(str(record.get("games_hash") or ""), str(record.get("checkpoint_hash") or "")),
        counts=counts,
    )


_RECORD_FIELDS = {
    "arm": str,
    "checkpoint": int,
    "driver": str,
    "domain": str,
    "game": dict,
    "seed": int,
    "task": str,
    "success": bool,
    "ended": str,
    "env_faults": list,
    "elicitation": dict,
    "steps": list,
}
_RESPONSE_FIELDS = {
    "text": str,
    "action": (str, type(None)),
    "valid": bool,
    "admissible": bool,
    "new_tokens": int,
}


def _field(holder: dict, name: str, kind, where, prefix: str = ""):
    if name not in holder:
        raise DataError(f"{where}: lacks the field {prefix}{name!r}; {_REMEDY}")
    value = holder[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise DataError(f"{where}: {prefix}{name!r} is {value!r:.60}, of the wrong type; {_REMEDY}")
    return value


def _judge(step: dict, driver: str, where: str) -> dict[str, float]:
    """What one state adds to each metric."""
    if not isinstance(step, dict):
        raise DataError(f"{where}: not a step but {step!r:.60}; {_REMEDY}")
    cot, prompt = (_response(step, name, driver, where) for name in ("cot", "prompt"))
    if driver == "reference":
        return _judge_reference(
            action(cot), action(prompt), normal(_field(step, "reference", str, where))
        )
    judged: dict[str, float] = {}
    own = cot if driver == "cot" else prompt
    judged |= {
        f"valid_{driver}": own["valid"],
        f"admissible_{driver}": own["valid"] and own["admissible"],
        f"new_tokens_{driver}": own["new_tokens"],
    }
    if driver == "cot":
        judged["reasoned_cot"] = bool((own.get("thought") or "").strip())
    if driver == "cot" and prompt is not None:
        judged |= {"d2_cot_driven": same(own, prompt), "revision_cot_driven": not same(own, prompt)}
    if _field(step, "executed", (str, type(None)), where) is not None:
        judged[f"nothing_happens_{driver}"] = _field(step, "nothing_happens", bool, where)
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


def _response(step: dict, name: str, driver: str, where: str) -> dict | None:
    needed = driver in (name, "reference")
    response = _field(step, name, dict if needed else (dict, type(None)), where)
    if response is not None:
        for key, kind in _RESPONSE_FIELDS.items():
            _field(response, key, kind, where, f"{name}.")
    return response


def normal(text: str) -> str:
    """The text with whitespace normalised."""
    return " ".join(text.split())


def action(response: dict | None) -> str | None:
    """The response's action with whitespace normalised; None when the response is invalid or missing."""
    return (
        normal(response["action"])
        if response is not None and response["valid"] and response["action"] is not None
        else None
    )


def same(first: dict | None, second: dict | None) -> bool:
    """Whether two responses hold the same action. An invalid response equals nothing."""
    return action(first) is not None and action(first) == action(second)


@dataclass
class Point:
    """Everything counted at one (arm, checkpoint, domain). `cells[metric][game, sample]` is [total, states or episodes]."""

    cells: dict[str, dict[tuple[str, int], list[float]]] = field(default_factory=dict)
    ended: dict[str, Counter] = field(default_factory=dict)
    env_faults: Counter = field(default_factory=Counter)
    invalid: dict[str, Counter] = field(
        default_factory=lambda: {"cot": Counter(), "prompt": Counter()}
    )
    max_steps: int = 1
    longest_response: int = 1

    def add(self, episode: Episode) -> None:
        self.ended.setdefault(episode.driver, Counter())[episode.ended] += 1
        self.env_faults[episode.driver] += episode.env_faults
        if (
            episode.driver in self.invalid
        ):  # as the shares of valid responses: those that drove the episode
            self.invalid[episode.driver] += episode.invalid[episode.driver]
        self.max_steps = max(self.max_steps, int(episode.elicitation.get("max_steps") or 1))
        self.longest_response = max(
            self.longest_response, int(episode.elicitation.get("max_new_tokens") or 1)
        )
        for name, (total, n) in episode.counts.items():
            cell = self.cells.setdefault(name, {}).setdefault(
                (episode.game, episode.sample), [0.0, 0]
            )
            cell[0] += total
            cell[1] += n

    def estimate(self, name: str) -> Estimate:
        """A metric, or a difference of two metrics on the same games ("gap", "d1_gap"), with its interval."""
        if name in DIFFERENCES:
            return contrast([(1, self, name)])
        cells = self.cells.get(name, {})
        totals, counts = _by_game(cells, cells)
        if METRICS[name].kind == "rate":
            return statistics.rate(totals, counts)
        return statistics.mean(
            totals, counts, self.max_steps if name.startswith("steps") else self.longest_response
        )


def points(episodes: Iterable[Episode]) -> dict[tuple[str, int, str], Point]:
    """(arm, checkpoint, domain) -> Point, over all episodes."""
    found: dict[tuple[str, int, str], Point] = {}
    for episode in episodes:
        found.setdefault((episode.arm, episode.checkpoint, episode.domain), Point()).add(episode)
    return found


def contrast(signed: list[tuple[int, Point, str]]) -> Estimate:
    """A signed sum of rates (or gaps) of several points, paired by game and sample: [(1, last, "gap"), (-1, base, "gap")] is how
    the gap changed."""
    return statistics.contrast(_terms(signed))


def contrast_p(signed: list[tuple[int, Point, str]]) -> float | None:
    """The exact sign test's p-value over the games of a contrast (McNemar's for one episode a game); None without games."""
    terms = _terms(signed)
    kept = np.all([counts > 0 for _, _, counts in terms], axis=0)
    if not kept.any():
        return None
    return statistics.sign_test(
        sum(sign * totals[kept] / counts[kept] for sign, totals, counts in terms)
    )


def _terms(signed: list[tuple[int, Point, str]]) -> list[tuple[int, np.ndarray, np.ndarray]]:
    flat = []
    for sign, point, name in signed:
        first, *second = DIFFERENCES.get(name, (name,))
        flat += [(sign, point.cells.get(first, {}))] + [
            (-sign, point.cells.get(other, {})) for other in second
        ]
    in_all = sorted(
        set.intersection(*({key for key, (_, n) in cells.items() if n} for _, cells in flat))
    )
    return [(sign, *_by_game(cells, in_all)) for sign, cells in flat]


def _by_game(
    cells: dict[tuple[str, int], list[float]], keys: Iterable[tuple[str, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """(totals, counts) of these cells by game, each game's samples added up."""
    games: dict[str, np.ndarray] = {}
    for key in keys:
        games[key[0]] = games.get(key[0], np.zeros(2)) + cells[key]
    totals, counts = np.array(list(games.values())).reshape(-1, 2).T
    return totals, counts
