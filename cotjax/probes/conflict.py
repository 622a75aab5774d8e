"""D5: forces thoughts that support another action (`cotjax.diagnostics.conflict` says which)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from ml_collections import ConfigDict

from cotjax.data.codec import Codec
from cotjax.diagnostics.conflict import (
    CONTROLS,
    PROBE,
    VARIANTS,
    Conflict,
    ConflictRow,
    Trial,
    outcome_of,
)
from cotjax.diagnostics.episodes import action_of
from cotjax.errors import UsageError
from cotjax.formats import normalize_action
from cotjax.probes.forcing import Answer, Asked, Forcing, first_tokens, own_trace, tokens
from cotjax.probes.naming import (
    before_action,
    before_things,
    mentions,
    names,
    swapped,
    swaps,
    things,
)
from cotjax.probes.probe import Checkpoint, State
from cotjax.rollout.elicitation import DRAWN


@dataclass(frozen=True, eq=False)
class Trace:
    """A state's own thought, and the CoT action that it led to."""

    state: State
    thought: str
    action: str

    @property
    def game(self) -> str:
        """Id of the state's game."""
        return self.state.record.game.id

    @property
    def task_type(self) -> str:
        """Task type of the state's game."""
        return self.state.record.game.task_type

    @cached_property
    def variants(self) -> dict[str, str]:
        """Variant -> the thought as it is forced elsewhere."""
        return {
            "other": self.thought,
            "cut": before_things(self.thought, self.action),
            "cut_action": before_action(self.thought, self.action),
        }

    @cached_property
    def least_words(self) -> int:
        """Words of the shortest of these."""
        return min(len(thought.split()) for thought in self.variants.values())

    @cached_property
    def has_things(self) -> bool:
        """Whether the action names anything."""
        return bool(things(self.action))

    @cached_property
    def named(self) -> bool:
        """Whether the thought names all things of the action."""
        return names(self.thought, self.action)


@dataclass
class Plan:
    """What is forced at one state.

    Attributes:
      conflicts: variant -> the thought and its action.
      thoughts: variant or control -> the thought.
      missing: variant -> why there is none.
    """

    state: State
    own: str | None = None
    conflicts: dict[str, Conflict] = field(default_factory=dict)
    thoughts: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, variant: str, trace: Trace, action: str, thought: str) -> None:
        """Add a variant: a thought that comes from a trace and supports an action."""
        self.conflicts[variant] = Conflict(
            action=action, thought=thought, game=trace.game, turn=trace.state.number
        )
        self.thoughts[variant] = thought


class ConflictProbe:
    """The probe; its thoughts come from the checkpoint's own responses on expert states."""

    name: ClassVar[str] = PROBE
    title: ClassVar[str] = "conflicting traces"

    def check(self, config: ConfigDict) -> None:
        """Raise UsageError for a setting out of range, or where no CoT response is decoded."""
        settings = config.probes.conflict
        if unknown := set(settings.variants) - set(VARIANTS):
            raise UsageError(
                f"probes.conflict.variants: unknown variant {min(unknown)!r}; there are "
                f"{', '.join(VARIANTS)}"
            )
        if not settings.variants:
            raise UsageError("probes.conflict.variants is empty; name at least one variant")
        if settings.least_words < 1:
            raise UsageError(
                f"probes.conflict.least_words is {settings.least_words}; it must be at least 1"
            )
        check_thoughts_decoded(config, self.name)

    def settings(self, config: ConfigDict) -> dict[str, Any]:
        """Return the probe's own settings, and how actions are drawn."""
        return {**config.probes.conflict.to_dict(), **drawing(config)}

    def states(self, at: Checkpoint) -> list[State]:
        """Return the drawn expert states."""
        return at.expert_states

    def measure(self, states: Sequence[State], at: Checkpoint) -> Iterator[ConflictRow]:
        """Force the thoughts of every state."""
        planner = Planner(at)
        plans = {state.key: planner.plan(state) for state in states}
        forcing = Forcing(at, self.name)
        wanted = [
            (plan.state, [Asked(thought) for thought in plan.thoughts.values()])
            for plan in plans.values()
        ]
        for state, answers in forcing.decode(wanted):
            yield _row(plans[state.key], answers, at.codec)


