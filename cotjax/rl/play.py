"""Plays the groups of a step with the policy that is trained."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cotjax.data.codec import Codec
from cotjax.envs.base import Game, Play
from cotjax.errors import DataError
from cotjax.model.params import Params
from cotjax.rl.advantages import Played, step_advantages
from cotjax.rl.groups import Group, Stream, groups_at
from cotjax.rl.kept import Kept, remove_kept
from cotjax.rl.policy import fingerprint
from cotjax.rl.rewards import as_played, response_of
from cotjax.rl.rollouts import About, Rollouts, read_rollouts, untimed, write_rollouts
from cotjax.rl.together import of_all, on_own_devices
from cotjax.rollout.contracts import Environments, Policy
from cotjax.rollout.elicitation import Elicitation
from cotjax.rollout.loop import play
from cotjax.rollout.record import Episode, Kind
from cotjax.runtime import distributed
from cotjax.runtime.files import put_aside
from cotjax.sample.sampler import Sampler

Half = tuple[Policy, Environments]  # slots, and what is played in them


@dataclass(frozen=True)
class Actors:
    """What plays.

    sampler: plays with the weights that it is given for a step.
    environments: one, or two that take turns (`cotjax.rollout.loop`), as many as the sampler has
      slots each.
    elicitation: how actions are drawn: at temperature 1, prompt actions greedily.
    kinds: kinds of action that are decoded in every state.
    score: (game, last action) -> an episode's score, in place of the environment's; None: that.
    """

    sampler: Sampler
    environments: Sequence[Environments]
    codec: Codec
    elicitation: Elicitation
    kinds: tuple[Kind, ...]
    score: Callable[[Game, str], float] | None = None

    @contextmanager
    def playing(self, params: Params) -> Iterator[Sequence[Half]]:
        """Yield policies with these weights; they and their caches are freed after the block.

        The weights go from the trainer's devices to the sampler's, not through the host.
        """
        sampler = self.sampler
        sampler.load(on_own_devices(sampler.config, params, sampler.mesh))
        sampler.wait()
        try:
            twins = [self.sampler.twin() for _ in self.environments[1:]]
            yield list(zip((self.sampler, *twins), self.environments, strict=True))
        finally:
            self.sampler.unload()


@dataclass(frozen=True)
class Waits:
    """Seconds of environments, and of these in which nothing was decoded, summed over slots.

    transfer: seconds until the weights were where they play.
    sampled: tokens that were sampled meanwhile, of CoT responses that are kept.
    seconds: of playing in all.
    """

    environment: float = 0.0
    waited: float = 0.0
    transfer: float = 0.0
    sampled: int = 0
    seconds: float = 0.0

    def __add__(self, other: Waits) -> Waits:
        """Return those of two steps together."""
        return Waits(
            self.environment + other.environment,
            self.waited + other.waited,
            self.transfer + other.transfer,
            self.sampled + other.sampled,
            self.seconds + other.seconds,
        )


def read_played(
    path: Path, settings: Any, *, step: int, begin: int, policy: str, weights: int
) -> Rollouts:
    """Return the rollouts of a step's file, played from `begin` on by the weights of this hash.

    `weights`: the step after which they were the policy's. Raises DataError where the file is
    damaged, or others played it.
    """
    rollouts = read_rollouts(path, settings)
    about = rollouts.about
    if (about.step, about.begin, about.policy) != (step, begin, policy):
        raise DataError(f"{path}: other weights than those of step {weights} played it")
    return rollouts


def played_or_read(
    path: Path,
    actors: Actors,
    params: Params,
    stream: Stream,
    settings: Any,
    *,
    step: int,
    begin: int,
    seed: int,
    warn: Callable[[str], None],
) -> tuple[Rollouts, Waits]:
    """Return the rollouts of a step: those of its file, or else played, and then written there.

    A file that is damaged, or that other weights played, is set aside with a warning, and the step
    is played again. Each process plays its share. The other arguments are those of `play_step`.
    """
    policy = fingerprint(params)
    kept: list[Rollouts] = []

    def usable() -> bool:
        if not path.exists():
            return False
        try:
            kept.append(
                read_played(path, settings, step=step, begin=begin, policy=policy, weights=step - 1)
            )
        except DataError as error:
            fault = str(error).partition(";")[0]
            warn(f"{fault}; set aside as {put_aside(path).name}, and played again")
            return False
        return True

    if distributed.from_first("rollouts", usable):
        remove_kept(path)
        return (kept or [read_rollouts(path, settings)])[0], Waits()
    began = time.perf_counter()
    about = {"step": step, "begin": begin, "policy": policy}
    ended = Kept(path.parent, about) if settings.resume == "fast" else None
    with actors.playing(params) as halves:
        transfer = time.perf_counter() - began
        rollouts, waits = play_step(
            actors,
            halves,
            stream,
            settings,
            step=step,
            begin=begin,
            seed=seed,
            policy=policy,
            parts=path.parent,
            ended=ended,
        )
    with distributed.in_turn("rollouts written"):
        if distributed.first():
            write_rollouts(path, rollouts)
    remove_kept(path)
    return rollouts, replace(waits, transfer=transfer, seconds=time.perf_counter() - began)


def play_step(
    actors: Actors,
    halves: Sequence[Half],
    stream: Stream,
    settings: Any,
    *,
    step: int,
    begin: int,
    seed: int,
    policy: str,
    parts: Path = Path(),
    ended: Kept | None = None,
) -> tuple[Rollouts, Waits]:
    """Play `rl.tasks` groups of the stream from position `begin` on.

    A group of which an environment broke an episode is dropped. Further groups are played in the
    place of these, and of flat ones where `rl.flat` is "refill", at most `rl.refills` times.

    Args:
      halves: what `actors` plays with.
      settings: `config.rl`.
      begin: the stream's position before the step.
      seed: of the run; what is drawn depends on it, the step, the game, the sample and the turn.
      policy: hash of the weights that play.
      parts: folder through which several processes give each other what they played.
      ended: keeps episodes as they end; those that it has are not played.
    """
    kept: list[tuple[Group, list[Episode]]] = []
    broken: list[str] = []
    wanted = missing = settings.tasks
    end, rounds, environment_s, waited_s = begin, 0, 0.0, 0.0
    while missing and rounds <= settings.refills:
        groups = groups_at(stream, begin, end, missing, settings.group)
        end, rounds = end + missing, rounds + 1
        simulated = step <= settings.simulated_steps
        own = [group for place, group in enumerate(groups) if distributed.share(place)]
        played = _played(actors, halves, own, step_seed(seed, step), simulated, ended)
        episodes = of_all(parts, [each for group in groups for each in group.plays], played)
        environment_s += sum(each.timing.environment_s for each in episodes.values())
        waited_s += sum(each.timing.waited_s for each in episodes.values())
        for group in groups:
            in_group = [episodes[each] for each in group.plays]
            if errors := [each.env_error for each in in_group if each.env_error]:
                broken.append(errors[0])
                continue
            kept.append((group, [untimed(episode) for episode in in_group]))
            plays = [as_played(episode, group.position, settings) for episode in in_group]
            wanted += settings.flat == "refill" and is_flat(plays, settings)
        missing = wanted - len(kept)
    about = About(step, begin, end, policy, tuple(broken), rounds - 1)
    positions = [group.position for group, of_group in kept for _ in of_group]
    whole = [each for _, of_group in kept for each in of_group]
    rollouts = Rollouts.of(about, positions, whole, settings)
    sampled = sum(len(response_of(turn).ids) for each in whole for turn in each.steps)
    return rollouts, Waits(environment_s, waited_s, sampled=sampled)


def step_seed(seed: int, step: int) -> int:
    """Return the seed (63 bits) that the sampling of a step depends on."""
    digest = hashlib.blake2b(f"rl/{seed}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def is_flat(plays: Sequence[Played], settings: Any) -> bool:
    """Return whether the rewards of a group, penalties included, are equal, or deviate too little.

    `settings`: `config.rl`; its least_deviation is of plays, whose penalties count by their mean.
    """
    if step_advantages(plays, unit=settings.stat_unit)[1].flat > 0:
        return True
    earned = [play.reward - float(np.mean(play.penalties or (0.0,))) for play in plays]
    return bool(np.std(earned, ddof=1) < settings.least_deviation)


def _played(
    actors: Actors,
    halves: Sequence[Half],
    groups: Sequence[Group],
    seed: int,
    simulated: bool,
    ended: Kept | None,
) -> dict[Play, Episode]:
    """Return the episode of each play.

    `simulated`: the policy writes results of searches. `ended`: see `play_step`.
    """
    plays = [each for group in groups for each in group.plays]
    episodes: dict[Play, Episode] = {}
    for each in plays:
        if ended is not None and (before := ended.of(each)) is not None:
            episodes[each] = untimed(before)
    plays = [each for each in plays if each not in episodes]

    def keep(each: Play, episode: Episode) -> None:
        if actors.score is not None and episode.steps:
            score = actors.score(each.game, episode.steps[-1].executed)
            episode = episode.model_copy(update={"score": score})
        episodes[each] = episode
        if ended is not None:
            ended.add(episode)

    (policy, environments), *others = halves
    play(
        plays,
        policy=policy,
        codec=actors.codec,
        environments=environments,
        second_half=others[0] if others else None,
        driver="cot",
        elicitation=replace(actors.elicitation, simulated=simulated),
        seed=seed,
        on_record=keep,
        kinds=actors.kinds,
    )
    return episodes
