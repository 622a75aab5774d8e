"""Reduced action supervision: which tokens lose their loss, as a pure function of (seed, example id, epoch, fraction).

The same on every host, in any order, under any packing and after a resume, and an analysis can ask it again. Subsets are nested:
what is dropped at a fraction of 0.1 is dropped at 0.3 too, so a fraction may also follow a schedule over steps.

The controls drop something else of the same units, drawn from the same seed: what a reviewer asks for, to tell the effect of
*which* tokens are dropped from that of dropping tokens at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cotjax.masking.arrays import checked_roles, integers
from cotjax.masking.roles import RESPONSE_ROLES, MaskError, Role
from cotjax.masking.weights import trainable

UNITS = ("example", "turn", "token")
CONTROLS = ("action", "random tokens", "reasoning", "reasoning tokens", "examples")
AS_MANY = (
    "random tokens",
    "reasoning tokens",
)  # controls that drop as many tokens as the action has, drawn at random
NEVER = np.float32(2.0)  # the draw of a token that no fraction drops
_STEPS = 2.0**24  # draws are multiples of 1 / _STEPS, which float32 holds exactly


def draw(seed: int, key: str, epoch: int | None = None) -> float:
    """A number in [0, 1) from a stable hash; with an epoch, another one each epoch. Exact in float32."""
    return float((_hash(seed, key, epoch) >> 40) / _STEPS)


def drops_action(seed: int, example_id: str, fraction: float, epoch: int | None = None) -> bool:
    """Whether this example's action loss is dropped. With `epoch=None` the subset is fixed for the whole run; with an epoch it
    is redrawn each time.

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

    def __post_init__(self):
        _checked(self.start), _checked(self.end)
        if self.steps <= 0:
            raise MaskError(f"a schedule needs at least one step, not {self.steps}")

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(max(step, 0) / self.steps, 1.0)


