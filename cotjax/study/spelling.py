"""Whether a tokenizer can write what the games of a study need, domain by domain.

A word-level tokenizer lacks words, and puts spaces around punctuation: of "put plate 1 in/on shelf
1" it makes "in / on", which the household does not know. A model with such a tokenizer loses these
games whatever it has learned, so this is checked before anything is trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from cotjax.data.codec import Codec
from cotjax.data.trajectories import Trajectory
from cotjax.envs.worlds import IN_DOMAIN, World
from cotjax.errors import UsageError
from cotjax.formats import normalize_action
from cotjax.rollout import contracts

_SHOWN = 3  # words that a warning names
_SUBWORDS = "a model whose tokenizer has subwords (model.base), such as that of cotjax base smollm2"


@dataclass
class Unwritable:
    """What a tokenizer cannot write of a domain's reference episodes.

    Attributes:
      actions: number of different actions.
      wrong: those of them that it does not write as they are -> what it writes.
      pieces: tokens of tasks and observations.
      unknown: words of them without a token of their own -> how often they occur.
    """

    actions: int = 0
    wrong: dict[str, str] = field(default_factory=dict)
    pieces: int = 0
    unknown: Counter[str] = field(default_factory=Counter)


def check_spelling(
    world: World,
    codec: Codec,
    episodes: Mapping[str, Iterable[Trajectory]],
    say: Callable[[str], None],
) -> None:
    """Check that every domain's reference episodes can be written.

    Args:
      episodes: domain -> the expert's episodes of its games.
      say: gets a line for a domain of whose observations words are lost.

    Raises:
      UsageError: an action cannot be written; names the domain, the word and what to do.
    """
    for domain, played in episodes.items():
        found = unwritable(world, codec, played)
        leave = "" if domain == IN_DOMAIN else f", or leave {domain} out of games.ood_domains"
        if found.wrong:
            action, written = next(iter(found.wrong.items()))
            raise UsageError(
                f"domain {domain!r}: the tokenizer cannot write {_word(world, codec, action)!r}: "
                f"of the action {action!r} it makes {written!r}, and {len(found.wrong):,} of the "
                f"{found.actions:,} actions of the expert come out wrong; use {_SUBWORDS}{leave}"
            )
        if found.unknown:
            count = found.unknown.total()
            words = ", ".join(repr(word) for word, _ in found.unknown.most_common(_SHOWN))
            say(
                f"warning: domain {domain!r}: the tokenizer does not know {count:,} of "
                f"{found.pieces:,} pieces of tasks and observations, such as {words}: the model "
                f"cannot tell them apart; use {_SUBWORDS}{leave}"
            )


def unwritable(world: World, codec: Codec, episodes: Iterable[Trajectory]) -> Unwritable:
    """Return what a codec cannot write of episodes."""
    found, actions, texts = Unwritable(), dict[str, None](), Counter[str]()
    for episode in episodes:
        texts[codec.prompt.task_line(episode.task)] += 1
        texts.update(step.observation for step in episode.steps)
        actions.update((step.action, None) for step in episode.steps)
    found.actions = len(actions)
    for action in actions:
        written = _written(codec, action)
        if world.meaning(written) != world.meaning(action):
            found.wrong[action] = written
    for text, times in texts.items():
        found.pieces += times * len(codec.encode_plain(text, "the text", lenient=True))
        for word in codec.unknown_words(text):
            found.unknown[word] += times
    return found


def as_written(world: World, codec: contracts.Codec, episode: Trajectory) -> Trajectory:
    """Return an episode with its actions as the codec writes them, where the world reads the same.

    Agreement with the expert is that of texts, and a model with a word-level tokenizer can write
    "search: a name" only as "search : a name".
    """
    steps = []
    for step in episode.steps:
        written = _written(codec, step.action)
        same = world.meaning(written) == world.meaning(step.action)
        steps.append(replace(step, action=written) if same else step)
    return replace(episode, steps=tuple(steps))


def _written(codec: contracts.Codec, action: str) -> str:
    """Return an action as a model's response comes to the environment."""
    ids = codec.encode_plain(action, "the action", lenient=True)
    return normalize_action(codec.decode(ids))


def _word(world: World, codec: Codec, action: str) -> str:
    """Return the first word of an action without which it would come out right."""
    words = action.split()
    for at, word in enumerate(words):
        changed = " ".join([*words[:at], _written(codec, word), *words[at + 1 :]])
        if world.meaning(changed) != world.meaning(action):
            return word
    return action
