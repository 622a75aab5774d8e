"""Which steps of a trajectory file are trained on, as which examples, and a count by reason of those that are not.

The dataset builder and `cotjax data check --config` both go through `Selection.examples`, so a check says what a run will do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from cotjax.data.codec import Codec
from cotjax.data.tokens import NO_THOUGHT, Layout, TokenExample, trajectory_examples
from cotjax.data.trajectories import Trajectory
from cotjax.errors import UsageError
from cotjax.masking import draw

# Why a step is not trained on: code -> what a person reads.
REASONS = {
    "split": "of another split than data.splits",
    "lost": "of an episode that was lost",
    "task_type": "of a task type that is held out",
    "untrained": "marked as not trained on",
    "no_thought": "without a thought",
    "too_long": "too long with their prompt for data.max_length",
}
UNKNOWN_PROVENANCE, SILENT = "not known", "no thought"
OTHERS = "other values"
_COUNTERS = ("splits", "thought_provenance")  # fields of Counts
_KEPT = 1000  # values of a field that are told apart


@dataclass(frozen=True)
class Selection:
    """What of a trajectory file is trained on, and in which form.

    `splits`: only episodes of these (empty: all). `won_only`: leave out lost episodes; one whose outcome nobody knows stays.
    `task_types`: only these (None: all); `held_out`: none of these. `direct_share`: the share of trajectories written in the direct
    form (no reasoning), drawn by a stable hash of their id; the others in the CoT form. `no_thought`: what the CoT form does with a
    trained step that has no thought; see `trajectory_examples`. `max_length`: tokens an example. `layout`, `history`,
    `past_thoughts`: see `cotjax.data.tokens.Layout`.
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

    def __post_init__(self):
        if not 0.0 <= self.direct_share <= 1.0:
            raise UsageError(f"data.direct_share is {self.direct_share}; a share is from 0 to 1")
        if self.no_thought not in NO_THOUGHT:
            raise UsageError(
                f"data.no_thought is {self.no_thought!r}; there are {', '.join(NO_THOUGHT)}"
            )
        if self.max_length < 1:
            raise UsageError(f"data.max_length is {self.max_length}; it must be at least 1")
        self._layout()

    @classmethod
    def of(cls, settings: Any, **more: Any) -> Selection:
        """The selection that an object with these fields asks for; of a config, its `data` section and, as `more`, the task types."""
        values = {
            f.name: getattr(settings, f.name) for f in fields(cls) if hasattr(settings, f.name)
        } | more
        return cls(**values | {"splits": tuple(split for split in values["splits"] if split)})

    def examples(self, codec: Codec, trajectory: Trajectory, counts: Counts) -> list[TokenExample]:
        """Encode what is trained on of a trajectory, and count it and the rest in `counts`.

        Raises:
          DataError: as `trajectory_examples`.
        """
        reason = self._left_out(trajectory)
        form = "direct" if draw(0, f"form/{trajectory.id}") < self.direct_share else "cot"
        made = []
        if reason is None:
            made = list(
                trajectory_examples(
                    codec, trajectory, form, self.max_length, self._layout(), self.no_thought
                )
            )
        counts.add(
            trajectory, made, reason, form, skips_silent=form == "cot" and self.no_thought == "skip"
        )
        return made

    def _layout(self) -> Layout:
        return Layout(self.layout, self.history, self.past_thoughts)

    def _left_out(self, trajectory: Trajectory) -> str | None:
        """Why no step of the trajectory is trained on, whatever is in it."""
        if self.splits and trajectory.split not in self.splits:
            return "split"
        if self.won_only and trajectory.success is False:
            return "lost"
        if trajectory.task_type in self.held_out or (
            self.task_types is not None and trajectory.task_type not in self.task_types
        ):
            return "task_type"
        return None


def tally(counts: Counter, value: str) -> None:
    """Count a value of a field. A field that is another in every line must not fill the memory."""
    counts[value if len(counts) < _KEPT or value in counts else OTHERS] += 1


@dataclass
class Counts:
    """What a selection makes of a file. `left_out`: reason (a key of REASONS) -> {"trajectories": in how many, "steps"}.

    trajectories, steps: read; trained_trajectories, trained_steps, examples, tokens: what there is to train on
    unknown_outcomes: trajectories to train on that nobody knows to be won
    splits: of all that was read; thought_provenance: of the thoughts trained on, and how many steps are trained without one
    """

    trajectories: int = 0
    steps: int = 0
    trained_trajectories: int = 0
    trained_steps: int = 0
    examples: int = 0
    tokens: int = 0
    unknown_outcomes: int = 0
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    splits: Counter = field(default_factory=Counter)
    thought_provenance: Counter = field(default_factory=Counter)

    def add(
        self,
        trajectory: Trajectory,
        examples: list[TokenExample],
        reason: str | None,
        form: str,
        *,
        skips_silent: bool,
    ) -> None:
        """Count one trajectory and the examples made of it in a form. `reason`: why none of it is trained on, where that does not
        depend on its steps. `skips_silent`: its steps without a thought are history alone."""
        trained = {int(step) for example in examples for step in example.steps}
        self.trajectories += 1
        self.steps += len(trajectory.steps)
        tally(self.splits, trajectory.split)
        self.trained_trajectories += bool(trained)
        self.trained_steps += len(trained)
        self.examples += len(examples)
        self.tokens += sum(len(example.ids) for example in examples)
        self.unknown_outcomes += bool(trained) and trajectory.success is None
        reasons = Counter()
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
            so_far = self.left_out.setdefault(name, {"trajectories": 0, "steps": 0})
            so_far["trajectories"] += 1
            so_far["steps"] += steps

    def lines(self) -> Iterator[str]:
        """What a person reads: what there is to train on, and each reason for leaving something out."""
        yield (
            f"{_number(self.examples, 'example')}: {self.trained_steps:,} of {_number(self.steps, 'step')}, "
            f"in {self.trained_trajectories:,} of {_trajectories(self.trajectories)}"
        )
        for name, text in REASONS.items():
            if found := self.left_out.get(name):
                yield f"left out: {_number(found['steps'], 'step')} {text}, in {_trajectories(found['trajectories'])}"
        if self.unknown_outcomes:
            yield f"trained on although nobody knows the outcome: {_trajectories(self.unknown_outcomes)}"

    def why_nothing(self) -> str:
        """Why there is nothing to train on, and which splits the file has."""
        reasons = ", ".join(
            f"{self.left_out[name]['steps']:,} {text}"
            for name, text in REASONS.items()
            if name in self.left_out
        )
        splits = ", ".join(f"{split!r} ({count:,})" for split, count in self.splits.most_common(12))
        return f"nothing to train on; of its {self.steps:,} steps are {reasons}; its trajectories are of the splits {splits}"

    @classmethod
    def of(cls, saved: dict[str, Any]) -> Counts:
        """From what `as_dict` gave, as JSON."""
        return cls(**saved | {name: Counter(saved[name]) for name in _COUNTERS})

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return vars(self) | {name: dict(getattr(self, name)) for name in _COUNTERS}


def _number(count: int, noun: str, plural: str = "") -> str:
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def _trajectories(count: int) -> str:
    return _number(count, "trajectory", "trajectories")
