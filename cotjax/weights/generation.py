"""Where generation begins and ends: the bos, eos and pad ids of a model's folder and its
generation_config.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cotjax.runtime.files import read_json
from cotjax.weights.hf_config import TOKEN_IDS

GENERATION_FILE = "generation_config.json"
TOKEN_IDS_FILE = "token_ids.json"  # in an Orbax folder, whose model.json holds sizes alone


def token_ids(folder: Path) -> dict[str, Any]:
    """Return those of TOKEN_IDS that a folder's config.json gives, or the file that stands for it
    in an Orbax folder.
    """
    for name in ("config.json", TOKEN_IDS_FILE):
        if (folder / name).is_file():
            read = read_json(folder / name, "transformers or cotjax")
            return {key: read[key] for key in TOKEN_IDS if read.get(key) is not None}
    return {}


def generation_config(folder: Path, ends: Sequence[int] = ()) -> dict[str, Any]:
    """Return the generation_config.json of a folder's model that also stops at `ends`, the ids of
    an end of turn.

    What the folder's own file says is kept; bos, eos and pad ids that it lacks are config.json's.
    """
    file = folder / GENERATION_FILE
    found = read_json(file, "transformers' save_pretrained") if file.is_file() else {}
    for key, value in token_ids(folder).items():
        if found.get(key) is None:
            found[key] = value
    return stopping_at(found, ends)


def stopping_at(generation: dict[str, Any], ends: Sequence[int]) -> dict[str, Any]:
    """Return a generation config with `ends` among its eos ids, behind those that it has."""
    eos = generation.get("eos_token_id")
    known = [] if eos is None else list(eos) if isinstance(eos, list) else [eos]
    more = [end for end in ends if end not in known]
    if not more:
        return generation
    return generation | {"eos_token_id": known + more if len(known + more) > 1 else more[0]}
