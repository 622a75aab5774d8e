"""Reduced action supervision: which tokens are dropped from the loss.

A pure function of (seed, example id, epoch, fraction): the same on every host, in any order, under
any packing and after a resume, and an analysis can compute it again. Subsets are nested: what is
dropped at a fraction of 0.1 is also dropped at 0.3, so the fraction may follow a schedule over
steps.

The controls drop other tokens at the same level, drawn from the same seed. They separate the effect
of *which* tokens are dropped from the effect of dropping tokens at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cotjax.masking.arrays import checked_roles, integers
from cotjax.masking.roles import RESPONSE_ROLES, MaskError, Role
from cotjax.masking.weights import trainable

UNITS = ("example", "turn", "token")
CONTROLS = (
    *("action", "random tokens", "reasoning", "reasoning tokens", "examples"),
    *("query", "answer"),
)
# Kinds of action, which of one growing text can be dropped by themselves.
_ACTIONS = {
    "action": (Role.ACTION, Role.ANSWER),
    "query": (Role.ACTION,),
    "answer": (Role.ANSWER,),
}
# Controls that drop as many tokens as the action has, drawn at random.
AS_MANY = ("random tokens", "reasoning tokens")
NEVER = np.float32(2.0)  # the draw of a token that no fraction drops
_STEPS = 2.0**24  # draws are multiples of 1 / _STEPS, which float32 holds exactly


def draw(seed: int, key: str, epoch: int | None = None) -> float:
    """Return a number in [0, 1) from a stable hash, exact in float32; each epoch has its own."""
    return float((_hash(seed, key, epoch) >> 40) / _STEPS)


def drops_action(seed: int, example_id: str, fraction: float, epoch: int | None = None) -> bool:
    """Return whether the action loss of an example is dropped.

    With `epoch=None` the subset is fixed for the run; with an epoch it is redrawn each time.

    Raises:
      MaskError: `fraction` is outside 0..1.
    """
    return bool(draw(seed, example_id, epoch) < np.float32(_checked(fraction)))


@dataclass(frozen=True)
class LinearFraction:
    """A fraction that goes from `start` at step 0 to `end` at step `steps`, and stays there."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        for fraction in (self.start, self.end):
            _checked(fraction)
        if self.steps <= 0:
            raise MaskError(f"a schedule needs at least one step, not {self.steps}")

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(max(step, 0) / self.steps, 1.0)


