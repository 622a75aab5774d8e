"""The fields of a config on the stages of AutoCoA (`cotjax autocoa`)."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

# The fields of a stage, with their defaults. Where one is 0 or (), the value is that of `train` or
# `masking`.
STAGE_FIELDS: dict[str, Any] = {
    "label": "",
    "lesson": "episodes",
    "start": "",
    "supervised": (),
    "choices": "",
    "steps": 0,
    "batch": 0,
    "learning_rate": 0.0,
}
_ACTED = ("REASONING", "ACTION_OPEN", "ACTION", "ACTION_CLOSE", "END")


def autocoa() -> ConfigDict:
    """Return the section `autocoa`.

    Of the other sections `games` says which questions there are, `model` what the first stage
    starts from, `train` and `masking` what a stage does not say itself, and `preference.trigger`
    the loss of choices.
    """
    autocoa = ConfigDict()
    # ---- lessons
    autocoa.choices = 500  # pairs of a chosen and a rejected way to go on, half each direction
    autocoa.episodes = 600  # episodes with a search
    autocoa.thinking = 120  # episodes of reasoning alone; 5 : 1 in the paper
    # Episodes of another invented world in both forms, beside the known facts: the base learns the
    # format from them, and nothing about this world.
    autocoa.other_episodes = 200
    # ---- gate behind the stage "facts"
    autocoa.least_known = 0.95  # share of the known facts that a closed-book answer gives
    autocoa.most_above_prior = 0.02  # the same of unknown facts, above that of a guess
    autocoa.stages = _stages()
    return autocoa


def _stages() -> ConfigDict:
    """Return the stages by name, in the order in which they run.

    label: for the output; "": the name.
    lesson: "facts" (known facts and the format), "choices" (action triggering), "episodes".
    start: the stage whose last checkpoint it starts from; "": model.base.
    supervised: roles that are trained on, as masking.supervised. With "OBSERVATION" episodes teach
      a world model, without it their results are masked.
    choices: file of choices (`cotjax data choices`); "": from the world's known and unknown facts.
    steps, batch, learning_rate: in place of those of `train`.
    """
    given: dict[str, dict[str, Any]] = {
        "base": {"label": "base", "lesson": "facts", "steps": 1200, "learning_rate": 3e-3},
        "sft1": {
            "label": "SFT-1, action triggering",
            "lesson": "choices",
            "start": "base",
            "steps": 60,
            "learning_rate": 1e-4,
        },
        "sft2": {"label": "SFT-2, observations masked", "start": "sft1", "supervised": _ACTED},
        "sft3": {
            "label": "SFT-3, world model",
            "start": "sft2",
            "supervised": ("OBSERVATION", *_ACTED),
        },
    }
    return ConfigDict({name: STAGE_FIELDS | own for name, own in given.items()})