def check_thoughts_decoded(config: ConfigDict, probe: str) -> None:
    """Raise UsageError where no CoT response is decoded on expert states."""
    kinds = {*config.evaluate.elicitations, *config.evaluate.offline}
    if not kinds & {"cot", "cot_constrained"}:
        raise UsageError(
            f"the probe {probe!r} needs CoT responses on expert states: add 'cot' to "
            "evaluate.elicitations or evaluate.offline, or leave it out of probes.names"
        )


def drawing(config: ConfigDict) -> dict[str, Any]:
    """Return the settings by which forced responses are drawn, and which states are."""
    settings = config.evaluate
    fields = (*DRAWN, "max_new_tokens", "max_action_tokens", "max_length")
    return {name: settings[name] for name in fields} | {
        "seed": config.seed,
        "states": config.probes.states,
    }


class Planner:
    """Finds the thoughts that are forced at states, among a checkpoint's own responses."""

    def __init__(self, at: Checkpoint):
        settings = at.config.probes.conflict
        self._codec, self._seed = at.codec, at.config.seed
        self._variants: tuple[str, ...] = tuple(settings.variants)
        self._least_words: int = settings.least_words
        self._by_domain: dict[str, list[Trace]] = defaultdict(list)
        for state in at.reference_states:
            if isinstance(own := own_trace(at.codec, state), tuple):
                self._by_domain[state.record.domain].append(Trace(state, *own))

    def plan(self, state: State) -> Plan:
        """Return what is forced at a state."""
        own, plan = own_trace(self._codec, state), Plan(state)
        if isinstance(own, str):
            plan.missing = dict.fromkeys(self._variants, own)
            return plan
        mine, plan.own = Trace(state, *own), own[1]
        rng = random.Random(f"{PROBE}/{self._seed}/{state.key}")
        if "swap" in self._variants:
            self._swap(plan, mine, rng)
        self._others(plan, mine, rng)
        self._controls(plan, mine, rng)
        return plan

    def _swap(self, plan: Plan, mine: Trace, rng: random.Random) -> None:
        """Swap one noun of the own thought, so that the thought names another action."""
        if not mine.named:
            plan.missing["swap"] = "not_named"
            return
        commands = mine.state.turn.admissible_commands
        listed = [each.action for each in self._of_the_task(mine)] if commands is None else commands
        found = []
        for swap in swaps(mine.action, dict.fromkeys(map(normalize_action, listed))):
            thought = swapped(mine.thought, swap)
            if thought is not None and names(thought, swap.action):
                # A name that the thought has already would say two things about one place.
                found.append((names(mine.thought, swap.action), swap.action, thought))
        if not found:
            plan.missing["swap"] = "no_other_action"
            return
        _, action, thought = rng.choice([each for each in found if each[0] == min(found)[0]])
        plan.add("swap", mine, action, thought)

    def _others(self, plan: Plan, mine: Trace, rng: random.Random) -> None:
        """Take the thought of another state that led to an action which is admissible here."""
        wanted = [
            variant for variant in ("other", "cut", "cut_action") if variant in self._variants
        ]
        listed = mine.state.turn.admissible_commands
        commands = None if listed is None else {*map(normalize_action, listed)}
        fitting = [
            each
            for each in self._of_the_task(mine)
            if each.action != mine.action
            and (commands is None or each.action in commands)
            # Of an action without things ("look") nobody can say where a thought names it.
            and each.has_things
        ]
        if not fitting:
            plan.missing |= dict.fromkeys(wanted, "no_other_action")
            return
        # One thought for all variants: one that names its action, and not at once.
        fitness = [self._fitness(each) for each in fitting]
        best = max(fitness)
        trace = rng.choice(
            [each for each, its in zip(fitting, fitness, strict=True) if its == best]
        )
        for variant in wanted:
            thought = trace.variants[variant]
            if variant == "other" and not trace.named:
                plan.missing[variant] = "not_named"
            elif len(thought.split()) < self._least_words:
                plan.missing[variant] = "too_short"
            else:
                plan.add(variant, trace, trace.action, thought)

    def _fitness(self, trace: Trace) -> int:
        """Return whether a thought names its action, and leaves enough where it is cut: 0 to 2."""
        return trace.named + (trace.least_words >= self._least_words)

    def _of_the_task(self, mine: Trace) -> list[Trace]:
        """Return the traces of other states of the task type in the state's domain.

        Where the environment lists no actions, those of the state's own game if there are any.
        """
        others = [
            each
            for each in self._by_domain[mine.state.record.domain]
            if each.task_type == mine.task_type and each.state.key != mine.state.key
        ]
        if mine.state.turn.admissible_commands is None:
            here = [each for each in others if each.game == mine.game]
            if any(each.action != mine.action for each in here):
                return here
        return others

    def _controls(self, plan: Plan, mine: Trace, rng: random.Random) -> None:
        """Add the controls of each variant, as long as its thought."""
        avoided = {mine.action, *(each.action for each in plan.conflicts.values())}
        same = [
            each
            for each in self._by_domain[mine.state.record.domain]
            if each.action == mine.action and each.state.key != mine.state.key
        ]
        near = [each for each in same if each.task_type == mine.task_type]
        words = mine.thought.split()
        rng.shuffle(words)
        texts = {
            "own": mine.thought,
            "same": _draw(near or same, rng),
            "irrelevant": self._irrelevant(mine, avoided, rng),
            "shuffled": " ".join(words),
            "empty": "",
        }
        for variant, conflict in plan.conflicts.items():
            length = tokens(self._codec, conflict.thought)
            for control in CONTROLS[variant]:
                text = texts[control]
                if text is not None:
                    cut = first_tokens(self._codec, text, length)
                    plan.thoughts[f"{control}_{variant}"] = cut

    def _irrelevant(self, mine: Trace, avoided: Iterable[str], rng: random.Random) -> str | None:
        """Draw a thought of another task type that mentions nothing of these actions."""
        here = self._by_domain[mine.state.record.domain]
        elsewhere = [each for traces in self._by_domain.values() for each in traces]
        for traces in (here, elsewhere):
            others = [each for each in traces if each.task_type != mine.task_type]
            for each in rng.sample(others, len(others)):
                if not any(mentions(each.thought, action) for action in avoided):
                    return each.thought
        return None


def _draw(traces: Sequence[Trace], rng: random.Random) -> str | None:
    return rng.choice(traces).thought if traces else None


def _row(plan: Plan, answers: dict[Asked, Answer], codec: Codec) -> ConflictRow:
    """Return the row of a state whose thoughts were forced."""
    missing, trials = dict(plan.missing), {}
    for variant, conflict in plan.conflicts.items():
        if not {variant, f"own_{variant}"} <= {
            name for name, thought in plan.thoughts.items() if Asked(thought) in answers
        }:
            missing[variant] = "too_long"
            continue
        for name in (variant, *(f"{control}_{variant}" for control in CONTROLS[variant])):
            answer = answers.get(Asked(plan.thoughts[name])) if name in plan.thoughts else None
            if answer is not None:
                trials[name] = Trial(
                    action=answer.action,
                    outcome=outcome_of(answer.action, str(plan.own), conflict.action),
                    tokens=answer.tokens,
                )
    return ConflictRow(
        **plan.state.place,
        own=plan.own,
        prompt=action_of(plan.state.turn.prompt),
        listed=plan.state.turn.admissible_commands is not None,
        conflicts=plan.conflicts,
        trials=trials,
        missing=missing,
    )
