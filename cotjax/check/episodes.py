"""Episode records, read and judged by the rules of docs/diagnostics.md."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cotjax.check.fields import Fields, read
from cotjax.errors import DataError

FREE = ("cot", "prompt", "instructed")
CHOSEN = ("cot_constrained", "prompt_constrained")
DRIVERS = (*FREE, *CHOSEN, "reference")
Place = tuple[str, int, str]  # arm (under a seed, where it has several), checkpoint, domain
_REMEDY = "restore the record"


@dataclass
class Tally:
    """What was counted at one place: an arm's checkpoint in one domain.

    Attributes:
      cells: metric -> (game, sample) -> [total, number].
      files: metric, or driver of episodes -> the files that it was counted in.
      most_steps, most_tokens: limits of an episode and of a response.
    """

    cells: dict[str, dict[tuple[str, int], list[float]]] = field(default_factory=dict)
    ended: dict[str, Counter[str]] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    invalid: dict[str, Counter[str]] = field(default_factory=dict)
    files: dict[str, set[Path]] = field(default_factory=dict)
    most_steps: int = 1
    most_tokens: int = 1

    def add(self, metric: str, game: tuple[str, int], value: float, file: Path) -> None:
        """Count one state or episode."""
        cell = self.cells.setdefault(metric, {}).setdefault(game, [0.0, 0.0])
        cell[0] += value
        cell[1] += 1
        self.files.setdefault(metric, set()).add(file)


@dataclass
class Records:
    """All that the records of a run hold.

    Attributes:
      games: hashes of the games.
      checkpoints: arm and checkpoint -> hashes of its weights.
      uses: (driver, elicitation as text) -> number of records.
      seconds: of environments, of the sampler.
    """

    tallies: dict[Place, Tally] = field(default_factory=dict)
    worlds: set[str] = field(default_factory=set)
    games: set[str] = field(default_factory=set)
    checkpoints: dict[tuple[str, int], set[str]] = field(default_factory=dict)
    uses: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])
    files: int = 0


def read_records(folder: Path) -> Records:
    """Return what the records below a folder hold.

    Raises:
      DataError: there is none, one is malformed or in another's place, or two are of one episode;
        the message names the file.
    """
    paths = sorted(folder.rglob("*.json")) if folder.is_dir() else []
    paths = [path for path in paths if not path.name.startswith(".")]
    if not paths:
        raise DataError(f"{folder}: holds no episode record; check a run that has its records")
    records, seen = Records(), dict[tuple, Path]()
    for path in paths:
        _add(records, seen, path, _upgraded(read(path, _REMEDY)))
    return records


def member(heading: Fields) -> str:
    """Return whose weights a record or a probe's file is of: an arm, or an arm under a seed."""
    arm = heading.get("arm", str)
    if heading.content.get("training_seed") is None:
        return arm
    return f"{arm}/seed-{heading.get('training_seed', int)}"


def action(response: Fields | None) -> str | None:
    """Return the action of a valid response, each run of whitespace as one space; else None."""
    if response is None or not response.get("valid", bool):
        return None
    text = response.get("action", str, null=True)
    return None if text is None else spaced(text)


def spaced(text: str) -> str:
    """Return a text in which each run of whitespace is one space."""
    return " ".join(text.split())


def _upgraded(record: Fields) -> Fields:
    """Return a record of schema 4, 3 or 2 with the fields of schema 4."""
    content: dict[str, Any] = record.content
    version = content.get("schema_version")
    if version not in (2, 3, 4):
        raise DataError(f"{record.place}: schema_version is {version!r:.20}, not 4, 3 or 2")
    if version == 2:
        added: dict[str, Any] = {"world": "alfworld", "sample": 0}
        content = added | content
        steps = [dict(step) for step in content.get("steps", ()) if isinstance(step, dict)]
        for step in steps:
            step.setdefault("score", None)
            if isinstance(step.get("nothing_happens"), bool):
                step["accepted"] = not step["nothing_happens"]
        content["steps"] = steps
    return Fields(content, record.place)


