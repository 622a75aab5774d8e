"""A small study in which everything was measured: all kinds of records, and the rows of all probes.

What is measured is drawn at random, so that no number of it is 0, 1 or equal to another by chance
alone. The rows say of themselves what `cotjax.diagnostics` makes of their parts.
"""

import json

import numpy as np

from cotjax.diagnostics import conflict, preference, revisions
from cotjax.diagnostics.attention import Attended, AttentionRow, Hidden
from cotjax.diagnostics.conflict import Conflict, ConflictRow, Trial
from cotjax.diagnostics.faithfulness import Changed, FaithfulnessRow, Mistake
from cotjax.diagnostics.floor import FloorRow
from cotjax.diagnostics.gradient import GradientRow, Reached, Swapped
from cotjax.diagnostics.likelihood import LikelihoodRow
from cotjax.diagnostics.preference import PreferenceRow
from cotjax.diagnostics.probe_rows import ProbeHeading
from cotjax.diagnostics.progress import ProgressRow
from cotjax.diagnostics.revisions import Ending, RevisionRow
from cotjax.diagnostics.role_shares import GROUPS
from cotjax.probes.measuring import probe_path
from cotjax.rollout.record import KINDS, record_path
from helpers.planted import Cell, write_planted

GAMES, STATES = 5, 3
SAMPLES = 3
# Of one cell both seeds are an arm; those of the other are arms of their own.
CELLS = {"named": Cell(0.75, 0.35), "direct": Cell(0.65, 0.6, direct_share=1.0)}
ALONE = (("direct", 1.0, 0.0), ("less", 0.0, 0.3))
PRIMARY = {"measure": "d1", "kinds": ["cot", "prompt"], "margin": 0.25}


def write_measured(run):
    """Write records, run.json and the rows of all probes; return the run's folder."""
    write_planted(run, CELLS, seeds=2, games=GAMES, states=STATES, checkpoints=(0, 30, 60))
    about = json.loads((run / "run.json").read_text())
    alone = [name for name, arm in about["arms"].items() if arm["cell"] == "direct"]
    for arm, (cell, share, fraction) in zip(alone, ALONE, strict=True):
        about["arms"][arm] |= {"cell": cell, "direct_share": share, "fraction": fraction}
    (run / "run.json").write_text(json.dumps(about | {"config": {"primary": PRIMARY}}))
    rng = np.random.default_rng(3)
    for path in sorted((run / "records").rglob("*.json")):
        _enrich(path, rng)
    _write_information(run, alone[1])
    write_rows(run)
    return run


def _enrich(path, rng):
    """Give a record all kinds of actions; of one that was played write those of other drivers."""
    record = json.loads(path.read_text())
    for turn in record["steps"]:
        for kind in ("cot", "prompt"):
            if turn[kind] is not None and rng.random() < 0.3:
                _say(turn[kind], rng.choice(["look", " look  ", "go", "take  mug"]), rng)
        turn["instructed"] = dict(turn["prompt"])
        _say(turn["instructed"], rng.choice(["look", "go"]), rng)
        for kind in ("cot_constrained", "prompt_constrained"):
            total, mean = (str(each) for each in rng.choice(["look", "go"], size=2))
            turn[kind] = {"action": total, "by_total": total, "by_mean": mean}
            turn[kind] |= {"logprobs": [-0.5], "tokens": [2], "prefix_ids": [5], "ids": [6]}
        turn["accepted"], turn["score"] = bool(rng.random() < 0.7), round(rng.random(), 2)
    record["timing"]["sampler_s"] = round(rng.random(), 6)
    _write(path, record)
    if record["driver"] == "reference":
        return
    others = ["instructed", "cot_constrained", "prompt_constrained"]
    for driver, samples in (
        (record["driver"], range(1, SAMPLES)),
        *((each, [0]) for each in others),
    ):
        if driver in others and record["driver"] != "cot":
            continue
        for sample in samples:
            won, broken = bool(rng.random() < 0.5), bool(rng.random() < 0.1)
            ended = "env_error" if broken else "won" if won else "step_limit"
            again = record | {"driver": driver, "sample": sample, "success": won, "ended": ended}
            again["env_faults"] = ["gone"] if broken else []
            again["steps"] = record["steps"] * int(rng.integers(1, 4))
            at = {"arm": "", "checkpoint": 0, "driver": driver, "game_id": record["game"]["id"]}
            name = record_path("", **at, sample=sample).name
            _write(path.parents[1] / driver / name, again)


