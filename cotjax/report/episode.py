"""One episode as the page shows it, step by step with both actions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cotjax.diagnostics.episodes import action_of, compared
from cotjax.report.labels import domain_label
from cotjax.report.summary import Summary
from cotjax.report.viewer.make import FOLDER as VIEWER
from cotjax.report.viewer.make import address, run_names
from cotjax.rollout.record import PlayedGame, Response, read_record


@dataclass(frozen=True)
class ShownAction:
    """An action as the page shows it. `note`: why it was not carried out, if so."""

    text: str
    note: str


@dataclass(frozen=True)
class ShownStep:
    """A step of the shown episode.

    Attributes:
      prompt: None where no prompt action was decoded.
      same: None where there are no two actions to compare.
    """

    observation: str
    thought: str
    cot: ShownAction
    prompt: ShownAction | None
    same: bool | None
    accepted: bool | None


@dataclass(frozen=True)
class ShownEpisode:
    """The episode that the page shows.

    Attributes:
      revisions: number of steps whose actions differ.
      link: address of its first step in the viewer.
    """

    task: str
    success: bool
    checkpoint: int
    game: PlayedGame
    arm: str
    domain: str
    steps: tuple[ShownStep, ...]
    revisions: int
    final_observation: str | None
    link: str


def shown_episode(run_folder: Path, summary: Summary) -> ShownEpisode | None:
    """Return the shown episode, each step with both actions; None where there is none."""
    if summary.shown_episode is None:
        return None
    record = read_record(run_folder / summary.shown_episode)
    steps = []
    for turn in record.steps:
        assert turn.cot is not None, "the episode is CoT-driven"
        steps.append(
            ShownStep(
                observation=turn.observation,
                thought=(turn.cot.thought or "").strip(),
                cot=_shown_action(turn.cot),
                prompt=None if turn.prompt is None else _shown_action(turn.prompt),
                same=compared(turn.cot, turn.prompt),
                accepted=turn.accepted,
            )
        )
    arm = summary.arms.get(record.arm)
    return ShownEpisode(
        task=record.task,
        success=record.success,
        checkpoint=record.checkpoint,
        game=record.game,
        arm=arm.label if arm else "base model",
        domain=domain_label(record.domain),
        steps=tuple(steps),
        revisions=sum(step.same is False for step in steps),
        final_observation=record.final_observation,
        link=f"{VIEWER}/index.html{address(run_names([run_folder])[0], record, 0)}",
    )


def _shown_action(response: Response) -> ShownAction:
    text = action_of(response)
    if text is None:
        problem = response.problem or "no action"
        return ShownAction(response.text.strip(), f"invalid: {problem}")
    return ShownAction(text, "not admissible here" if response.admissible is False else "")
