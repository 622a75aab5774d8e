r"""What a model knows by heart: questions about single facts, answered without a search.

The answer stands right behind the prompt, as `</think> \boxed{…}`. It is right if each of its ids,
and the brace that ends it, is the most likely one behind those before it, so if greedy decoding
gives it. One pass over the right answers shows that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cotjax.data.codec import Codec
from cotjax.data.growing import recall_example
from cotjax.data.tokens import TokenExample
from cotjax.envs.lessons import Recall
from cotjax.errors import DataError
from cotjax.masking import Role, target_weights, targets
from cotjax.model import decoder
from cotjax.model.config import ModelConfig
from cotjax.model.params import Params, param_shardings
from cotjax.model.sharding import batch_sharding

_ROWS = 32  # questions at once, or the next multiple of the devices
_ANSWER = (Role.ANSWER, Role.ACTION_CLOSE)


@dataclass(frozen=True)
class ClosedBook:
    """Shares of the questions that are answered right, by whether their facts are known.

    prior: share of the unknown ones that a guess among all candidates would answer right.
    """

    known: float
    known_questions: int
    unknown: float
    unknown_questions: int
    prior: float

    def lines(self) -> Iterator[str]:
        """Yield lines of text."""
        yield f"closed book: {self.known:.1%} of {self.known_questions:,} known facts"
        yield (
            f"closed book: {self.unknown:.1%} of {self.unknown_questions:,} unknown facts; a guess "
            f"is right for {self.prior:.1%}"
        )

    def check(self, least_known: float, most_above_prior: float, field: str) -> None:
        """Raise DataError unless known facts are known, and the others are not.

        `field`: the setting that makes training longer, for the message.
        """
        if self.known < least_known:
            raise DataError(
                f"the base knows {self.known:.1%} of the known facts, and autocoa.least_known is "
                f"{least_known:.1%}: raise {field} or its learning rate, or lower that"
            )
        if self.unknown > self.prior + most_above_prior:
            raise DataError(
                f"the base answers {self.unknown:.1%} of the questions about unknown facts, where "
                f"a guess gives {self.prior:.1%} and autocoa.most_above_prior allows "
                f"{most_above_prior:.1%} more: does its data state them?"
            )

    def values(self) -> dict[str, Any]:
        """Return the figures as JSON."""
        return asdict(self)


def closed_book(
    model: ModelConfig,
    params: Params,
    mesh: Mesh,
    codec: Codec,
    recalls: Sequence[Recall],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ClosedBook:
    """Return what a model knows of these facts.

    Raises DataError where there are no known or no unknown facts, or one cannot be encoded.
    """
    known = np.array([recall.known for recall in recalls], bool)
    if known.all() or not known.any():
        which = "known" if not known.any() else "unknown"
        raise DataError(f"none of {len(known)} facts is {which}; there is nothing to compare")
    right = answered(model, params, mesh, [recall_example(codec, one) for one in recalls], progress)
    guesses = np.array([1 / recall.candidates for recall in recalls])
    return ClosedBook(
        float(right[known].mean()),
        int(known.sum()),
        float(right[~known].mean()),
        int((~known).sum()),
        float(guesses[~known].mean()),
    )


def answered(
    model: ModelConfig,
    params: Params,
    mesh: Mesh,
    examples: Sequence[TokenExample],
    progress: Callable[[int, int], None],
) -> np.ndarray:
    """Return whether greedy decoding gives the answer of each example, [N] bool."""
    T = max(len(example.ids) for example in examples)
    rows = -(-_ROWS // mesh.size) * mesh.size
    found: list[np.ndarray] = []
    fields = dict.fromkeys(_padded(examples[0], T), batch_sharding(mesh))
    right = jax.jit(partial(_right, model), in_shardings=(param_shardings(model, mesh), fields))
    with jax.set_mesh(mesh):
        for first in range(0, len(examples), rows):
            own = [_padded(example, T) for example in examples[first : first + rows]]
            own += [own[-1]] * (rows - len(own))
            batch = {name: np.stack([row[name] for row in own]) for name in own[0]}
            found.append(np.asarray(right(params, batch)))
            progress(min(first + rows, len(examples)), len(examples))
    return np.concatenate(found)[: len(examples)]


def _padded(example: TokenExample, length: int) -> dict[str, np.ndarray]:
    weights = target_weights(example.roles, supervised=_ANSWER)
    row = {
        "ids": example.ids,
        "targets": targets(example.ids),
        "weights": weights,
        "positions": example.positions,
        "segment_ids": np.ones_like(example.ids),
        "branches": example.branches,
    }
    return {name: np.pad(array, (0, length - len(array))) for name, array in row.items()}


def _right(model: ModelConfig, params: Params, batch: dict[str, jax.Array]) -> jax.Array:
    places = batch["positions"], batch["segment_ids"], batch["branches"]
    hidden_BTD = decoder.hidden_states(model, params, batch["ids"], *places)
    chosen_BT = decoder.logits(model, params, hidden_BTD).argmax(-1)
    return jnp.all((chosen_BT == batch["targets"]) | (batch["weights"] == 0), axis=-1)
