"""The mask made visible: which tokens of a data file are trained on, by role, in the terminal and as a page."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cotjax.assets import BASE_FOLDER
from cotjax.data.tokens import Codec, trajectory_examples
from cotjax.data.trajectories import read_trajectories
from cotjax.errors import DataError, UsageError
from cotjax.masking import Dropping, MaskError, Role, check_supervision, roles_from_messages, target_weights
from cotjax.terminal import visible

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
        begins = np.flatnonzero(np.diff(self.roles) | np.diff(self.weights).astype(bool) | np.diff(self.dropped)) + 1
        edges = [0, *begins.tolist(), len(self.tokens)]
        for start, end in pairwise(edges):
            yield Role(self.roles[start]), float(self.weights[start]), bool(self.dropped[start]), self.tokens[start:end]


def read_shown(path: Path, tokenizer: Path | None, dropping: Dropping) -> Iterator[Shown]:
    """The examples of a JSONL file of trajectories, or of `{"id", "messages"}` (which need a tokenizer with a chat template).

    Raises:
      DataError: a line is neither, or its mask trains nothing, or everything; the message names the file and the line or id.
      UsageError: the tokenizer is not there, or has no chat template.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; `cotjax collect` makes trajectories")
    with path.open(encoding="utf-8", errors="replace") as lines:
        first = next((line for line in lines if line.strip()), "")
    reader = _of_messages if '"messages"' in first else _of_trajectories
    found = False
    for where, name, tokens, roles, branches in reader(path, tokenizer):
        try:
            full = target_weights(roles, branches=branches)
            check_supervision(full, roles, where)
            turns = None if branches is None or not branches.any() else branches - 1
            dropped = dropping.tokens(roles, name, turns=turns)
        except MaskError as error:
            raise DataError(str(error)) from None
        weights = target_weights(roles, branches=branches, drop_tokens=dropped)
        of_token = np.concatenate([[0.0], weights[:-1]])
        yield Shown(name, tokens, roles, of_token, dropped & (np.concatenate([[0.0], full[:-1]]) > 0))
        found = True
    if not found:
        raise DataError(f"{path}: the file is empty")


def show(
    path: Path, tokenizer: Path | None, dropping: Dropping, *, limit: int = 3, page: Path | None = None, console: Console | None = None
) -> None:
    """Print the first `limit` examples and the whole file's totals by role; with `page`, write the same as one HTML file.

    Raises:
      DataError, UsageError: as `read_shown`.
    """
    console = console or Console(highlight=False)
    totals = {role: np.zeros(3, np.int64) for role in COLOURS}  # tokens, supervised, dropped
    shown, examples = [], 0
    for example in read_shown(path, tokenizer, dropping):
        examples += 1
        if len(shown) < limit:
            shown.append(example)
            _print(console, example)
        for role, total in totals.items():
            here = example.roles == role
            total += (int(here.sum()), int((here & (example.weights > 0)).sum()), int((here & example.dropped).sum()))
    title = f"{path}: {examples} examples, k = {dropping.fraction:g} of each {dropping.unit}, dropped: {dropping.control}"
    console.print(Text(title), soft_wrap=True)
    table = Table()
    for column in ("role", "tokens", "trained on", "dropped"):
        table.add_column(column, justify="left" if column == "role" else "right")
    for role, total in totals.items():
        table.add_row(Text(role.name, COLOURS[role]), *(f"{count:,}" for count in total))
    table.add_section()
    table.add_row("all", *(f"{count:,}" for count in sum(totals.values())))
    console.print(table)
    if page:
        page.write_text(_page(title, shown, totals), encoding="utf-8")
        console.print(f"Page: {page.resolve()}", soft_wrap=True)


def _print(console: Console, example: Shown) -> None:
    console.print(Text(visible(example.name), "bold"))
    for role, weight, dropped, tokens in example.runs():
        style = COLOURS[role] + ("" if weight else " strike" if dropped else " dim")
        mark = "dropped" if dropped else ""
        line = Text(f"  {role.name:<12} {weight:g} {mark:<8}", COLOURS[role]) + Text("·".join(map(_visible, tokens)), style)
        console.print(line, soft_wrap=True)
    console.print()


def _visible(token: str) -> str:
    return visible(token.replace("\n", "⏎").replace("\t", "⇥"), kept="")


def _of_trajectories(path: Path, tokenizer: Path | None) -> Iterator[tuple]:
    codec = Codec.load(tokenizer or BASE_FOLDER)
    for trajectory in read_trajectories(path):
        form = "cot" if all(step.thought is not None for step in trajectory.steps if step.trained) else "direct"
        for example in trajectory_examples(codec, trajectory, form, _MAX_LENGTH):
            tokens = [codec.decode([token]) for token in example.ids.tolist()]
            yield f"{path}, trajectory {trajectory.id!r}", trajectory.id, tokens, example.roles, example.branches


def _of_messages(path: Path, tokenizer: Path | None) -> Iterator[tuple]:
    if tokenizer is None:
        raise UsageError(f"{path} holds chat messages: give --tokenizer DIR, a folder whose tokenizer has a chat template")
    chat = _chat_tokenizer(tokenizer)
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
                messages, name = row["messages"], str(row.get("id", where))
            except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f'{where}: no {{"id", "messages"}} ({type(error).__name__}: {error}); mend or remove this line') from None
            try:
                ids, roles = roles_from_messages(messages, chat, name=where)
            except MaskError as error:
                raise DataError(str(error)) from None
            yield where, name, [chat.decode([token]) for token in ids.tolist()], roles, None


def _chat_tokenizer(folder: Path) -> Callable:
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise UsageError(f"{folder}: no tokenizer.json there; give --tokenizer a model's folder")
    chat = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not chat.chat_template:
        raise UsageError(f"{folder}: this tokenizer has no chat template, so messages cannot be rendered")
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
    rules = "".join(f".{role.name}{{background:{colour}}}" for role, colour in _PAGE_COLOURS.items())
    rows = "".join(
        f'<tr><td><span class="t {role.name}">{role.name}</span></td>' + "".join(f"<td>{count:,}</td>" for count in total) + "</tr>"
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
            parts += [f'<span class="t {kind}" title="{tip}">{html.escape(token)}</span><wbr>' for token in tokens]
            if role is Role.END:
                parts.append("<br>")
        parts.append("</p>")
    return "".join(parts) + "</html>\n"
