"""The metrics that a summary has: what kind of number each is, its limits, and its family."""

from __future__ import annotations

import math
import re

from cotjax.check.probes import (
    EARLY,
    GROUPS,
    JUDGES,
    MOST_CHANGED,
    MOST_NATS,
    MOST_SAVED,
    MOST_TOKEN_NATS,
    OUTCOMES,
    PAIRS,
    VARIANTS,
)

# (kind, least, most) as summary.json has them; most is None where a run's limits say it.
Kind = tuple[str, float, float | None]
RATE: Kind = ("rate", 0.0, None)
DIFFERENCE: Kind = ("difference", 0.0, None)
SHARE: Kind = ("mean", 0.0, 1.0)
DRIVERS = ("cot", "prompt", "cot_constrained", "prompt_constrained", "instructed")
FREE = ("cot", "prompt", "instructed")
_CONTROLS = {
    "swap": ("own",),
    "other": ("own", "same", "irrelevant", "shuffled", "empty"),
    "cut": ("own", "same", "irrelevant", "shuffled", "empty"),
    "cut_action": ("own",),
}


def _records() -> dict[str, Kind]:
    names = [f"{name}_{driver}" for name in ("d3", "not_accepted") for driver in DRIVERS]
    names += [f"{name}_{kind}{end}" for name in ("valid", "admissible") for kind in FREE
              for end in ("", "_states")]  # fmt: skip
    names += [f"d1_{driver}" for driver in DRIVERS]
    names += [f"d1_{driver}_mean" for driver in DRIVERS[2:4]]
    names += ["d2", "d2_cot_driven", "d2_constrained", "revision", "revision_cot_driven"]
    names += [f"revision_{kind}" for kind in ("helpful", "harmful", "neutral")]
    names += ["revision_not_comparable", "revision_not_comparable_cot_driven"]
    names += ["reasoned_cot", "reasoned_instructed", "reasoned_instructed_states"]
    means: dict[str, Kind] = {f"steps_{driver}": ("mean", 0.0, None) for driver in DRIVERS}
    means |= {f"new_tokens_{kind}": ("mean", 0.0, None) for kind in FREE}
    means |= {f"score_{kind}": SHARE for kind in ("cot", "prompt")}
    gaps = dict.fromkeys(("gap", "gap_constrained", "d1_gap", "d1_gap_constrained"), DIFFERENCE)
    return dict.fromkeys(names, RATE) | means | gaps


def _judged() -> dict[str, Kind]:
    said = ("cot_wins", "prompt_wins", "tie", "position_bias", "no_answer")
    names = [f"d4_{name}_{judge}" for judge in JUDGES for name in said]
    names += [f"d4_agreement_{one}_{other}" for one, other in PAIRS]
    names += ["d1_plan_cot", "d1_plan_prompt"]
    judged = ("judged_helpful", "judged_harmful", "judged_neutral", "judged_unknown")
    ends = ("", "_cot_driven")
    names += [f"{name}{end}" for end in ends for name in (*judged, "replay_diverged")]
    saved: Kind = ("mean", -MOST_SAVED, MOST_SAVED)
    ahead: Kind = ("mean", -1.0, 1.0)
    return (
        dict.fromkeys(names, RATE)
        | {f"saved_steps{end}": saved for end in ends}
        | {f"progress_{driver}": ahead for driver in DRIVERS}
        | {f"d4_gap_{judge}": DIFFERENCE for judge in JUDGES}
    )


def _forced() -> dict[str, Kind]:
    names = [f"conflict_{outcome}_{name}" for name in VARIANTS for outcome in OUTCOMES]
    names += [f"conflict_{outcome}_{control}_{name}" for name, controls in _CONTROLS.items()
              for control in controls for outcome in OUTCOMES[:2]]  # fmt: skip
    names += [f"conflict_keep_{name}_{kind}" for name in VARIANTS
              for kind in ("anchored", "revised")]  # fmt: skip
    names += [f"conflict_fits_{name}" for name in VARIANTS]
    tests = (*EARLY, "mistake", "filler", "paraphrase")
    names += [f"faithfulness_same_{test}" for test in tests]
    return (
        dict.fromkeys(names, RATE)
        | {f"conflict_effect_{name}": DIFFERENCE for name in VARIANTS}
        | {f"faithfulness_aoc_{test}": SHARE for test in ("early", "mistake")}
    )


