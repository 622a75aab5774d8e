"""Tokens of sampled responses: their texts, their roles, and the weight of each in an arm's loss.

The weight is a mean. Where an arm drops the action of 30 % of its examples, a token of an action
counts in the other 70 %, and weighs 0.7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, NamedTuple

from cotjax.data.codec import Codec
from cotjax.masking import Dropping, MaskError, Role
from cotjax.masking.drop import AS_MANY
from cotjax.masking.sampled import response_roles
from cotjax.masking.weights import trainable

_DROPPING = (
    "fraction", "last_fraction", "fraction_steps", "unit", "redraw", "control", "action_close",
    "end", "supervised",
)  # fmt: skip


class RoleRun(NamedTuple):
    """Neighbouring tokens of one role. `weight`: of each in the loss; None where nothing trains."""

    role: str
    tokens: int
    weight: float | None


class TokenTexts:
    """The texts of a run's token ids, and the roles that follow from them.

    Args:
      run_folder: a run's folder.
      about: its run.json.
    """

    def __init__(self, run_folder: Path, about: Mapping[str, Any]):
        self._folder, self._about = run_folder, about

    @cached_property
    def codec(self) -> Codec | None:
        """The run's codec; None where the run has no tokenizer, as of a model at an endpoint."""
        settings = (self._about.get("prompt") or {}).get("settings") or {}
        made_from = (self._about.get("made_from") or {}).get("tokenizer") or {}
        known = Path(str(made_from.get("file"))).parent if made_from.get("file") else None
        for folder in (self._folder / "tokenizer", known):
            if folder is not None and (folder / "tokenizer.json").is_file():
                return Codec.load(folder, settings.get("template") or "chatml")
        return None

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each id; an id that is no token has none."""
        assert self.codec is not None
        pieces = self.codec.pieces
        return [(pieces[id] or "") if 0 <= id < len(pieces) else "" for id in ids]

    def prompt(self, ids: Sequence[int]) -> str:
        """Return the text of a prompt's ids; "" without a tokenizer."""
        return "" if self.codec is None else self.codec.decode(ids)

    def runs(
        self, ids: Sequence[int], prefilled: str, dropping: Dropping | None, step: int
    ) -> tuple[RoleRun, ...]:
        """Return the runs of equal roles of a response, with their mean weights in the loss.

        Args:
          ids: as they were sampled.
          prefilled: the text before them.
          dropping: what is dropped; None: no weights.
          step: the update, where the fraction follows a schedule.
        """
        return _runs(self._roles(tuple(ids), prefilled), dropping, step)

    @cached_property
    def _roles(self) -> Callable[[tuple[int, ...], str], tuple[Role, ...]]:
        # Many responses of a study are the same.
        return lru_cache(maxsize=1 << 16)(self._find_roles)

    def _find_roles(self, ids: tuple[int, ...], prefilled: str) -> tuple[Role, ...]:
        assert self.codec is not None
        texts = self.texts(ids)
        offsets = [
            _without_space(text, start)
            for text, start in zip(texts, accumulate(map(len, texts), initial=0), strict=False)
        ]
        end = self.codec.template.response_end
        roles, _ = response_roles("".join(texts), offsets, ends=(end,), prefilled=prefilled)
        return tuple(map(Role, roles.tolist()))


def _without_space(text: str, start: int) -> tuple[int, int]:
    """Return the (start, end) of a token's text without the space around it.

    Some tokenizers write a space before a tag, which would make it part of the action.
    """
    bare = text.strip()
    if not bare:
        return start, start + len(text)
    start += text.index(bare)
    return start, start + len(bare)


@lru_cache(maxsize=1 << 14)
def _runs(roles: tuple[Role, ...], dropping: Dropping | None, step: int) -> tuple[RoleRun, ...]:
    weights = None if dropping is None else mean_weights(roles, dropping, step)
    return tuple(
        RoleRun(role.name, len(list(tokens)), None if weights is None else weights[role])
        for role, tokens in groupby(roles)
    )


def dropping_of_arm(about: Mapping[str, Any], arm: str) -> Dropping | None:
    """Return what an arm trains on and drops; None where its run does not say, as for the base."""
    own = (about.get("arms") or {}).get(arm)
    if not isinstance(own, dict):
        return None
    settings = (about.get("masking") or {}) | own
    try:
        return Dropping.of(**{name: settings[name] for name in _DROPPING if name in settings})
    except (MaskError, TypeError):
        return None


def mean_weights(roles: Sequence[Role], dropping: Dropping, step: int) -> dict[Role, float]:
    """Return the mean weight that each role of a response has in the loss, over what is drawn.

    Args:
      roles: of the response's tokens.
      step: the update, where the fraction follows a schedule.
    """
    fraction = float(dropping.fraction_at(step))
    actions = sum(role in dropping.action_roles for role in roles)
    weights = {}
    for role in Role:
        supervised = role in trainable(dropping.supervised)
        chance = _chance_of_drop(role, roles, dropping, actions)
        weights[role] = round(float(supervised) * (1 - fraction * chance), 4)
    return weights


def _chance_of_drop(role: Role, roles: Sequence[Role], dropping: Dropping, actions: int) -> float:
    """Return the chance that a draw drops a token of this role."""
    if dropping.control in ("action", "query", "answer"):
        # A close or an end is dropped with the action before it.
        has_one = any(
            one in (Role.ACTION, Role.ANSWER) and one in dropping.action_roles for one in roles
        )
        return float(role in dropping.action_roles and (has_one or dropping.control == "action"))
    if dropping.control in ("reasoning", "reasoning tokens"):
        candidates: tuple[Role, ...] = (Role.REASONING,)
    else:
        candidates = trainable(dropping.supervised)
    if role not in candidates:
        return 0.0
    if dropping.control not in AS_MANY:
        return 1.0
    count = sum(role in candidates for role in roles)
    return min(1.0, actions / count) if count else 0.0
