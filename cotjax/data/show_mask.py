"""Show which tokens of a data file are trained on, by role, in the terminal and as a page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cotjax.assets import BASE_FOLDER
from cotjax.data.codec import Codec
from cotjax.data.json_text import open_json
from cotjax.data.pipeline import example_features, example_turns
from cotjax.data.selection import Counts, Selection
from cotjax.data.tokens import TREES, Layout, TokenExample, trajectory_examples
from cotjax.data.trajectories import read_trajectories
from cotjax.errors import DataError, UsageError
from cotjax.masking import (
    Dropping,
    Role,
    check_supervision,
    roles_from_messages,
    target_weights,
)
from cotjax.runtime.files import check_output, write_atomic
from cotjax.runtime.pages import load_template
from cotjax.runtime.terminal import visible

COLOURS = {
    Role.PROMPT: "grey50",
    Role.OBSERVATION: "cyan",
    Role.REASONING: "yellow",
    Role.ACTION_OPEN: "magenta",
    Role.ACTION: "green",
    Role.ACTION_CLOSE: "magenta",
    Role.END: "blue",
    Role.ANSWER: "bright_green",
}
_PAGE_COLOURS = {
    Role.PROMPT: "#e5e7eb",
    Role.OBSERVATION: "#a5e3ee",
    Role.REASONING: "#fde68a",
    Role.ACTION_OPEN: "#e9b8f5",
    Role.ACTION: "#a7e8b5",
    Role.ACTION_CLOSE: "#e9b8f5",
    Role.END: "#b3ccff",
    Role.ANSWER: "#c5f29b",
}
_MAX_LENGTH = 1 << 20  # tokens, so that every example is shown in full


@dataclass(frozen=True)
class Shown:
    """One example of a file, by token.

    tokens: texts.
    roles, weights, dropped: [T], of the token itself (not of the target that its position
      predicts).
    """

    name: str
    tokens: list[str]
    roles: np.ndarray
    weights: np.ndarray
    dropped: np.ndarray

    def runs(self) -> Iterator[tuple[Role, float, bool, list[str]]]:
        """Yield (role, weight, whether dropped, texts) of neighbours that share all three."""
        changes = (np.diff(self.roles) != 0) | (np.diff(self.weights) != 0) | np.diff(self.dropped)
        edges = [0, *(np.flatnonzero(changes) + 1).tolist(), len(self.tokens)]
        for start, end in pairwise(edges):
            yield (
                Role(self.roles[start]),
                float(self.weights[start]),
                bool(self.dropped[start]),
                self.tokens[start:end],
            )


def read_shown(
    path: Path,
    tokenizer: Path | None,
    dropping: Dropping,
    *,
    template: str = "chatml",
    layout: Layout = TREES,
    chat: Mapping[str, Any] | None = None,
) -> Iterator[Shown]:
    """Yield the examples of a JSONL file of trajectories, or of `{"id", "messages"}`.

    Messages need a tokenizer with a chat template.

    Args:
      template, layout: how trajectories are written, as a config's `data.template` and
        `data.layout`.
      chat: options of `roles_from_messages`, for messages.

    Raises:
      DataError: a line is neither, or all or none of its tokens would be trained on; the message
        names the file and the line or id.
      UsageError: the tokenizer is missing, or has no chat template.
    """
    with open_json(path, "no such file; `cotjax collect` makes trajectories") as file:
        first = next((line for line in file if line.strip()), b"")
    if b'"messages"' in first:
        yield from _of_messages(path, tokenizer, dropping, chat or {})
        return
    codec = Codec.load(tokenizer or BASE_FOLDER, template)
    for trajectory in read_trajectories(path):
        form = (
            "cot"
            if all(step.thought is not None for step in trajectory.steps if step.trained)
            else "direct"
        )
        for example in trajectory_examples(codec, trajectory, form, _MAX_LENGTH, layout):
            full = target_weights(example.roles, branches=example.branches)
            check_supervision(full, example.roles, f"{path}, trajectory {trajectory.id!r}")
            dropped = dropping.tokens(example.roles, example.id, turns=example_turns(vars(example)))
            yield _shown(codec, example, full, dropped)


def run_shown(
    path: Path,
    codec: Codec,
    selection: Selection,
    dropping: Dropping,
    epoch: int = 0,
    step: int = 0,
) -> Iterator[Shown]:
    """Yield the examples that a run trains on, with their weights in an epoch and at a step.

    Raises:
      DataError: a line is not a trajectory, nothing is trained on, or the dropping does not fit an
        example.
    """
    counts, fraction = Counts(), np.float32(dropping.fraction_at(step))
    for example in selection.read(codec, path, counts):
        stored = {**vars(example), "id": example.id.encode()}
        row = example_features(stored, dropping, epoch)
        # The draws of a row belong to its targets, the token behind each position.
        dropped = np.concatenate([[False], row["draws"][:-1] < fraction])
        yield _shown(codec, example, row["weights"], dropped)


def _shown(codec: Codec, example: TokenExample, full: np.ndarray, dropped: np.ndarray) -> Shown:
    tokens = [codec.decode([token]) for token in example.ids.tolist()]
    return _of_tokens(example.id, tokens, example.roles, full, dropped)


def _of_tokens(
    name: str, tokens: list[str], roles: np.ndarray, full: np.ndarray, dropped: np.ndarray
) -> Shown:
    """`full` [T] weighs the target of each position, before dropping; `dropped` [T] is by token."""
    of_token = np.concatenate([[0.0], full[:-1]])
    return Shown(name, tokens, roles, np.where(dropped, 0.0, of_token), dropped & (of_token > 0))


def show(
    shown: Iterable[Shown],
    title: str,
    *,
    limit: int = 3,
    page: Path | None = None,
    console: Console | None = None,
) -> None:
    """Print the first `limit` examples, and the totals of all by role.

    With `page`, write the same as one HTML file.

    Raises:
      DataError: there are no examples, or the page cannot be written.
      DataError, UsageError: as the iterator of examples.
    """
    console = console or Console(highlight=False)
    if page:
        check_output(page)
    totals = {role: np.zeros(3, np.int64) for role in COLOURS}  # tokens, supervised, dropped
    first: list[Shown] = []
    examples = 0
    for example in shown:
        examples += 1
        if len(first) < limit:
            first.append(example)
            _print(console, example)
        for role, total in totals.items():
            here = example.roles == role
            total += (
                int(here.sum()),
                int((here & (example.weights > 0)).sum()),
                int((here & example.dropped).sum()),
            )
    if not examples:
        raise DataError(f"{title}: there are no examples")
    title = f"{title}: {examples} examples"
    console.print(Text(visible(title)), soft_wrap=True)
    table = Table()
    for column in ("role", "tokens", "trained on", "dropped"):
        table.add_column(column, justify="left" if column == "role" else "right")
    for role, total in totals.items():
        table.add_row(Text(role.name, COLOURS[role]), *(f"{count:,}" for count in total))
    table.add_section()
    table.add_row("all", *(f"{count:,}" for count in np.sum(list(totals.values()), axis=0)))
    console.print(table)
    if page:
        write_atomic(page, _page(title, first, totals))
        console.print(f"Page: {page.resolve()}", soft_wrap=True)


def about(dropping: Dropping, step: int = 0) -> str:
    """Return what is dropped, in words."""
    return (
        f"k = {dropping.fraction_at(step):g} of each {dropping.unit}, dropped: {dropping.control}"
    )


def _print(console: Console, example: Shown) -> None:
    console.print(Text(visible(example.name), "bold"))
    for role, weight, dropped, tokens in example.runs():
        style = COLOURS[role] + ("" if weight else " strike" if dropped else " dim")
        mark = "dropped" if dropped else ""
        line = Text(f"  {role.name:<12} {weight:g} {mark:<8}", COLOURS[role]) + Text(
            "·".join(map(_visible, tokens)), style
        )
        console.print(line, soft_wrap=True)
    console.print()


def _visible(token: str) -> str:
    return visible(token.replace("\n", "⏎").replace("\t", "⇥"), kept="")


def _of_messages(
    path: Path, tokenizer: Path | None, dropping: Dropping, chat: Mapping[str, Any]
) -> Iterator[Shown]:
    if tokenizer is None:
        raise UsageError(
            f"{path} holds chat messages: give --tokenizer DIR, a folder whose tokenizer has a "
            "chat template"
        )
    renders = _chat_tokenizer(tokenizer)
    lines: dict[str, int] = {}
    with open_json(path, "no such file") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            if not raw.strip():
                continue
            row = _message_row(raw, where)
            name = str(row.get("id", where))
            if lines.setdefault(name, number) != number:
                raise DataError(
                    f"{where}: the id {name!r:.80} is also that of line {lines[name]}; "
                    "make it unique"
                )
            ids, roles = roles_from_messages(row["messages"], renders, name=where, **chat)
            full = target_weights(roles)
            check_supervision(full, roles, where)
            dropped = dropping.tokens(roles, name)
            yield _of_tokens(
                name, [renders.decode([token]) for token in ids.tolist()], roles, full, dropped
            )


def _message_row(raw: bytes, where: str) -> dict:
    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 at byte {error.start}; save the file as UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: invalid JSON ({type(error).__name__}: {error}); fix or delete the line"
        ) from None
    if not isinstance(row, dict) or "messages" not in row:
        raise DataError(f'{where}: no {{"id", "messages"}}; fix or delete the line')
    if re.search("[\ud800-\udfff]", str(row.get("id", ""))):
        raise DataError(
            f"{where}: the id has half of a surrogate pair, which is not text; fix or delete the "
            "line"
        )
    return row


def _chat_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise UsageError(f"{folder}: no tokenizer.json; give --tokenizer the folder of a model")
    chat = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not chat.chat_template:
        raise UsageError(
            f"{folder}: the tokenizer has no chat template, so messages cannot be rendered"
        )
    return chat


def _page(title: str, shown: list[Shown], totals: Mapping[Role, np.ndarray]) -> str:
    template = load_template(Path(__file__).parent / "mask_page.html.jinja")
    return template.render(title=title, examples=shown, totals=totals, colours=_PAGE_COLOURS) + "\n"
