"""What a run is made from, by fingerprints: its data, its tokenizer and its base model.

    made_from    {"data": {"file", "sha256", "examples"},
                  "tokenizer": {"file", "sha256"},
                  "base": {"file", "sha256"},
                  "start": {"file", "arm", "step", "sha256"}}

An arm that starts from the base has no `start`. A base of new weights has no file: {"recipe":
"random", "recall_steps"}, and "induction": true where heads are placed. `examples` identifies the
dataset built from the data file: its settings and its tokenizer count too. The fingerprints are
made by `cotjax.train.fingerprints`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SHOWN = 12  # hexadecimal digits in messages
_NAMES = {
    "data": "the data",
    "tokenizer": "the tokenizer",
    "base": "the base model",
    "start": "the checkpoint it starts from",
}


def contents(made_from: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return `made_from` without the files' paths, which may change."""
    return {
        part: {name: value for name, value in about.items() if name != "file"}
        for part, about in made_from.items()
    }


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Say what changed between two `made_from`, naming the file; None when nothing did."""
    theirs, mine = contents(before), contents(now)
    for part, content in mine.items():
        old = theirs.get(part, {})
        if old == content:
            continue
        file = now[part].get("file", "the base of new weights")
        same_inputs = old.get("sha256") == content.get("sha256") and (
            theirs.get("tokenizer") == mine["tokenizer"]
        )
        if part == "data" and same_inputs:
            return (
                f"{file} is unchanged, but gives other examples: through other data settings, or "
                "another version of cotjax"
            )
        if "sha256" in old and "sha256" in content and old["sha256"] != content["sha256"]:
            sums = f"sha256 {old['sha256'][:_SHOWN]}… there, {content['sha256'][:_SHOWN]}… here"
            return f"{_NAMES[part]}: the content of {file} changed ({sums})"
        if part != "data":
            was, is_now = _described(before.get(part, {})), _described(now[part])
            return f"{_NAMES[part]}: it was {was}, and is {is_now} now"
    return None


def _described(about: Mapping[str, Any]) -> str:
    recipe = {name: value for name, value in about.items() if name not in ("file", "sha256")}
    return str(
        about.get("file")
        or ", ".join(f"{name} {value}" for name, value in recipe.items())
        or "unknown"
    )
