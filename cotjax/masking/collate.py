"""A data collator for transformers' `Trainer` and TRL's `SFTTrainer`: examples with roles -> padded or packed tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cotjax.masking.drop import Dropping
from cotjax.masking.roles import RESPONSE_ROLES, MaskError, Role
from cotjax.masking.weights import check_supervision, labels, target_weights

FORMATS = ("pt", "np")


class MaskCollator:
    """Features `{"input_ids", "roles", "id"}` -> `input_ids`, `attention_mask` and `labels` ([B, T], int64).

    Both trainers must be told to leave the features alone: `remove_unused_columns=False`, and for TRL also
    `dataset_kwargs={"skip_prepare_dataset": True}`. Labels are -100 where nothing is trained on.

    Args:
      pad_id: the tokenizer's id for padding.
      dropping: reduced action supervision or one of its controls; None trains on all that is supervised. It needs each feature's
        "id", a name that does not change from epoch to epoch.
      supervised: the roles that are trained on.
      max_length: an example longer than this, in tokens, is an error (a cut one could end within its action).
      padding_side: "right" or "left".
      flatten: one row of all examples end to end, without padding, with `position_ids` that start anew at each, instead of a
        padded batch: for models whose attention tells packed examples apart by their positions.
      return_tensors: "pt" (torch) or "np".

    `epoch` is counted from 0; set it where `dropping.redraw` is true (a `TrainerCallback` can, with dataloader_num_workers=0).
    `step` likewise, where the fraction follows a schedule.

    Raises:
      MaskError: when called: a feature lacks a field, is too long, or the batch is supervised nowhere or everywhere.
    """

    def __init__(
        self,
        pad_id: int,
        *,
        dropping: Dropping | None = None,
        supervised: Iterable[Role] = RESPONSE_ROLES,
        max_length: int | None = None,
        padding_side: str = "right",
        flatten: bool = False,
        return_tensors: str = "pt",
    ):
        if padding_side not in ("right", "left"):
            raise MaskError(f"padding_side must be 'right' or 'left', not {padding_side!r}")
        if return_tensors not in FORMATS:
            raise MaskError(f"return_tensors must be one of {', '.join(FORMATS)}, not {return_tensors!r}")
        self.pad_id, self.dropping, self.supervised = pad_id, dropping, tuple(supervised)
        self.max_length, self.padding_side, self.flatten = max_length, padding_side, flatten
        self._format = return_tensors
        self.epoch = 0
        self.step = 0

    def __call__(self, features: Sequence[Mapping[str, Any]], return_tensors: str | None = None) -> dict[str, Any]:
        examples = [self._example(feature, place) for place, feature in enumerate(features)]
        if self.flatten:
            rows = [np.concatenate(parts)[None] for parts in zip(*examples, strict=True)]
            segments = np.repeat(np.arange(1, len(examples) + 1), [len(ids) for ids, _, _ in examples])[None]
        else:
            length = max(len(ids) for ids, _, _ in examples)
            rows = [
                self._pad(parts, length, fill)
                for parts, fill in zip(zip(*examples, strict=True), (self.pad_id, Role.PAD, False), strict=True)
            ]
            segments = None
        ids, roles, dropped = rows
        everything = target_weights(roles, segment_ids=segments, supervised=self.supervised)
        check_supervision(everything, roles)
        weights = target_weights(roles, segment_ids=segments, supervised=self.supervised, drop_tokens=dropped)
        batch = {"input_ids": ids, "labels": labels(ids, weights)}
        if self.flatten:
            batch["position_ids"] = np.concatenate([np.arange(len(example[0])) for example in examples])[None]
        else:
            batch["attention_mask"] = (roles != Role.PAD).astype(np.int64)
        if (return_tensors or self._format) == "np":
            return batch
        import torch

        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _example(self, feature: Mapping[str, Any], place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids int64, roles int8, dropped bool), each [T]."""
        name = feature.get("id")
        where = f"feature {place} of the batch" if name is None else f"example {name!r}"
        for field in ("input_ids", "roles"):
            if field not in feature:
                raise MaskError(
                    f"{where} has no {field!r}; it has {', '.join(sorted(feature))}. Make both with roles_from_messages, and give "
                    "the trainer remove_unused_columns=False"
                )
        ids, roles = np.asarray(feature["input_ids"], np.int64), np.asarray(feature["roles"], np.int8)
        if ids.shape != roles.shape or ids.ndim != 1:
            raise MaskError(f"{where}: input_ids have shape {ids.shape}, roles {roles.shape}; both must be [T]")
        if self.max_length is not None and len(ids) > self.max_length:
            raise MaskError(f"{where} has {len(ids)} tokens, the limit is {self.max_length}; split it, or leave it out")
        if self.dropping is None:
            return ids, roles, np.zeros(ids.shape, bool)
        if name is None:
            raise MaskError(f"{where} has no 'id', which decides whether its action loss is dropped")
        return ids, roles, self.dropping.tokens(roles, str(name), epoch=self.epoch, step=self.step)

    def _pad(self, parts: Sequence[np.ndarray], length: int, fill: Any) -> np.ndarray:
        padded = np.full((len(parts), length), fill, parts[0].dtype)
        for row, part in zip(padded, parts, strict=True):
            row[slice(0, len(part)) if self.padding_side == "right" else slice(length - len(part), None)] = part
        return padded