def _add(records: Records, seen: dict[tuple, Path], path: Path, record: Fields) -> None:
    arm, checkpoint = member(record), record.get("checkpoint", int)
    driver, domain = record.get("driver", str), record.get("domain", str)
    game, sample = record.object("game"), record.get("sample", int)
    assert game is not None
    key = (game.get("id", str), sample)
    whole = (arm, checkpoint, domain, driver, *key, record.get("seed", int))
    if driver not in DRIVERS:
        raise DataError(f"{record.place}: driver is {driver!r:.30}, none of {', '.join(DRIVERS)}")
    if whole in seen:
        raise DataError(f"{path}: the same episode as {seen[whole]}; keep one of the two files")
    seen[whole] = path
    tally = records.tallies.setdefault((arm, checkpoint, domain), Tally())
    elicitation, timing = record.object("elicitation"), record.object("timing")
    assert elicitation is not None and timing is not None
    records.worlds.add(record.get("world", str))
    records.games.add(record.get("games_hash", str))
    hashes = records.checkpoints.setdefault((arm, checkpoint), set())
    hashes.add(record.get("checkpoint_hash", str))
    records.uses.append((driver, elicitation.content))
    records.seconds[0] += timing.get("environment_s", float)
    records.seconds[1] += timing.get("sampler_s", float)
    records.files += 1
    ended = record.get("ended", str)
    tally.ended.setdefault(driver, Counter())[ended] += 1
    tally.files.setdefault(driver, set()).add(path)
    tally.faults[driver] += len(record.get("env_faults", list))
    limits = (elicitation.content.get(name) for name in ("max_steps", "max_new_tokens"))
    steps, tokens = (int(each or 1) for each in limits)
    tally.most_steps = max(tally.most_steps, steps)
    tally.most_tokens = max(tally.most_tokens, tokens)
    if driver in FREE:
        tally.invalid.setdefault(driver, Counter())
    # An episode that its environment broke says nothing about the agent.
    if ended == "env_error":
        return
    turns = record.objects("steps")
    for turn in turns:
        judged = _expert(turn) if driver == "reference" else _played(turn, driver)
        for name, hit in judged.items():
            tally.add(name, key, float(hit), path)
        own = _response(turn, driver)
        if own is not None and driver in FREE and not own.get("valid", bool):
            tally.invalid[driver][str(own.get("reason", str, null=True))] += 1
    if driver == "reference":
        return
    tally.add(f"d3_{driver}", key, float(record.get("success", bool)), path)
    tally.add(f"steps_{driver}", key, float(len(turns)), path)
    scores = [turn.get("score", float, null=True) for turn in turns]
    reached = [score for score in scores if score is not None]
    if reached and driver in ("cot", "prompt"):
        tally.add(f"score_{driver}", key, reached[-1], path)


def _response(turn: Fields, kind: str) -> Fields | None:
    return turn.object(kind, null=True) if kind in (*FREE, *CHOSEN) else None


def _played(turn: Fields, driver: str) -> dict[str, float]:
    """Return metric -> value of a turn that was played."""
    found: dict[str, float] = {}
    own = _response(turn, driver)
    if own is None:
        raise DataError(f"{turn.place}: lacks the {driver} action that drove it; {_REMEDY}")
    if driver in FREE:
        valid, admissible = own.get("valid", bool), own.get("admissible", bool, null=True)
        found |= {f"valid_{driver}": valid, f"new_tokens_{driver}": own.get("new_tokens", int)}
        if admissible is not None:
            found[f"admissible_{driver}"] = valid and admissible
        if driver != "prompt":
            found[f"reasoned_{driver}"] = _reasoned(own)
    other = _response(turn, "prompt")
    if driver == "cot" and other is not None:
        actions = action(own), action(other)
        comparable = None not in actions
        found["revision_not_comparable_cot_driven"] = not comparable
        if comparable:
            differ = actions[0] != actions[1]
            found |= {"revision_cot_driven": differ, "d2_cot_driven": not differ}
    accepted = turn.get("accepted", bool, null=True)
    if accepted is not None:
        found[f"not_accepted_{driver}"] = not accepted
    return found


def _expert(turn: Fields) -> dict[str, float]:
    """Return metric -> value of an expert's state."""
    expert = spaced(turn.get("reference", str))
    found: dict[str, float] = {}
    right: dict[str, bool] = {}
    responses = {kind: _response(turn, kind) for kind in FREE}
    for kind, response in responses.items():
        if response is None:
            continue
        valid, admissible = response.get("valid", bool), response.get("admissible", bool, null=True)
        right[kind] = action(response) == expert
        found |= {f"d1_{kind}": right[kind], f"valid_{kind}_states": valid}
        if admissible is not None:
            found[f"admissible_{kind}_states"] = valid and admissible
    if responses["instructed"] is not None:
        found["reasoned_instructed_states"] = _reasoned(responses["instructed"])
    if responses["cot"] is not None and responses["prompt"] is not None:
        cot, prompt = action(responses["cot"]), action(responses["prompt"])
        comparable = cot is not None and prompt is not None
        found["revision_not_comparable"] = not comparable
        if comparable:
            differ = cot != prompt
            found |= {
                "d2": not differ,
                "revision": differ,
                "revision_helpful": differ and right["cot"],
                "revision_harmful": differ and right["prompt"],
                "revision_neutral": differ and not right["cot"] and not right["prompt"],
            }
    return found | _choices(turn, expert)


def _choices(turn: Fields, expert: str) -> dict[str, float]:
    found: dict[str, float] = {}
    totals = []
    for kind in CHOSEN:
        choice = _response(turn, kind)
        if choice is None:
            continue
        for end, name in (("", "by_total"), ("_mean", "by_mean")):
            text = choice.get(name, str, null=True)
            text = None if text is None else spaced(text)
            found[f"d1_{kind}{end}"] = text == expert
            totals += [text] if name == "by_total" else []
    if len(totals) == 2:
        found["d2_constrained"] = totals[0] is not None and totals[0] == totals[1]
    return found


def _reasoned(response: Fields) -> bool:
    return bool((response.get("thought", str, null=True) or "").strip())
