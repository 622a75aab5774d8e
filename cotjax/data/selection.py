"""Select the steps of a trajectory file to train on, and count by reason those that are not.

The dataset builder and `cotjax data check --config` both call `Selection.examples`, so a check
reports exactly what a run trains on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cotjax.data.codec import Codec
from cotjax.data.tokens import NO_THOUGHT, Layout, TokenExample, trajectory_examples
from cotjax.data.trajectories import Trajectory, read_trajectories
from cotjax.errors import DataError, UsageError
from cotjax.masking import draw

# Why a step is not trained on: code -> text for people.
REASONS = {
    "split": "of another split than data.splits",
    "lost": "of a lost episode",
    "task_type": "of a task type that is held out",
    "shown": "of an example in every prompt, or of its game",
    "untrained": "marked as not trained on",
    "no_thought": "without a thought",
    "too_long": "too long with their prompt for data.max_length",
}
UNKNOWN_PROVENANCE, SILENT = "not known", "no thought"
OTHERS = "other values"
_COUNTERS = ("splits", "thought_provenance")  # fields of Counts
_MAX_VALUES = 1000  # distinct values of a field that are counted apart


@dataclass(frozen=True)
class Selection:
    """Which steps of a trajectory file are trained on, and in which form.

    splits: train on episodes of these splits only (empty: all)
    won_only: leave out lost episodes; those with an unknown outcome stay
    task_types: train on these task types only (None: all)
    held_out: train on none of these task types
    direct_share: the share of trajectories written in the direct form (without reasoning), chosen
      by a stable hash of their id; the others are written in the CoT form
    no_thought: what the CoT form does with a trained step that has no thought; see
      `cotjax.data.tokens.trajectory_examples`
    max_length: tokens per example
    layout, history, past_thoughts: see `cotjax.data.tokens.Layout`
    shown: ids of trajectories that are not trained on, because of the examples in every prompt

    Raises:
      UsageError: a field has an invalid value.
    """

    splits: tuple[str, ...] = ("train",)
    won_only: bool = True
    task_types: tuple[str, ...] | None = None
    held_out: tuple[str, ...] = ()
    direct_share: float = 0.0
    no_thought: str = "skip"
    max_length: int = 768
    layout: str = "trajectory"
    history: int = 0
    past_thoughts: bool = False
    shown: tuple[str, ...] = ()

    def __post_init__(self):
        if not 0.0 <= self.direct_share <= 1.0:
            raise UsageError(f"data.direct_share is {self.direct_share}; it must be from 0 to 1")
        if self.no_thought not in NO_THOUGHT:
            raise UsageError(
                f"data.no_thought is {self.no_thought!r}; it must be one of {', '.join(NO_THOUGHT)}"
            )
        if self.max_length < 1:
            raise UsageError(f"data.max_length is {self.max_length}; it must be at least 1")
        self._layout()

    @classmethod
    def of(cls, settings: Any, **more: Any) -> Selection:
        """Return the selection with the fields of `settings`, and with `more`.

        Args:
          settings: an object such as a config's `data` section.
          more: further fields, such as the task types; they take precedence.
        """
        names = [field.name for field in fields(cls) if hasattr(settings, field.name)]
        values = {name: getattr(settings, name) for name in names} | more
        return cls(**values | {"splits": tuple(split for split in values["splits"] if split)})

    def examples(self, codec: Codec, trajectory: Trajectory, counts: Counts) -> list[TokenExample]:
        """Return the examples to train on of a trajectory, and count its steps in `counts`.

        Raises:
          DataError: as `trajectory_examples`.
        """
        reason = self.reason(trajectory)
        form = "direct" if draw(0, f"form/{trajectory.id}") < self.direct_share else "cot"
        examples: list[TokenExample] = []
        if reason is None:
            examples += trajectory_examples(
                codec, trajectory, form, self.max_length, self._layout(), self.no_thought
            )
        skips_silent = form == "cot" and self.no_thought == "skip"
        counts.add(trajectory, examples, reason, form, skips_silent=skips_silent)
        return examples

    def reason(self, trajectory: Trajectory) -> str | None:
        """Return why the whole trajectory is left out, a key of REASONS; None if it is not."""
        if self.splits and trajectory.split not in self.splits:
            return "split"
        if self.won_only and trajectory.success is False:
            return "lost"
        if trajectory.task_type in self.held_out or (
            self.task_types is not None and trajectory.task_type not in self.task_types
        ):
            return "task_type"
        return "shown" if trajectory.id in self.shown else None

    def read(self, codec: Codec, path: str | Path, counts: Counts) -> Iterator[TokenExample]:
        """Yield the examples to train on of a trajectory file, and count its steps in `counts`.

        Raises:
          DataError: a line is not a trajectory or cannot be encoded; or, at the end, there was
            nothing to train on.
        """
        # Every line is a trajectory, so its number is that of the line.
        for number, trajectory in enumerate(read_trajectories(path), start=1):
            try:
                examples = self.examples(codec, trajectory, counts)
            except DataError as error:
                raise DataError(f"{path}:{number}: {error}") from None
            yield from examples
        if not counts.examples:
            raise DataError(f"{path}: {counts.why_nothing()}")

    def _layout(self) -> Layout:
        return Layout(self.layout, self.history, self.past_thoughts)


def tally(counts: Counter[str], value: str) -> None:
    """Count a value of a field.

    Past `_MAX_VALUES` distinct values, new ones are counted together: a field that differs in every
    line must not fill the memory.
    """
    counts[value if len(counts) < _MAX_VALUES or value in counts else OTHERS] += 1


@dataclass
class Counts:
    """How much of a file a selection trains on.

    trajectories, steps: number read
    trained_trajectories, trained_steps, examples, tokens: number trained on
    unknown_outcomes: trajectories trained on whose outcome is unknown
    left_out: reason (a key of REASONS) -> {"trajectories": affected, "steps": left out}
    splits: trajectories read, by split
    thought_provenance: steps trained on, by the provenance of their thought
    """

    trajectories: int = 0
    steps: int = 0
    trained_trajectories: int = 0
    trained_steps: int = 0
    examples: int = 0
    tokens: int = 0
    unknown_outcomes: int = 0
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    splits: Counter[str] = field(default_factory=Counter)
    thought_provenance: Counter[str] = field(default_factory=Counter)

    def add(
        self,
        trajectory: Trajectory,
        examples: list[TokenExample],
        reason: str | None,
        form: str,
        *,
        skips_silent: bool,
    ) -> None:
        """Count one trajectory and its examples.

        Args:
          reason: why the whole trajectory is left out, a key of REASONS; None if it is not.
          form: the form of the examples, "cot" or "direct".
          skips_silent: steps without a thought are left out.
        """
        trained = {int(step) for example in examples for step in example.steps}
        self.trajectories += 1
        self.steps += len(trajectory.steps)
        tally(self.splits, trajectory.split)
        self.trained_trajectories += bool(trained)
        self.trained_steps += len(trained)
        self.examples += len(examples)
        self.tokens += sum(len(example.ids) for example in examples)
        self.unknown_outcomes += bool(trained) and trajectory.success is None
        reasons: Counter[str] = Counter()
        for number, step in enumerate(trajectory.steps):
            if number in trained:
                silent = form == "direct" or step.thought is None
                tally(
                    self.thought_provenance,
                    SILENT if silent else step.provenance or UNKNOWN_PROVENANCE,
                )
            elif reason is not None:
                reasons[reason] += 1
            elif not step.trained:
                reasons["untrained"] += 1
            elif skips_silent and step.thought is None:
                reasons["no_thought"] += 1
            else:
                reasons["too_long"] += 1
        for name, steps in reasons.items():
            affected = self.left_out.setdefault(name, {"trajectories": 0, "steps": 0})
            affected["trajectories"] += 1
            affected["steps"] += steps

    def lines(self) -> Iterator[str]:
        """Yield lines of text: what is trained on, then each reason with what it leaves out."""
        yield (
            f"{_number(self.examples, 'example')}: {self.trained_steps:,} of "
            f"{_number(self.steps, 'step')}, in {self.trained_trajectories:,} of "
            f"{_trajectories(self.trajectories)}"
        )
        for name, text in REASONS.items():
            if affected := self.left_out.get(name):
                steps, trajectories = affected["steps"], affected["trajectories"]
                yield f"left out: {_number(steps, 'step')} {text}, in {_trajectories(trajectories)}"
        if self.unknown_outcomes:
            yield f"trained on with unknown outcome: {_trajectories(self.unknown_outcomes)}"

    def why_nothing(self) -> str:
        """Return a sentence on why there is nothing to train on, with the splits of the file."""
        reasons = ", ".join(
            f"{self.left_out[name]['steps']:,} {text}"
            for name, text in REASONS.items()
            if name in self.left_out
        )
        splits = ", ".join(f"{split!r} ({count:,})" for split, count in self.splits.most_common(12))
        return (
            f"nothing to train on; of its {self.steps:,} steps are {reasons}; its trajectories are "
            f"of the splits {splits}"
        )

    @classmethod
    def of(cls, saved: dict[str, Any]) -> Counts:
        """Return the counts that `as_dict` saved."""
        return cls(**saved | {name: Counter(saved[name]) for name in _COUNTERS})

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as a JSON object."""
        return vars(self) | {name: dict(getattr(self, name)) for name in _COUNTERS}


def _number(count: int, noun: str, plural: str = "") -> str:
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def _trajectories(count: int) -> str:
    return _number(count, "trajectory", "trajectories")
