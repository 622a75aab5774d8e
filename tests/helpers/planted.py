"""Studies whose gains were put where they are: records of the real schema, from simulated policies.

A policy is two probabilities, of a right CoT action and of a right prompt action. What makes a
game or a state easy is shared by both actions, and by all checkpoints, arms and seeds.
"""

import json
from dataclasses import dataclass

import numpy as np
from scipy import stats

from cotjax.runtime.members import member_name
from helpers.studies import write_episode

BASE = (0.30, 0.25)


@dataclass(frozen=True)
class Cell:
    """An arm with its seeds.

    Attributes:
      cot, prompt: chance of a right action at the last checkpoint.
      valid: chance of a valid prompt response there.
      chosen: chance of a right constrained prompt action, where it is valid or not.
    """

    cot: float
    prompt: float
    thoughts: str = "named"
    direct_share: float = 0.0
    fraction: float = 0.0
    valid: float = 1.0
    chosen: float | None = None


# The four cells and the ceiling, with what the study of the demo found on expert states.
PLANTED = {
    "named": Cell(0.81, 0.30),
    "hybrid": Cell(0.82, 0.80, direct_share=0.3),
    "unnamed": Cell(0.62, 0.46, "unnamed"),
    "unnamed_hybrid": Cell(0.62, 0.62, "unnamed", 0.3),
    "direct": Cell(0.85, 0.85, direct_share=1.0),
    "reduced": Cell(0.81, 0.30, fraction=0.3),
}


def write_planted(
    run,
    cells=PLANTED,
    *,
    seeds=1,
    games=24,
    states=4,
    checkpoints=(0, 60),
    domains=("in_domain",),
    played=True,
    draw=7,
    older=False,
):
    """Write records and run.json of a study with these cells; return its folder.

    `draw`: seed of its games and of chance. `older`: the seeds of a cell are arms, as once.
    """
    rng = np.random.default_rng(draw)
    ease = {
        domain: rng.normal(size=(games, 1, 1)) * 0.5 + rng.normal(size=(games, states, 1)) * 0.7
        for domain in domains
    }
    arms = {}
    policies = {("base", 0): (BASE, Cell(*BASE))}
    for cell, about in cells.items():
        for seed in range(seeds):
            arm = member_name(cell, None if seeds == 1 else seed)
            if older and seeds > 1:
                arm = f"{cell}_{seed}"
            arms[arm] = {
                "label": f"{cell.replace('_', ' ')}, seed {seed}" if seeds > 1 else cell,
                "fraction": about.fraction,
                "control": "action",
                "thoughts": about.thoughts,
                "direct_share": about.direct_share,
                "seed": seed,
                "cell": cell,
            }
            for checkpoint in checkpoints[1:]:
                part = checkpoint / checkpoints[-1]
                moved = zip(BASE, (about.cot, about.prompt), strict=True)
                rates = tuple(now + part * (then - now) for now, then in moved)
                policies[arm, checkpoint] = rates, about
    for (arm, checkpoint), (rates, about) in policies.items():
        for domain in domains:
            own = rng.normal(size=(games, states, 2)) * 0.6
            right = stats.norm.cdf((ease[domain] + own) / np.sqrt(0.25 + 0.49 + 0.36)) < rates
            valid = rng.random(right.shape[:2]) < about.valid
            chosen = None
            if about.chosen is not None:
                chosen = rng.random(right.shape[:2]) < about.chosen
            _write(run, right, valid, chosen, arm, checkpoint, domain, played)
    meta = {"name": "planted", "title": "Planted", "arms": arms, "checkpoints": list(checkpoints)}
    (run / "run.json").write_text(json.dumps(meta))
    return run


def _write(run, right, valid, chosen, arm, checkpoint, domain, played):
    where = {"arm": arm, "checkpoint": checkpoint, "domain": domain}
    for game, of_game in enumerate(right):
        name = f"{domain}-{game}"
        prompts = [
            ("look" if hit else "go") if well else None
            for hit, well in zip(of_game[:, 1], valid[game], strict=True)
        ]
        steps = [
            ("look" if hit else "take", prompt, "look")
            for hit, prompt in zip(of_game[:, 0], prompts, strict=True)
        ]
        listed = None
        if chosen is not None:
            listed = ["look" if hit else "go" for hit in chosen[game]]
        write_episode(run, name, steps, driver="reference", chosen=listed, **where)
        if played:
            write_episode(run, name, [("look", "look")], success=bool(of_game[0, 0]), **where)
            step = [("look", prompts[0])]
            won = bool(of_game[0, 1] and valid[game, 0])
            write_episode(run, name, step, driver="prompt", success=won, **where)