@dataclass(frozen=True)
class Dropping:
    """Which tokens are dropped from the loss, at what fraction, and how they are drawn.

    fraction: k, the share of draws that drop (0.3 is the published default), or a schedule that
      returns it for a step.
    seed: of the draw.
    unit: the level at which is drawn: an "example" (a conversation), a "turn" (one response), or a
      "token" (each action token by itself).
    redraw: draw again each epoch; else the subset is fixed.
    control: what a draw drops. "action": the tokens of the action; of one growing text "query" and
      "answer" are those of searches and of the answer alone. The others are controls: "random
      tokens" drops as many supervised tokens of the example or turn, at random; "reasoning" its
      reasoning; "reasoning tokens" as many tokens of the reasoning, at random; "examples" all of it
      (many more tokens at the same fraction).
    action_close, end: whether the action includes `</action>`, and the end-of-turn token, after it.
    supervised: the roles that are trained on, from which "random tokens" and "examples" take.
    """

    fraction: float | Callable[[int], float] = 0.3
    seed: int = 0
    unit: str = "example"
    redraw: bool = False
    control: str = "action"
    action_close: bool = False
    end: bool = False
    supervised: tuple[Role, ...] = RESPONSE_ROLES

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise MaskError(f"unknown unit {self.unit!r}; there are {', '.join(UNITS)}")
        if self.control not in CONTROLS:
            raise MaskError(f"unknown control {self.control!r}; there are {', '.join(CONTROLS)}")
        if self.unit == "token" and self.control not in (*_ACTIONS, *AS_MANY):
            raise MaskError(
                f"the control {self.control!r} drops whole examples or turns: "
                "with it, the unit must be 'example' or 'turn'"
            )
        if not callable(self.fraction):
            _checked(self.fraction)
        trainable(self.supervised)

    @classmethod
    def of(
        cls,
        *,
        fraction: float = 0.0,
        last_fraction: float = 0.0,
        fraction_steps: int = 0,
        unit: str = "turn",
        supervised: Iterable[str] = tuple(role.name for role in RESPONSE_ROLES),
        **fields: Any,
    ) -> Dropping:
        """Return the dropping that the plain values of a config file describe.

        Args:
          fraction, last_fraction, fraction_steps: the fraction, constant where `fraction_steps` is
            0; else it goes to `last_fraction` over that many updates.
          supervised: names of roles.
          fields: further fields of `Dropping`, under their own names.

        Raises:
          MaskError: a value is out of range, or a name is unknown.
        """
        names = tuple(supervised)
        for name in names:
            if name not in Role.__members__:
                raise MaskError(
                    f"supervised: unknown role {name!r}; there are {', '.join(Role.__members__)}"
                )
        schedule = (
            LinearFraction(fraction, last_fraction, fraction_steps) if fraction_steps else fraction
        )
        return cls(schedule, unit=unit, supervised=tuple(Role[name] for name in names), **fields)

    def values(self) -> dict[str, Any]:
        """Return the plain values that `of` makes this dropping from, for a record in JSON.

        Raises:
          MaskError: the fraction follows a schedule other than `LinearFraction`.
        """
        schedule = self.fraction
        if isinstance(schedule, LinearFraction):
            first, last, steps = schedule.start, schedule.end, schedule.steps
        elif callable(schedule):
            raise MaskError(f"the schedule {schedule!r} has no plain values; use LinearFraction")
        else:
            first, last, steps = schedule, 0.0, 0
        return {
            "seed": self.seed,
            "fraction": first,
            "last_fraction": last,
            "fraction_steps": steps,
            "unit": self.unit,
            "control": self.control,
            "redraw": self.redraw,
            "action_close": self.action_close,
            "end": self.end,
            "supervised": tuple(Role(role).name for role in self.supervised),
        }

    def fraction_at(self, step: int = 0) -> float:
        """Return the fraction at a step, in updates.

        Raises:
          MaskError: a schedule returns a number outside 0..1.
        """
        return _checked(self.fraction(step)) if callable(self.fraction) else self.fraction

    def drops(self) -> bool:
        """Return whether anything is ever dropped."""
        return self.largest > 0

    @property
    def largest(self) -> float:
        """An upper bound of the fraction over all steps."""
        if isinstance(self.fraction, LinearFraction):
            return max(self.fraction.start, self.fraction.end)
        return 1.0 if callable(self.fraction) else self.fraction

    @property
    def action_roles(self) -> tuple[Role, ...]:
        """The roles of the tokens that "action" drops, or "query" or "answer"."""
        return (
            *_ACTIONS.get(self.control, _ACTIONS["action"]),
            *((Role.ACTION_CLOSE,) if self.action_close else ()),
            *((Role.END,) if self.end else ()),
        )

    def tokens(
        self,
        roles: np.ndarray,
        example_id: str,
        *,
        turns: np.ndarray | None = None,
        epoch: int | None = None,
        step: int = 0,
    ) -> np.ndarray:
        """Return the dropped tokens of one example, for `target_weights(roles, drop_tokens=...)`.

        Args:
          roles: [T] int, of one example (drop before packing; packing then changes nothing).
          example_id: its stable name.
          turns: [T] int, the response that each token belongs to (None: `turn_numbers(roles)`).
          epoch: counted from 0; ignored unless `redraw`.
          step: the update that this example is for, where the fraction follows a schedule.

        Returns:
          [T] bool.

        Raises:
          MaskError: as `draws`.
        """
        draws = self.draws(roles, example_id, turns=turns, epoch=epoch)
        return draws < np.float32(self.fraction_at(step))

    def draws(
        self,
        roles: np.ndarray,
        example_id: str,
        *,
        turns: np.ndarray | None = None,
        epoch: int | None = None,
    ) -> np.ndarray:
        """Return the fraction above which each token is dropped: [T] float32 in [0, 1), or NEVER.

        NEVER is 2, so `draws < fraction` is `tokens`. Draws do not depend on the fraction, so a
        jitted step can compare them with a fraction that changes from step to step.

        Raises:
          MaskError: the roles are not of one example, `redraw` is set and there is no epoch, or a
            control of as many tokens has fewer to take than the action has, in a draw below the
            largest fraction of this run. The message names the example and the turn.
        """
        roles, turns = self._checked_example(roles, example_id, turns, epoch)
        epoch = epoch if self.redraw else None
        draws = np.full(roles.shape, NEVER, np.float32)
        is_action = self._is_action(roles, turns)
        responses = _is_one_of(roles, RESPONSE_ROLES)
        # The first token, and the first after padding, is not a target.
        is_target = np.append(False, roles[:-1] != Role.PAD)[: len(roles)]
        for turn in (None,) if self.unit == "example" else np.unique(turns[responses]):
            level = is_target & responses & (True if turn is None else turns == turn)
            key = example_id if turn is None else f"{example_id}#{turn}"
            action = level & is_action
            count = int(action.sum())
            drawn = (
                _draws(self.seed, f"{key}/tokens", epoch, count)
                if self.unit == "token"
                else np.float32(draw(self.seed, key, epoch))
            )
            candidates = self._candidates(level, action, roles)
            if len(candidates) >= count or self.control not in AS_MANY:
                draws[self._chosen(candidates, count, key, epoch)] = drawn
            # Too few candidates are an error only where this run ever drops here.
            elif np.min(drawn) < np.float32(self.largest):
                raise MaskError(
                    f"{key!r}: {count} action tokens, but only {len(candidates)} tokens for the "
                    f"control {self.control!r} to drop instead"
                )
        return draws

    def _checked_example(
        self, roles: Any, example_id: str, turns: Any, epoch: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (roles, turns), each [T], of one example. Raises MaskError as `draws`."""
        name = f"example {example_id!r}"
        roles = checked_roles(roles, f"{name}: roles")
        if roles.ndim != 1:
            raise MaskError(f"{name}: roles of one example have one axis, not shape {roles.shape}")
        if self.redraw and epoch is None:
            raise MaskError(f"{name}: a subset that is redrawn each epoch needs the epoch")
        if turns is None:
            return roles, turn_numbers(roles)
        turns = integers(turns, f"{name}: turns", np.int64)
        if turns.shape != roles.shape:
            raise MaskError(f"{name}: turns have shape {turns.shape}, roles {roles.shape}")
        return roles, turns

    def _is_action(self, roles: np.ndarray, turns: np.ndarray) -> np.ndarray:
        """Return [T] bool: the tokens that "action" drops, or "query" or "answer".

        A close or an end after a query is no part of an answer, nor the reverse.
        """
        is_action = _is_one_of(roles, self.action_roles)
        kinds = _ACTIONS.get(self.control, _ACTIONS["action"])
        if kinds == _ACTIONS["action"]:
            return is_action
        at = np.arange(len(roles))
        last = np.maximum.accumulate(np.where(_is_one_of(roles, _ACTIONS["action"]), at, -1))
        own = (last >= 0) & (turns[last] == turns) & _is_one_of(roles, kinds)[last]
        return is_action & own

    def _candidates(self, level: np.ndarray, action: np.ndarray, roles: np.ndarray) -> np.ndarray:
        """Return the positions that the control takes from, in an example or turn: [N] int."""
        if self.control in _ACTIONS:
            return np.flatnonzero(action)
        if self.control in ("reasoning", "reasoning tokens"):
            return np.flatnonzero(level & (roles == Role.REASONING))
        return np.flatnonzero(level & _is_one_of(roles, trainable(self.supervised)))

    def _chosen(
        self, candidates: np.ndarray, count: int, key: str, epoch: int | None
    ) -> np.ndarray:
        """Return the candidates that a draw drops: all, or `count` of them at random."""
        if self.control not in AS_MANY:
            return candidates
        order = np.argsort(
            _draws(self.seed, f"{key}/{self.control}", epoch, len(candidates)), kind="stable"
        )
        return np.sort(candidates[order[:count]])


def turn_numbers(roles: np.ndarray) -> np.ndarray:
    """Return the response that each token belongs to, from 0: [T] int32.

    A prompt belongs to the response after it.

    Raises:
      MaskError: the roles are not of one example.
    """
    roles = checked_roles(roles)
    if roles.ndim != 1:
        raise MaskError(f"roles of one example have one axis, not shape {roles.shape}")
    responses = _is_one_of(roles, RESPONSE_ROLES)
    ends = responses[:-1] & ~responses[1:]
    return np.concatenate([[0], np.cumsum(ends)]).astype(np.int32)[: len(responses)]


def _is_one_of(roles: np.ndarray, which: Iterable[Role]) -> np.ndarray:
    table = np.zeros(len(Role), bool)
    table[[int(role) for role in which]] = True
    return table[roles]


def _hash(seed: int, key: str, epoch: int | None) -> int:
    text = f"{seed}\x00{'' if epoch is None else epoch}\x00{key}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _draws(seed: int, key: str, epoch: int | None, count: int) -> np.ndarray:
    """Return [count] numbers in [0, 1), exact in float32."""
    # The stream of a bit generator stays the same over versions of numpy.
    raw = np.random.Philox(key=_hash(seed, key, epoch)).random_raw(count)
    return (np.asarray(raw, np.uint64) >> np.uint64(40)).astype(np.float32) / np.float32(_STEPS)


def _checked(fraction: Any) -> Any:
    """Return a fraction as it is. Raises MaskError unless it is a number in 0..1."""
    is_number = isinstance(fraction, int | float | np.integer | np.floating)
    if not is_number or not 0.0 <= fraction <= 1.0:
        raise MaskError(f"the fraction that is dropped must be in 0..1, not {fraction!r}")
    return fraction