def _say(response, action, rng):
    """Change what a response says, or make it invalid."""
    valid = bool(rng.random() < 0.8)
    response |= {"action": str(action) if valid else None, "valid": valid}
    response |= {"reason": None if valid else "two_actions", "admissible": bool(rng.random() < 0.9)}
    response |= {"new_tokens": int(rng.integers(2, 20)), "thought": rng.choice(["so", " ", None])}


def _write(path, record):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def _write_information(run, arm):
    """Write an arm's rows on the action's information, and its held-out losses."""
    folder = run / "arms" / arm
    folder.mkdir(parents=True)
    shares = {"REASONING": 0.9, "ACTION": 0.1}
    nats = {"token": 0.25, "action": 1.5}
    row = {"arm": arm, "action_given_thought": nats, "action_given_prompt": None}
    row |= dict.fromkeys(("loss_share", "gradient_share", "gradient_norm"), shares)
    row |= {"removed_share": 0.03, "examples": 64, "tokens": 900}
    rows = [row | {"checkpoint": step} for step in (0, 60)]
    (folder / "information.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    held = {"loss": 1.25, "loss_by_role": {"ACTION": 0.5}, "supervised": 9, "examples": 3}
    lines = [{"step": 1, "loss": 2.0}, {"step": 60, "held_out": held, "time": 1.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))


def write_rows(run):
    """Write the rows of all probes."""
    arms = json.loads((run / "run.json").read_text())["arms"]
    places = [("base", 0), *((arm, 60) for arm in arms)]
    for probe, (row, make) in PROBES.items():
        for number, (arm, step) in enumerate(places):
            rng = np.random.default_rng([number, sorted(PROBES).index(probe)])
            drivers = DRIVERS.get(probe, ("reference",))
            # Of a played episode there is one row, for its last turn.
            turns = [STATES - 1] if probe == "progress" else range(STATES)
            rows = [
                row(driver=driver, game=f"in_domain-{game}", domain="in_domain", sample=0,
                    turn=turn, **make(rng))
                for driver in drivers for game in range(GAMES) for turn in turns
            ]  # fmt: skip
            heading = ProbeHeading(
                probe=probe, arm=arm, checkpoint=step, checkpoint_hash="c", games_hash="g",
                settings={}, states=len(rows),
            )  # fmt: skip
            path = probe_path(run, probe, arm, step)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{each.model_dump_json()}\n" for each in (heading, *rows)))


def _one(rng, *values):
    return values[int(rng.integers(len(values)))]


def _preference(rng):
    cot, prompt = _one(rng, "look", "go", "look", None), _one(rng, "look", "go", "go")
    opinions = {}
    for judge in preference.JUDGES if None not in (cot, prompt) else ():
        said = [_one(rng, "cot", "cot", "prompt", "tie", None) for _ in range(2)]
        opinions[judge] = preference.Opinion.of(*(said if cot != prompt else ("tie", "tie")))
    return {"cot": cot, "prompt": prompt, "opinions": opinions}


def _ending(rng):
    unknown = "the expert is lost" if rng.random() < 0.1 else None
    reached = unknown is None and rng.random() < 0.8
    return Ending(steps=int(rng.integers(1, 30)) if reached else None, unknown=unknown)


def _revisions(rng):
    cot, prompt = _one(rng, "look", "go", "go", None), _one(rng, "look", "look", "go")
    endings = {f"{name}_ending": _ending(rng) for name in ("cot", "prompt", "reference")}
    if cot == prompt:
        endings["prompt_ending"] = endings["cot_ending"]
    if cot is None:
        endings["cot_ending"] = None
    diverged = rng.random() < 0.1
    verdict = "diverged" if diverged else "not_comparable" if cot is None else "same"
    if verdict == "same" and cot != prompt:
        verdict = revisions.verdict(endings["cot_ending"], endings["prompt_ending"])
    row = {"cot": cot, "prompt": prompt, "reference": _one(rng, "look", " go", "take"), **endings}
    return row | {"verdict": verdict, "differs": "the observation" if diverged else None}


def _progress(rng):
    diverged = rng.random() < 0.1
    ending = Ending(steps=0, unknown=None) if rng.random() < 0.3 else _ending(rng)
    row = {"start": _one(rng, 6, 9, 14, None), "ending": None if diverged else ending}
    return row | {"differs": "the observation" if diverged else None}


def _conflict(rng):
    own, other = "take mug 1", "take cup 1"
    conflicts, trials, missing = {}, {}, {}
    for variant, controls in conflict.CONTROLS.items():
        if rng.random() < 0.2:
            missing[variant] = "not_named"
            continue
        conflicts[variant] = Conflict(action=other, thought="so", game="g", turn=0)
        for name in (variant, *(f"{control}_{variant}" for control in controls)):
            action = _one(rng, own, other, other, "wait", None)
            outcome = conflict.outcome_of(action, own, other)
            trials[name] = Trial(action=action, outcome=outcome, tokens=3)
    row = {"own": own, "prompt": _one(rng, own, "wait", None), "listed": True}
    return row | {"conflicts": conflicts, "trials": trials, "missing": missing}


def _faithfulness(rng):
    actions = [_one(rng, "look", "look", "go", None) for _ in range(9)]
    mistakes = [Mistake(thought="no", action=each, sentence=0) for each in actions[5:7]]
    filler, paraphrase = (Changed(thought="...", action=each) for each in actions[7:])
    row = {"own": _one(rng, "look", "look", None), "tokens": 4, "early": tuple(actions[:5])}
    row |= {"mistakes": tuple(mistakes), "filler": filler, "missing": {}}
    return row | {"paraphrase": paraphrase if rng.random() < 0.5 else None}


def _floor(rng):
    return {
        kind: tuple(_one(rng, "a", "a", "b", "c", None) for _ in range(4))
        for kind in ("cot", "prompt")
    }


def _likelihood(rng):
    names = ("reference", "reference_after_cot", "cot", "prompt")
    row = {name: -float(rng.exponential(6)) if rng.random() < 0.9 else None for name in names}
    row |= {name: float(rng.random()) for name in ("posterior", "posterior_after_cot")}
    return row | {"divergence": float(rng.random() * 0.69), "tokens": int(rng.integers(1, 9))}


def _response(rng):
    def share():
        return dict(zip(GROUPS, rng.dirichlet(np.ones(len(GROUPS))).tolist(), strict=True))

    row = {"nats": 1.0, "tokens": 2, "length": 90, "uniform": share(), "share": share()}
    # Two layers, of what was drawn already.
    row["prompt_by_layer"] = tuple(row["share"][name] for name in ("task", "history"))
    row["reasoning_by_layer"] = tuple(row["share"][name] for name in ("reasoning", "tags"))
    return row, share()


def _causal(rng):
    return {"nats": float(rng.normal(1, 15)), "changed": bool(rng.random() < 0.4)}


def _attention(rng):
    row = {name: Attended(**_response(rng)[0]) for name in ("cot", "prompt")}
    row |= {name: Hidden(**_causal(rng)) for name in ("masked", "blocked")}
    return row | {"skipped": None}


def _gradient(rng):
    row = {}
    for name in ("cot", "prompt"):
        response, share = _response(rng)
        row[name] = Reached(**response, input_share=share)
    row["swapped"] = Swapped(game="g", turn=0, own_tokens=9, tokens=9, **_causal(rng))
    return row | {"skipped": None}


# Probe -> the drivers of its states, where they are not the expert's alone.
DRIVERS = {"revisions": ("reference", "cot"), "progress": KINDS}
# Probe -> (its row, what draws the fields of one).
PROBES = {
    "preference": (PreferenceRow, _preference),
    "revisions": (RevisionRow, _revisions),
    "progress": (ProgressRow, _progress),
    "conflict": (ConflictRow, _conflict),
    "faithfulness": (FaithfulnessRow, _faithfulness),
    "floor": (FloorRow, _floor),
    "likelihood": (LikelihoodRow, _likelihood),
    "attention": (AttentionRow, _attention),
    "gradient": (GradientRow, _gradient),
}
