"""The mask made visible: which tokens of a data file are trained on, by role, in the terminal and as a page."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from cotjax.data.pipeline import Masking, example_features, example_turns
from cotjax.data.selection import Counts, Selection
from cotjax.data.tokens import TREES, Layout, TokenExample, trajectory_examples
from cotjax.data.trajectories import read_trajectories
from cotjax.errors import DataError, UsageError
from cotjax.masking import (
    Dropping,
    MaskError,
    Role,
    check_supervision,
    roles_from_messages,
    target_weights,
)
from cotjax.runtime.files import check_output, write_whole
from cotjax.runtime.terminal import visible

COLOURS = {
    Role.PROMPT: "grey50", Role.OBSERVATION: "cyan", Role.REASONING: "yellow", Role.ACTION_OPEN: "magenta", Role.ACTION: "green",
    Role.ACTION_CLOSE: "magenta", Role.END: "blue",
}  # fmt: skip
_PAGE_COLOURS = {
    Role.PROMPT: "#e5e7eb", Role.OBSERVATION: "#a5e3ee", Role.REASONING: "#fde68a", Role.ACTION_OPEN: "#e9b8f5", Role.ACTION: "#a7e8b5",
    Role.ACTION_CLOSE: "#e9b8f5", Role.END: "#b3ccff",
}  # fmt: skip
_MAX_LENGTH = 1 << 20  # tokens; nothing is cut for showing it


@dataclass(frozen=True)
class Shown:
    """One example of a file: `tokens` are texts; `roles`, `weights` and `dropped` [T] are those of the tokens themselves (not of
    what each position predicts)."""

    name: str
    tokens: list[str]
    roles: np.ndarray
    weights: np.ndarray
    dropped: np.ndarray

    def runs(self) -> Iterator[tuple[Role, float, bool, list[str]]]:
        """Neighbours of one role and weight: (role, weight, whether dropped, token texts)."""
        begins = (
            np.flatnonzero(
                np.diff(self.roles) | np.diff(self.weights).astype(bool) | np.diff(self.dropped)
            )
            + 1
        )
        edges = [0, *begins.tolist(), len(self.tokens)]
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
    """Yield the examples of a JSONL file of trajectories, or of `{"id", "messages"}` (which need a tokenizer with a chat template).

    Args:
      template, layout: how trajectories are written, as a config's `data.template` and `data.layout`.
      chat: options of `roles_from_messages`, for messages.

    Raises:
      DataError: a line is neither, or its mask trains nothing, or everything; the message names the file and the line or id.
      UsageError: the tokenizer is not there, or has no chat template.
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
            try:
                check_supervision(full, example.roles, f"{path}, trajectory {trajectory.id!r}")
                draws = dropping.draws(
                    example.roles, example.id, turns=example_turns(vars(example))
                )
            except MaskError as error:
                raise DataError(str(error)) from None
            yield _shown(codec, example, full, draws < np.float32(dropping.fraction_at()))


def run_shown(
    path: Path, codec: Codec, selection: Selection, masking: Masking, epoch: int = 0, step: int = 0
) -> Iterator[Shown]:
    """Yield the examples that a run trains on, with their weights in an epoch and at a step.

    Raises:
      DataError: a line is no trajectory, nothing is trained on, or the masking does not go with an example.
    """
    counts, fraction = Counts(), np.float32(masking.dropping().fraction_at(step))
    for trajectory in read_trajectories(path):
        for example in selection.examples(codec, trajectory, counts):
            stored = {**vars(example), "id": example.id.encode()}
            row = example_features(stored, masking, epoch)
            # A row's draws are those of its targets, the token behind each position.
            dropped = np.concatenate([[False], row["draws"][:-1] < fraction])
            yield _shown(codec, example, row["weights"], dropped)
    if not counts.examples:
        raise DataError(f"{path}: {counts.why_nothing()}")


def _shown(codec: Codec, example: TokenExample, full: np.ndarray, dropped: np.ndarray) -> Shown:
    tokens = [codec.decode([token]) for token in example.ids.tolist()]
    return _of_tokens(example.id, tokens, example.roles, full, dropped)


