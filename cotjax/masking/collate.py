"""A data collator for transformers' `Trainer` and TRL's `SFTTrainer`, for examples with roles."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cotjax.masking.arrays import checked_roles, integers
from cotjax.masking.drop import Dropping
from cotjax.masking.roles import RESPONSE_ROLES, MaskError, Role
from cotjax.masking.weights import check_supervision, labels, target_weights, trainable

FORMATS = ("pt", "np")


class MaskCollator:
    """Collate features `{"input_ids", "roles", "id"}` into `input_ids`, `attention_mask`, `labels`.

    All are [B, T] int64; labels are -100 where nothing is trained on. Tell both trainers to keep
    the
    features: `remove_unused_columns=False`, and for TRL also
    `dataset_kwargs={"skip_prepare_dataset": True}`.

    Args:
      pad_id: the tokenizer's id for padding.
      dropping: reduced action supervision or one of its controls; None drops nothing. It needs the
        "id" of each feature, a name that does not change between epochs.
      supervised: the roles that are trained on.
      max_length: an example with more tokens is an error (cut off, it could end within its action).
      padding_side: "right" or "left".
      pad_to_multiple_of: pad rows (with `flatten`: the row) to a multiple of this length; None: to
        the longest example.
      flatten: put all examples end to end in one row without padding, with `position_ids` that
        restart at each, for models whose attention separates packed examples by their positions.
      return_tensors: "pt" (torch) or "np".

    Attributes `epoch`, from 0, is used where `dropping.redraw` is true, and `step`, in updates,
    where the fraction follows a schedule. `mask_callback` sets both; in a loop of your own set
    them, or call `begin_epoch`, before you fetch a batch.

    Nothing is dropped from a feature with `"drop": False`, so that one trainer can evaluate on full
    labels; `evaluation()` drops nothing at all. Other columns are not part of the batch.

    Raises:
      MaskError: when called: there are no features, or a feature lacks a field, is too long, or is
        supervised nowhere or everywhere.
    """

    def __init__(
        self,
        pad_id: int,
        *,
        dropping: Dropping | None = None,
        supervised: Iterable[Role] = RESPONSE_ROLES,
        max_length: int | None = None,
        padding_side: str = "right",
        pad_to_multiple_of: int | None = None,
        flatten: bool = False,
        return_tensors: str = "pt",
    ):
        if padding_side not in ("right", "left"):
            raise MaskError(f"padding_side must be 'right' or 'left', not {padding_side!r}")
        if return_tensors not in FORMATS:
            raise MaskError(
                f"return_tensors must be one of {', '.join(FORMATS)}, not {return_tensors!r}"
            )
        if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
            raise MaskError(f"pad_to_multiple_of must be at least 1, not {pad_to_multiple_of}")
        if not isinstance(pad_id, int | np.integer) or pad_id < 0:
            raise MaskError(
                f"pad_id must be a token id, not {pad_id!r}; a tokenizer without one can pad with "
                "its end-of-turn token"
            )
        self.pad_id, self.dropping, self.supervised = pad_id, dropping, trainable(supervised)
        self.max_length, self.padding_side, self.flatten = max_length, padding_side, flatten
        self.multiple = pad_to_multiple_of or 1
        self._format = return_tensors
        self.epoch = 0
        self.step = 0
        self.batches: int | None = None  # since `begin_epoch`; None: not counted
        self._first_step, self._accumulate = 0, 1

    def begin_epoch(self, epoch: int, step: int, accumulate: int = 1) -> None:
        """Set the epoch, and count the steps of the following batches from `step` on.

        `accumulate` batches make one update. Data loaders prefetch, so the step of a batch is
        counted where the batch is made.
        """
        self.epoch, self.step = epoch, step
        self.batches, self._first_step, self._accumulate = 0, step, accumulate

    def evaluation(self) -> MaskCollator:
        """Return a copy of this collator that drops nothing, for held-out examples."""
        other = copy.copy(self)
        other.dropping = None
        return other

    def __call__(
        self, features: Sequence[Mapping[str, Any]], return_tensors: str | None = None
    ) -> dict[str, Any]:
        kind = return_tensors or self._format
        if kind not in FORMATS:
            raise MaskError(f"return_tensors must be one of {', '.join(FORMATS)}, not {kind!r}")
        if not features:
            raise MaskError("the batch holds no features")
        if self.batches is not None and any(
            not isinstance(feature, Mapping) or feature.get("drop", True) for feature in features
        ):
            self.step = self._first_step + _number(self.batches) // self._accumulate
            self.batches += 1
        examples = [self._example(feature, index) for index, feature in enumerate(features)]
        lengths = [len(ids) for ids, _, _ in examples]
        rows: list[Sequence[np.ndarray]]
        if self.flatten:
            rows = [[np.concatenate(parts)] for parts in zip(*examples, strict=True)]
            example_of = np.repeat(np.arange(1, len(examples) + 1), lengths)
            positions = np.concatenate(list(map(np.arange, lengths)))
        else:
            rows = list(zip(*examples, strict=True))
        length = -(-max(map(len, rows[0])) // self.multiple) * self.multiple
        ids, roles, dropped = (
            self._pad(parts, length, fill)
            for parts, fill in zip(rows, (self.pad_id, Role.PAD, False), strict=True)
        )
        segments = self._pad([example_of], length, 0) if self.flatten else None
        weights = target_weights(
            roles, segment_ids=segments, supervised=self.supervised, drop_tokens=dropped
        )
        batch = {"input_ids": ids, "labels": labels(ids, weights)}
        if self.flatten:
            # Padding is a segment of its own, whose positions restart too.
            padding = np.arange(length - len(positions))
            batch["position_ids"] = np.concatenate(
                [positions, padding] if self.padding_side == "right" else [padding, positions]
            )[None]
        else:
            batch["attention_mask"] = (roles != Role.PAD).astype(np.int64)
        if kind == "np":
            return batch
        import torch

        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _example(
        self, feature: Mapping[str, Any], index: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (ids int64, roles int8, dropped bool), each [T]."""
        name = feature.get("id") if isinstance(feature, Mapping) else None
        where = f"feature {index} of the batch" if name is None else f"example {name!r}"
        if not isinstance(feature, Mapping):
            raise MaskError(
                f"{where} must be a mapping with input_ids, roles and id, not "
                f"{type(feature).__name__}"
            )
        for field in ("input_ids", "roles"):
            if field not in feature:
                raise MaskError(
                    f"{where} has no {field!r}; it has {', '.join(sorted(feature))}. Make both "
                    "with roles_from_messages, and give the trainer remove_unused_columns=False"
                )
        ids = integers(feature["input_ids"], f"{where}: input_ids", np.int64, least=0)
        roles = checked_roles(feature["roles"], f"{where}: roles")
        if ids.shape != roles.shape or ids.ndim != 1:
            raise MaskError(
                f"{where}: input_ids have shape {ids.shape}, roles {roles.shape}; both must be [T]"
            )
        if self.max_length is not None and len(ids) > self.max_length:
            raise MaskError(
                f"{where} has {len(ids)} tokens, the limit is {self.max_length}; split it, or "
                "leave it out"
            )
        check_supervision(target_weights(roles, supervised=self.supervised), roles, where)
        if self.dropping is None or not feature.get("drop", True):
            return ids, roles, np.zeros(ids.shape, bool)
        if name is None:
            raise MaskError(
                f"{where} has no 'id', which decides whether its action loss is dropped"
            )
        return ids, roles, self.dropping.tokens(roles, str(name), epoch=self.epoch, step=self.step)

    def _pad(self, parts: Sequence[np.ndarray], length: int, fill: Any) -> np.ndarray:
        padded = np.full((len(parts), length), fill, parts[0].dtype)
        for row, part in zip(padded, parts, strict=True):
            start = 0 if self.padding_side == "right" else length - len(part)
            row[start : start + len(part)] = part
        return padded


def _number(batches: int) -> int:
    """Return the number of the next batch after `batches` of this process: workers take turns."""
    worker = None
    if "torch" in sys.modules:
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
    return batches if worker is None else batches * worker.num_workers + worker.id


def mask_callback(collator: MaskCollator) -> Any:
    """Return a `TrainerCallback` that gives a collator the epoch, and the step of each batch.

    accelerate's loaders make a batch while the previous one is trained on, so `state.global_step`
    is not the step of the batch that is being made.
    """
    from transformers import TrainerCallback

    class MaskCallback(TrainerCallback):
        """Begin the collator's epochs, and do not count batches of an evaluation as training."""

        batches: int | None = None  # of training, when an evaluation begins

        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if args.dataloader_num_workers and args.dataloader_persistent_workers:
                raise MaskError(
                    "persistent workers are not told about the next epoch: set "
                    "dataloader_persistent_workers=False"
                )

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            collator.begin_epoch(
                int(state.epoch or 0), state.global_step, args.gradient_accumulation_steps
            )
            self.batches = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.batches = collator.batches

        def on_evaluate(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            collator.batches = self.batches

    return MaskCallback()
