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
    "episodes": 0,
    "replay": 0.0,
    "simulated_steps": 0,
    "steps": 0,
    "batch": 0,
    "row_length": 0,
    "learning_rate": 0.0,
}
# The fields of an arm of the ablation, with their defaults.
AUTOCOA_ARM_FIELDS: dict[str, Any] = {"label": "", "at": "", "minus": "", "paper": ""}
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
    # Share of an episode's searches, but for the first, before which there is a needless one. The
    # text recovers from these slips, and they are not trained on.
    autocoa.slips = 0.0
    # Episodes of another invented world in both forms, beside the known facts: the base learns the
    # format from them, and nothing about this world.
    autocoa.other_episodes = 200
    # Episodes of one more invented world in what a stage replays, beside the texts of "facts".
    # Nothing of that world is known, so each fact is searched for.
    autocoa.replay_episodes = 0
    # Answers to each question about a single fact, without a search, of a base that was pretrained:
    # its facts are known where least_right of them are right, for lessons and figures. 0: as the
    # world says.
    autocoa.closed_book = 0
    autocoa.least_right = 4
    # ---- gate behind the stage "facts"
    autocoa.least_known = 0.95  # share of the known facts that a closed-book answer gives
    autocoa.most_above_prior = 0.02  # the same of unknown facts, above that of a guess
    # ---- what is played at the end, on the games of games.in_domain and games.ood
    # Plays of each game at temperature 0.7 and top_p 0.8, beside the greedy one; 3 in the paper.
    autocoa.samples = 0
    # Play the arms once more, with results that the policy writes itself: a stage's whose lesson
    # teaches to predict them, and all that start from it.
    autocoa.simulated = True
    # Choices about facts of test questions, after whose contradicting thoughts arms go on (D5).
    autocoa.grafts = 64
    # States of the expert's episodes of these games in which arms act (D1, D2, D4, D6, D7), half of
    # them before a search.
    autocoa.states = 64
    stages = _stages() | _played()
    autocoa.stages = ConfigDict({name: STAGE_FIELDS | own for name, own in stages.items()})
    autocoa.arms = _arms()
    return autocoa


def _stages() -> dict[str, dict[str, Any]]:
    """Return the stages that learn from texts, by name; each runs behind the one it starts from.

    label: for the output; "": the name.
    lesson: "facts" (known facts and the format), "choices" (action triggering), "episodes", or
      "play" (reinforcement learning, by the section `rl`).
    start: the stage whose last checkpoint it starts from; "": model.base.
    supervised: roles that are trained on, as masking.supervised. With "OBSERVATION" episodes teach
      a world model, without it their results are masked.
    choices: file of choices (`cotjax data choices`); "": from the world's known and unknown facts.
    episodes: so many episodes with a search alone; 0: autocoa.episodes and autocoa.thinking.
    replay: share of the tokens that are texts of the lesson "facts" again (what was learned from
      them is forgotten otherwise), and autocoa.replay_episodes of one more world.
    simulated_steps: of a stage that plays, the first steps, in which the policy writes the results
      of its searches itself (RL-1); in the others the world does (RL-2).
    steps, batch, row_length, learning_rate: in place of those of `train`. Texts longer than a row
      are left out, and counted. A stage warms up for train.warmup updates, or a quarter of its own
      where that is fewer.
    """
    return {
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
        "sft2_alone": {"label": "SFT-2 alone", "start": "base", "supervised": _ACTED},
        # Reinforcement learning alone needs a policy that searches at all, such as an instruct
        # model: here it has seen a few episodes.
        "few": {
            "label": "60 episodes",
            "start": "base",
            "supervised": _ACTED,
            "episodes": 60,
            "steps": 40,
        },
    }


def _played() -> dict[str, dict[str, Any]]:
    """Return the stages that learn from what they play, by name."""
    return {
        "rl": {
            "label": "RL-1, simulated, then RL-2, real",
            "lesson": "play",
            "start": "sft3",
            "steps": 96,
            "simulated_steps": 80,
            "learning_rate": 1e-4,
        },
        # The paper's best row: without a world model.
        "rl2": {
            "label": "RL-2 behind SFT-2",
            "lesson": "play",
            "start": "sft2",
            "steps": 96,
            "learning_rate": 1e-4,
        },
        "rl2_alone": {
            "label": "RL-2 alone",
            "lesson": "play",
            "start": "few",
            "steps": 96,
            "learning_rate": 1e-4,
        },
    }


def _arms() -> ConfigDict:
    """Return the arms of the ablation by name. The report has the paper's order.

    Arms share stages, so no stage is trained twice.

    label: for the report; "": the name.
    at: the checkpoint that is played: "sft2" (the stage's last one), "rl@80", or
      "rl@simulated" (the last one before the world answers searches).
    minus: the arm that it is compared with, on the same questions; "": none.
    paper: its row of the paper's table (`cotjax.report.autocoa.PAPER`); "": none.
    """
    given = {
        "base": {"label": "base", "at": "base"},
        "sft1": {"label": "SFT-1", "at": "sft1", "minus": "base", "paper": "SFT-1"},
        "sft2": {"label": "SFT-2", "at": "sft2_alone", "minus": "base", "paper": "SFT-2"},
        "sft1_2": {"label": "SFT-1+2", "at": "sft2", "minus": "sft2", "paper": "SFT-1+2"},
        "sft1_2_3": {
            "label": "SFT-1+2+3",
            "at": "sft3",
            "minus": "sft1_2",
            "paper": "SFT-1+2+3",
        },
        "rl1": {"label": "+RL-1", "at": "rl@simulated", "minus": "sft1_2_3", "paper": "+RL-1"},
        "rl1_2": {"label": "+RL-1+RL-2", "at": "rl", "minus": "rl1", "paper": "+RL-1+RL-2"},
        "sft1_2_rl2": {
            "label": "SFT-1+2+RL-2",
            "at": "rl2",
            "minus": "sft1_2",
            "paper": "SFT-1+2+RL-2",
        },
        "few": {"label": "60 episodes", "at": "few", "minus": "base"},
        "rl2": {"label": "RL-2 alone", "at": "rl2_alone", "minus": "few", "paper": "RL-2"},
    }
    return ConfigDict({name: AUTOCOA_ARM_FIELDS | own for name, own in given.items()})
