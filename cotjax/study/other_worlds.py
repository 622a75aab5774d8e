"""Episodes of other invented worlds of the same kind, which say nothing about the run's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from cotjax.envs.lessons import Lesson, Lessons
from cotjax.envs.worlds import load_world

_MORE = 10  # questions beyond the episodes, so that there are enough of each kind


def with_known_facts(config: ConfigDict, run: Path) -> list[Lesson]:
    """Return episodes of a world half of whose facts are known, a quarter without a search."""
    count = config.autocoa.other_episodes
    if not count:
        return []
    lessons = _lessons(config, run / "other_games", count, 1)
    return _named("other", lessons.episodes(count - count // 4, count // 4))


def without_known_facts(config: ConfigDict, run: Path) -> list[Lesson]:
    """Return episodes of a world of which nothing is known, so that each fact is searched for."""
    count = config.autocoa.replay_episodes
    if not count:
        return []
    each = -(-count // len(config.task_types.in_domain))
    lessons = _lessons(config, run / "replay_games", each, 2)
    unknown = lessons.by_own_facts({"base": "none"}, ())
    assert unknown is not None, "they were given"
    return _named("replay", unknown.episodes(count, 0))


def _lessons(config: ConfigDict, root: Path, each: int, number: int) -> Lessons:
    """Return the lessons of a world with so many questions of each task type, and a few more."""
    world = load_world(config.world)
    counts = {"train": dict.fromkeys(config.task_types.in_domain, each + _MORE)}
    world.make_games(root, counts, config.games.seed + number)
    lessons: Lessons = world.lessons(root, config.seed)
    return lessons


def _named(kind: str, lessons: list[Lesson]) -> list[Lesson]:
    return [replace(lesson, id=f"{kind}/{lesson.id}") for lesson in lessons]
