"""Episode records with counts that can be checked by hand."""

import json
from pathlib import Path

import pytest

from cotjax.rollout.record import (
    Choice,
    PlayedGame,
    Record,
    Response,
    Timing,
    Turn,
    record_path,
    write_record,
)
from cotjax.runtime.members import arm_and_seed
from cotjax.weights.hf_config import config_to_hf
from helpers import tiny

ELICITATION = {
    "temperature": 0.0,
    "max_new_tokens": 64,
    "max_action_tokens": 16,
    "max_steps": 30,
    "cot_prefix": "",
    "prompt_prefix": "<action>",
}
ARMS = {
    "sft": {"label": "standard SFT", "fraction": 0.0},
    "reduced": {"label": "reduced action supervision, k = 0.3", "fraction": 0.3},
}


def response(action: str | None, thought: str | None, tokens: int) -> Response:
    """Return a decoded response; an action of None is one that could not be parsed."""
    valid = action is not None
    return Response(
        text=f"<action> {action} </action>" if valid else "<action> go to",
        thought=thought,
        action=action,
        valid=valid,
        reason=None if valid else "unclosed_action",
        problem=None if valid else "no </action>",
        admissible=valid and action != "fly",
        ids=(1,) * tokens,
        new_tokens=tokens,
        stopped=True,
        seed=0,
        logprob=-1.0,
        logprobs=(-1.0 / tokens,) * tokens,
    )


def choice(action: str) -> Choice:
    """Return the choice of an action where one command is admissible."""
    return Choice(
        action=action,
        by_total=action,
        by_mean=action,
        logprobs=(-0.5,),
        tokens=(2,),
        prefix_ids=(5,),
        ids=(6, 7),
    )


def write_episode(
    run: Path,
    game: str,
    steps=(("look", "look"),),
    *,
    driver="cot",
    arm="sft",
    checkpoint=10,
    domain="in_domain",
    success=True,
    ended=None,
    observation="You see a plate 1.",
    thought="I need a plate.",
    elicitation=None,
    seed=0,
    sample=0,
    world="alfworld",
    chosen=None,
) -> Path:
    """Write a record of steps (CoT action, prompt action[, reference action]); return its path.

    The environment does not accept the action "nothing", and is sent no invalid one. `chosen`: the
    constrained prompt action of each step, the same by total and by mean. `arm`: or a member.
    """
    turns = []
    for number, (cot, prompt, *reference) in enumerate(steps):
        expert = reference[0] if reference else None
        listed = None if chosen is None else chosen[number]
        executed = {
            "cot": cot,
            "prompt": prompt,
            "reference": expert,
            "prompt_constrained": listed,
        }[driver]
        turn = Turn(
            observation=observation,
            admissible_commands=("look",),
            prompt_ids=(1, 2),
            prompt_length=2 * len(turns) + 2,
            cot=None if driver == "prompt" else response(cot, thought, 20),
            prompt=response(prompt, None, 4),
            prompt_constrained=None if listed is None else choice(listed),
            reference=expert,
            executed=executed or "",
            accepted=None if executed is None else executed != "nothing",
            score=None,
        )
        turns.append(turn)
    path = record_path(
        run / "records",
        arm=arm,
        checkpoint=checkpoint,
        driver=driver,
        game_id=f"{game}-{seed}" if seed else game,
        sample=sample,
    )
    broken = ended == "env_error"
    of_arm, training_seed = arm_and_seed(arm)
    record = Record(
        world=world,
        arm=of_arm,
        training_seed=training_seed,
        checkpoint=checkpoint,
        checkpoint_hash=f"{arm} {checkpoint}",
        games_hash="g",
        domain=domain,
        driver=driver,
        game=PlayedGame(id=game, task_type="pick", split="valid_unseen"),
        seed=seed,
        sample=sample,
        task="put a plate in fridge",
        success=success,
        score=None,
        ended=ended or ("won" if success else "step_limit"),
        env_error="the engine is gone" if broken else None,
        env_faults=("the engine is gone",) if broken else (),
        elicitation=elicitation or ELICITATION,
        steps=tuple(turns),
        final_observation="Done.",
        timing=Timing(environment_s=0.5, waited_s=0.25, sampler_s=1.5, total_s=2.0),
    )
    write_record(path, record)
    return path


@pytest.fixture
def episode():
    return write_episode


@pytest.fixture
def study(tmp_path) -> Path:
    """Write a small study: two arms, 12 in-domain and 12 OOD games, checkpoints 0 and 10.

    By CoT actions the base wins 2 games of 12 and sft 10; by prompt actions the base wins 1 and
    sft 9. The reduced arm equals sft, except that it wins all OOD games by CoT actions.
    """
    for arm, checkpoint in (("base", 0), ("sft", 10), ("reduced", 10)):
        for domain in ("in_domain", "ood"):
            for i in range(12):
                here = {"arm": arm, "checkpoint": checkpoint, "domain": domain}
                won = i < (2 if arm == "base" else 10) or (arm == "reduced" and domain == "ood")
                write_episode(
                    tmp_path,
                    f"{domain}-{i}",
                    [("look", "look"), ("take plate 1", "nothing")],
                    success=won,
                    **here,
                )
                write_episode(
                    tmp_path,
                    f"{domain}-{i}",
                    [("x", "nothing")] * 3,
                    driver="prompt",
                    success=i < (1 if arm == "base" else 9),
                    **here,
                )
                right = "open fridge 1" if arm != "base" else "look"
                steps = [
                    ("open fridge 1", right, "open fridge 1"),
                    ("look", "look", "look"),
                    ("go", "take", "put"),
                ]
                write_episode(tmp_path, f"{domain}-{i}", steps, driver="reference", **here)
    meta = {
        "name": "tiny",
        "title": "A tiny study",
        "arms": ARMS,
        "checkpoints": [0, 10],
        "model": {"parameters": 1_000_000, "base": "base"},
        "data": {"thought_provenance": {"scripted, before the action": 7}},
        "versions": {"jax": "0.0"},
        "devices": "8 emulated CPUs",
        "masking": {"redraw": True},
        "seconds": {"train": 1.5},
        "config": {"seed": 0},
    }
    (tmp_path / "run.json").write_text(json.dumps(meta))
    return tmp_path


@pytest.fixture
def model_folder(tmp_path) -> Path:
    """config.json alone."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_to_hf(tiny.model_config())))
    return folder
