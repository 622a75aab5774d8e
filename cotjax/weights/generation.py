"""A model's bos, eos and pad ids, and its generation_config.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cotjax.runtime.files import read_json
from cotjax.weights.hf_config import TOKEN_IDS

GENERATION_FILE = "generation_config.json"
TOKEN_IDS_FILE = "token_ids.json"  # in an Orbax folder, whose model.json holds sizes alone


def token_ids(folder: Path) -> dict[str, Any]:
    """Return the TOKEN_IDS of a folder's config.json, or of an Orbax folder's token_ids.json."""
    for name in ("config.json", TOKEN_IDS_FILE):
        if (folder / name).is_file():
            read = read_json(folder / name, "transformers or cotjax")
            return {key: read[key] for key in TOKEN_IDS if read.get(key) is not None}
    return {}


def generation_config(folder: Path, ends: Sequence[int] = ()) -> dict[str, Any]:
    """Return a folder's generation_config.json, also stopping at `ends`, the ids of an end of turn.

    The folder's own settings are kept; missing bos, eos and pad ids come from config.json.
    """
    file = folder / GENERATION_FILE
    generation = read_json(file, "transformers' save_pretrained") if file.is_file() else {}
    for key, value in token_ids(folder).items():
        if generation.get(key) is None:
            generation[key] = value
    return stopping_at(generation, ends)


def stopping_at(generation: dict[str, Any], ends: Sequence[int]) -> dict[str, Any]:
    """Return a generation config with `ends` appended to its eos ids."""
    eos = generation.get("eos_token_id")
    known = [] if eos is None else list(eos) if isinstance(eos, list) else [eos]
    more = [end for end in ends if end not in known]
    if not more:
        return generation
    return generation | {"eos_token_id": known + more if len(known + more) > 1 else more[0]}