def _of_tokens(
    name: str, tokens: list[str], roles: np.ndarray, full: np.ndarray, dropped: np.ndarray
) -> Shown:
    """`full` is the weight of what each position predicts, without dropping; `dropped` is of the tokens themselves."""
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
    """Print the first `limit` examples and the totals of all by role; with `page`, write the same as one HTML file.

    Raises:
      DataError: there are none, or the page cannot be written.
      DataError, UsageError: as what gives the examples.
    """
    console = console or Console(highlight=False)
    if page:
        check_output(page)
    totals = {role: np.zeros(3, np.int64) for role in COLOURS}  # tokens, supervised, dropped
    kept, examples = [], 0
    for example in shown:
        examples += 1
        if len(kept) < limit:
            kept.append(example)
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
    table.add_row("all", *(f"{count:,}" for count in sum(totals.values())))
    console.print(table)
    if page:
        write_whole(page, _page(title, kept, totals))
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
            f"{path} holds chat messages: give --tokenizer DIR, a folder whose tokenizer has a chat template"
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
                    f"{where}: id {name!r:.80} stands at line {lines[name]} already; make it unique"
                )
            try:
                ids, roles = roles_from_messages(row["messages"], renders, name=where, **chat)
                full = target_weights(roles)
                check_supervision(full, roles, where)
                dropped = dropping.tokens(roles, name)
            except MaskError as error:
                raise DataError(str(error)) from None
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
            f"{where}: no JSON ({type(error).__name__}: {error}); mend or remove this line"
        ) from None
    if not isinstance(row, dict) or "messages" not in row:
        raise DataError(f'{where}: no {{"id", "messages"}}; mend or remove this line')
    if re.search("[\ud800-\udfff]", str(row.get("id", ""))):
        raise DataError(
            f"{where}: half of a surrogate pair in the id is no text; mend or remove this line"
        )
    return row


def _chat_tokenizer(folder: Path) -> Callable:
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise UsageError(f"{folder}: no tokenizer.json there; give --tokenizer a model's folder")
    chat = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not chat.chat_template:
        raise UsageError(
            f"{folder}: this tokenizer has no chat template, so messages cannot be rendered"
        )
    return chat


_HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>The loss mask</title><style>
body{font:16px/1.7 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem;color:#111;background:#fff}
h1{font-size:1.3rem}h2{font-size:1rem;margin:1.5rem 0 .3rem}table{border-collapse:collapse;margin:1rem 0}
td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}
.t{white-space:pre-wrap;border-radius:.2rem;padding:.1rem 0;margin-right:.15rem;box-decoration-break:clone}
.w0{opacity:.55}.w1{border-bottom:3px solid #111}.d{text-decoration:line-through;border-bottom:3px dotted #b91c1c;opacity:1}
"""


def _page(title: str, shown: list[Shown], totals: dict[Role, np.ndarray]) -> str:
    rules = "".join(
        f".{role.name}{{background:{colour}}}" for role, colour in _PAGE_COLOURS.items()
    )
    rows = "".join(
        f'<tr><td><span class="t {role.name}">{role.name}</span></td>'
        + "".join(f"<td>{count:,}</td>" for count in total)
        + "</tr>"
        for role, total in totals.items()
    )
    parts = [
        f"{_HEAD}{rules}</style><h1>{html.escape(title)}</h1>",
        "<p>Underlined tokens are trained on. Struck through: dropped, they would be trained on otherwise. Pale: given, never trained on. "
        "A trajectory's responses stand between its prompts; a past response is part of the later prompts by its action alone.</p>",
        f"<table><tr><th>role<th>tokens<th>trained on<th>dropped</tr>{rows}</table>",
    ]
    for example in shown:
        parts.append(f"<h2>{html.escape(example.name)}</h2><p>")
        for role, weight, dropped, tokens in example.runs():
            kind = f"{role.name} {'d' if dropped else 'w1' if weight else 'w0'}"
            tip = f"{role.name}, weight {weight:g}{', dropped' if dropped else ''}"
            parts += [
                f'<span class="t {kind}" title="{tip}">{html.escape(token)}</span><wbr>'
                for token in tokens
            ]
            if role is Role.END:
                parts.append("<br>")
        parts.append("</p>")
    return "".join(parts) + "</html>\n"