@dataclass(frozen=True)
class Dropping:
    """What is dropped, of what share of which units, and how it is drawn.

    fraction: k, the share of units that drop (0.3 is the published default), or a schedule from the step to it.
    seed: of the draw.
    unit: an "example" (a whole conversation), a "turn" (one response), or a "token" (each action token by itself).
    redraw: draw anew each epoch; else the subset is fixed.
    control: what the drawn units drop. "action": the action's tokens. The others are controls: "random tokens" drops as many
      of the unit's supervised tokens at random; "reasoning" the whole reasoning; "reasoning tokens" as many tokens of it, at
      random; "examples" all of the unit (many more tokens at the same fraction).
    action_close, end: whether the action's tokens include `</action>`, and the end-of-turn token.
    supervised: the roles that are trained on, from which "random tokens" and "examples" take.
    """

    fraction: float | LinearFraction = 0.3
    seed: int = 0
    unit: str = "example"
    redraw: bool = False
    control: str = "action"
    action_close: bool = False
    end: bool = False
    supervised: tuple[Role, ...] = RESPONSE_ROLES

    def __post_init__(self):
        if self.unit not in UNITS:
            raise MaskError(f"unknown unit {self.unit!r}; there are {', '.join(UNITS)}")
        if self.control not in CONTROLS:
            raise MaskError(f"unknown control {self.control!r}; there are {', '.join(CONTROLS)}")
        if self.unit == "token" and self.control not in (
            "action",
            "random tokens",
            "reasoning tokens",
        ):
            raise MaskError(
                f"the control {self.control!r} drops whole units: with it, the unit must be 'example' or 'turn'"
            )
        if not callable(self.fraction):
            _checked(self.fraction)
        trainable(self.supervised)

    def fraction_at(self, step: int = 0) -> float:
        """The fraction at a step, in updates.

        Raises:
          MaskError: a schedule gives what is outside 0..1.
        """
        return _checked(self.fraction(step)) if callable(self.fraction) else self.fraction

    @property
    def _most(self) -> float:
        """No step's fraction is above this."""
        if isinstance(self.fraction, LinearFraction):
            return max(self.fraction.start, self.fraction.end)
        return 1.0 if callable(self.fraction) else self.fraction

    @property
    def action_roles(self) -> tuple[Role, ...]:
        return (
            Role.ACTION,
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
        """The tokens of one example that lose their loss -> [T] bool, for `target_weights(roles, drop_tokens=...)`.

        Args:
          roles: [T] int, of one example (drop before packing; packing then changes nothing).
          example_id: its stable name.
          turns: [T] int, which response each token is of (None: counted off the roles by `turn_numbers`).
          epoch: counted from 0; of no effect unless `redraw`.
          step: the update that this example is for, where the fraction follows a schedule.

        Raises:
          MaskError: as `draws`.
        """
        return self.draws(roles, example_id, turns=turns, epoch=epoch) < np.float32(
            self.fraction_at(step)
        )

    def draws(
        self,
        roles: np.ndarray,
        example_id: str,
        *,
        turns: np.ndarray | None = None,
        epoch: int | None = None,
    ) -> np.ndarray:
        """The fraction above which each token loses its loss -> [T] float32 in [0, 1), and NEVER (2) for the others.

        `draws < fraction` is `tokens`; a jitted step can ask it with a fraction that changes from step to step.

        Raises:
          MaskError: the roles are not of one example, `redraw` is set and there is no epoch, or a control of as many tokens finds
            fewer than there are of action, in a unit that is dropped at some fraction of this run. It names the example and the turn.
        """
        roles = checked_roles(roles, f"example {example_id!r}: roles")
        if roles.ndim != 1:
            raise MaskError(
                f"example {example_id!r}: roles of one example have one axis, not shape {roles.shape}"
            )
        if self.redraw and epoch is None:
            raise MaskError(
                f"example {example_id!r}: a subset that is redrawn each epoch needs the epoch"
            )
        turns = (
            turn_numbers(roles)
            if turns is None
            else integers(turns, f"example {example_id!r}: turns", np.int64)
        )
        if turns.shape != roles.shape:
            raise MaskError(
                f"example {example_id!r}: turns have shape {turns.shape}, roles {roles.shape}"
            )
        epoch = epoch if self.redraw else None
        found = np.full(roles.shape, NEVER, np.float32)
        is_action = _among(roles, self.action_roles)
        responses = _among(roles, RESPONSE_ROLES)
        pool = np.append(False, roles[:-1] != Role.PAD)[
            : len(roles)
        ]  # the first token is no target
        for turn in np.unique(turns[responses]) if self.unit != "example" else (None,):
            here = pool & responses & (True if turn is None else turns == turn)
            key = example_id if turn is None else f"{example_id}#{turn}"
            action = here & is_action
            by_token = self.unit == "token"
            count = int(action.sum())
            drawn = (
                _draws(self.seed, f"{key}/tokens", epoch, count)
                if by_token
                else np.float32(draw(self.seed, key, epoch))
            )
            among = self._among(here, action, roles)
            if len(among) >= count or self.control not in AS_MANY:
                found[self._chosen(among, count, key, epoch)] = drawn
            # A unit that no fraction of this run draws may have too few.
            elif np.min(drawn) < np.float32(self._most):
                raise MaskError(
                    f"{key!r}: {count} action tokens, but only {len(among)} tokens for the control {self.control!r} to drop instead"
                )
        return found

    def _among(self, here: np.ndarray, action: np.ndarray, roles: np.ndarray) -> np.ndarray:
        """The places that the control takes from, in a unit: [N] int."""
        if self.control == "action":
            return np.flatnonzero(action)
        if self.control in ("reasoning", "reasoning tokens"):
            return np.flatnonzero(here & (roles == Role.REASONING))
        return np.flatnonzero(here & _among(roles, self.supervised))

    def _chosen(self, among: np.ndarray, count: int, key: str, epoch: int | None) -> np.ndarray:
        """The places of `among` that are dropped if the unit is drawn: all, or `count` of them at random."""
        if self.control not in AS_MANY:
            return among
        order = np.argsort(
            _draws(self.seed, f"{key}/{self.control}", epoch, len(among)), kind="stable"
        )
        return np.sort(among[order[:count]])


def turn_numbers(roles: np.ndarray) -> np.ndarray:
    """Which response each token is of, counted from 0 -> [T] int32; a prompt belongs to the response behind it.

    Raises:
      MaskError: the roles are not of one example.
    """
    roles = checked_roles(roles)
    if roles.ndim != 1:
        raise MaskError(f"roles of one example have one axis, not shape {roles.shape}")
    responses = _among(roles, RESPONSE_ROLES)
    ends = responses[:-1] & ~responses[1:]
    return np.concatenate([[0], np.cumsum(ends)]).astype(np.int32)[: len(responses)]


def _among(roles: np.ndarray, which: Iterable[Role]) -> np.ndarray:
    table = np.zeros(len(Role), bool)
    table[[int(role) for role in which]] = True
    return table[roles]


def _hash(seed: int, key: str, epoch: int | None) -> int:
    text = f"{seed}\x00{'' if epoch is None else epoch}\x00{key}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _draws(seed: int, key: str, epoch: int | None, count: int) -> np.ndarray:
    """[count] numbers in [0, 1), exact in float32; from a bit generator, whose stream numpy keeps from version to version."""
    raw = np.random.Philox(key=_hash(seed, key, epoch)).random_raw(count)
    return (np.asarray(raw, np.uint64) >> np.uint64(40)).astype(np.float32) / np.float32(_STEPS)


def _checked(fraction: float) -> float:
    if (
        not isinstance(fraction, int | float | np.integer | np.floating)
        or not 0.0 <= fraction <= 1.0
    ):
        raise MaskError(
            f"the fraction of examples that drop their action must be in 0..1, not {fraction!r}"
        )
    return fraction