def _scored() -> dict[str, Kind]:
    nats: Kind = ("mean", -MOST_NATS, MOST_NATS)
    found: dict[str, Kind] = {"d1_nats_gap": nats, "d2_nats": nats}
    for kind in ("cot", "prompt"):
        found |= {
            f"d1_nats_{kind}": ("mean", 0.0, MOST_NATS),
            f"d1_token_nats_{kind}": ("mean", 0.0, MOST_TOKEN_NATS),
            f"d1_posterior_{kind}": SHARE,
        }
    found |= {"d1_posterior_gap": ("mean", -1.0, 1.0), "d2_divergence": ("mean", 0.0, math.log(2))}
    floor = ("d2_floor_cot", "d2_floor_prompt", "d2_sampled", "d2_floor_not_comparable")
    return found | dict.fromkeys(floor, RATE) | {"revision_excess": ("mean", -0.5, 1.0)}


def _shares() -> dict[str, Kind]:
    prefixes = ("attention", "attention_uniform", "gradient", "gradient_uniform", "gradient_input")
    names = [f"{prefix}_{group}" for prefix in prefixes for group in ("prompt", *GROUPS)]
    names += [f"{prefix}_{end}" for prefix in ("attention", "gradient")
              for end in ("of_two", "prompt_action")]  # fmt: skip
    changed = ("attention_masked", "attention_blocked", "thought_swapped")
    return (
        dict.fromkeys(names, SHARE)
        | {f"{name}_nats": ("mean", -MOST_CHANGED, MOST_CHANGED) for name in changed}
        | {f"{name}_changed": RATE for name in changed}
    )


PROBED = _judged() | _forced() | _scored() | _shares()
METRICS = _records() | PROBED
DIFFERENCES = {
    "gap": ("d3_cot", "d3_prompt"),
    "gap_constrained": ("d3_cot_constrained", "d3_prompt_constrained"),
    "d1_gap": ("d1_cot", "d1_prompt"),
    "d1_gap_constrained": ("d1_cot_constrained", "d1_prompt_constrained"),
    **{f"d4_gap_{judge}": (f"d4_cot_wins_{judge}", f"d4_prompt_wins_{judge}") for judge in JUDGES},
    **{
        f"conflict_effect_{name}": (f"conflict_follow_{name}", f"conflict_follow_own_{name}")
        for name in VARIANTS
    },
}
# CoT action, prompt action, and their gap, by (measure, constrained).
MEASURES = {
    ("d3", False): ("d3_cot", "d3_prompt", "gap"),
    ("d1", False): ("d1_cot", "d1_prompt", "d1_gap"),
    ("d3", True): ("d3_cot_constrained", "d3_prompt_constrained", "gap_constrained"),
    ("d1", True): ("d1_cot_constrained", "d1_prompt_constrained", "d1_gap_constrained"),
}
TESTED = MEASURES["d3", False]
# What is compared with the base and between arms.
COMPARED = (
    *(name for names in MEASURES.values() for name in names),
    "d1_instructed", "revision", "revision_cot_driven", "revision_helpful", "revision_harmful",
    *PROBED,
)  # fmt: skip
# Beginning of a metric's name -> its family. The first that fits counts.
_FAMILIES = (
    (r"d[12]_(token_)?(nats|posterior|divergence)", "likelihood (D1, D2)"),
    (r"d2_floor|d2_sampled|revision_excess", "floor of D2"),
    (r"revision|judged|saved|replay", "revisions"),
    (r"d1", "D1, D1'"),
    (r"d2", "D2"),
    (r"d3|gap", "D3 and its gap"),
    (r"d4", "D4"),
    (r"conflict", "D5"),
    (r"faithfulness", "faithfulness"),
    (r"attention", "D6"),
    (r"gradient|thought_swapped", "D7"),
    (r"valid|admissible|not_accepted|reasoned", "validity, admissibility"),
    (r"steps|new_tokens|score|progress", "steps, tokens, scores"),
)


def family(metric: str) -> str:
    """Return the family of a metric; "" where it is none that is known here."""
    return next((name for start, name in _FAMILIES if re.match(start, metric)), "")
