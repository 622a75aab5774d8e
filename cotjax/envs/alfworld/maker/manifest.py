"""The manifest of a folder of made games: the request, and the hash of every finished game."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from cotjax.errors import DataError, UsageError
from cotjax.runtime.files import write_atomic

GAME_FILES = ("game.tw-pddl", "initial_state.pddl", "traj_data.json")
_NAME = "manifest.json"
_MOST_NAMED = 3  # differing counts in a message


@dataclass(frozen=True)
class MadeGame:
    """A game on disk: its id ("<task folder>/<trial folder>") and the hash of its files."""

    id: str
    sha256: str


def hash_game(folder: Path) -> str:
    """Return the SHA-256 over the game's three files. Raises OSError if one is missing."""
    digest = hashlib.sha256()
    for name in GAME_FILES:
        content = (folder / name).read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


@dataclass
class Manifest:
    """The manifest of one folder.

    `counts`: "split/task type" -> number of games. `games`: "split/task type/index" -> game.
    """

    path: Path
    generator: str
    seed: int
    counts: dict[str, int]
    games: dict[str, MadeGame]

    @classmethod
    def open(
        cls, out: Path, generator: str, seed: int, counts: dict[str, int], splits: tuple[str, ...]
    ) -> Manifest:
        """Read the manifest of `out` and compare it with the request; start one if `out` has none.

        Raises:
          UsageError: the request differs, or `out` holds games that were not made here.
          DataError: the manifest cannot be read.
        """
        path = out / _NAME
        if path.exists():
            manifest = cls._read(path)
            manifest._compare(generator, seed, counts)
            return manifest
        for split in splits:
            if (out / split).exists():
                raise UsageError(
                    f"{out / split} was not made by cotjax (there is no {path}): "
                    "choose another folder"
                )
        out.mkdir(parents=True, exist_ok=True)
        manifest = cls(path, generator, seed, counts, {})
        manifest.save()
        return manifest

    @classmethod
    def _read(cls, path: Path) -> Manifest:
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            games = {
                key: MadeGame(game["id"], game["sha256"]) for key, game in held["games"].items()
            }
            return cls(path, held["generator"], held["seed"], dict(held["counts"]), games)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(
                f"{path} cannot be read ({reason}): delete {path.parent}, or choose another folder"
            ) from error

    def _compare(self, generator: str, seed: int, counts: dict[str, int]) -> None:
        differing = []
        if self.generator != generator:
            differing.append(f"by {self.generator}, not {generator}")
        if self.seed != seed:
            differing.append(f"with seed {self.seed}, not {seed}")
        keys = [
            key
            for key in {**self.counts, **counts}
            if self.counts.get(key, 0) != counts.get(key, 0)
        ]
        differing += [
            f"{self.counts.get(key, 0)} {key}, not {counts.get(key, 0)}"
            for key in keys[:_MOST_NAMED]
        ]
        if keys[_MOST_NAMED:]:
            differing.append(f"and {len(keys) - _MOST_NAMED} other counts")
        if differing:
            raise UsageError(
                f"the games in {self.path.parent} were made {'; '.join(differing)}: "
                "choose another folder"
            )

    def save(self) -> None:
        """Replace the file in one step."""
        content = {
            "generator": self.generator,
            "seed": self.seed,
            "counts": self.counts,
            "games": {
                key: {"id": game.id, "sha256": game.sha256}
                for key, game in sorted(self.games.items())
            },
        }
        write_atomic(self.path, json.dumps(content, indent=1) + "\n")
