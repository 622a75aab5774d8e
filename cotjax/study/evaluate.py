"""Plays every checkpoint by each kind of action, and measures all on held-out expert states."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from cotjax.data.codec import Codec
from cotjax.data.tokens import GROWING, Layout
from cotjax.data.trajectories import Trajectory
from cotjax.envs.base import Play
from cotjax.envs.pool.pool import EnvPool, Limits
from cotjax.envs.worlds import load_world
from cotjax.errors import UsageError
from cotjax.formats import ACTION_OPEN, CHATML, TurnTemplate
from cotjax.model.config import ModelConfig
from cotjax.probes.preference import PreferenceProbe, check_base_as_judge
from cotjax.rollout.decoding import instruction_ids
from cotjax.rollout.elicitation import (
    CONSTRAINED,
    CONSTRAINED_BY,
    DRAWN,
    INSTRUCTION,
    REAL,
    SIMULATED,
    WHOLE_TEXT,
    Elicitation,
)
from cotjax.rollout.growing import ANSWER_NOW
from cotjax.rollout.loop import play
from cotjax.rollout.record import KINDS, Kind
from cotjax.rollout.replay import ReplayEnvironments
from cotjax.runtime import distributed
from cotjax.runtime.claim import checkpoint_steps, planned_steps
from cotjax.sample.sampling import Sampling
from cotjax.study.games import NUMBERS, GameSets, wanted_games
from cotjax.study.jobs import Job, Playing, Weights, plan_jobs, steps_named, warn_of_unplayed
from cotjax.study.players import Player, playing_mesh
from cotjax.study.recorder import Recorder
from cotjax.study.spelling import as_written
from cotjax.study.starts import starts_of

# Loaded games that each environment's process keeps in memory.
_GAMES_KEPT = 2
# Probes that look at executed actions alone, whatever the prompts are.
_OF_ACTIONS = {"revisions", "progress"}


def elicitation_of(config: ConfigDict, template: TurnTemplate = CHATML) -> Elicitation:
    """Return how actions are elicited under this config: the same for every checkpoint.

    `template`: of the prompts. Its own marks are prefilled: an opened `<think>` before a response
    that reasons, an empty block before one that does not.
    """
    settings = config.evaluate
    for name in ("slots", "max_length", "max_steps", "max_new_tokens", "max_action_tokens"):
        if settings[name] < 1:
            raise UsageError(f"evaluate.{name} is {settings[name]}; it must be at least 1")
    drawn = {name: settings[name] for name in DRAWN}
    Sampling(**drawn).check("evaluate.")
    if settings.constrained_by not in CONSTRAINED_BY:
        raise UsageError(
            f"evaluate.constrained_by is {settings.constrained_by!r}; it must be "
            f"{' or '.join(map(repr, CONSTRAINED_BY))}"
        )
    shared = Elicitation(
        **drawn,
        max_new_tokens=settings.max_new_tokens,
        max_action_tokens=settings.max_action_tokens,
        max_steps=settings.max_steps,
        cot_prefix=settings.cot_prefix or template.cot_open,
        prompt_prefix=template.direct_open + ACTION_OPEN,
        constrained_by=settings.constrained_by,
        instruction=settings.instruction or INSTRUCTION,
        max_result_tokens=settings.max_result_tokens,
    )
    if config.data.layout != GROWING:
        return shared
    # The prompt has opened the thought; a prompt action is the answer without a further one.
    return replace(
        shared,
        cot_prefix="",
        prompt_prefix=ANSWER_NOW,
        history=WHOLE_TEXT,
        simulated=settings.search == SIMULATED,
    )


def playing_of(config: ConfigDict) -> Playing:
    """Return which kinds of action are played and measured under this config, and where.

    Raises:
      UsageError: an unknown kind, none at all, one that the world does not allow, a checkpoint that
        is never saved, or a number of samples that makes no sense.
    """
    settings = config.evaluate
    for name in ("elicitations", "offline"):
        kinds: tuple[Kind, ...] = tuple(settings[name])
        for kind in kinds:
            if kind not in KINDS:
                raise UsageError(
                    f"evaluate.{name}: unknown kind {kind!r}; there are {', '.join(KINDS)}"
                )
            if kind in CONSTRAINED and not load_world(config.world).lists_commands:
                raise UsageError(
                    f"evaluate.{name}: world {config.world!r} lists no admissible actions, so "
                    f"none can be chosen among: leave {kind!r} out"
                )
    if not settings.elicitations:
        raise UsageError(
            'evaluate.elicitations is empty; give at least one kind of action, such as "cot"'
        )
    _check_samples(settings)
    saved = checkpoint_steps(config.train.steps, config.train.save_every)
    at = steps_named(settings.episodes_at, saved, "evaluate.episodes_at")
    played = tuple(kind for kind in KINDS if kind in settings.elicitations)
    measured = tuple(kind for kind in KINDS if kind in {*played, *settings.offline})
    return Playing(played, measured, at, settings.samples, starts_of(config))


def _check_samples(settings: ConfigDict) -> None:
    if settings.samples < 1:
        raise UsageError(f"evaluate.samples is {settings.samples}; it must be at least 1")
    greedy = {"temperature": 0, "top_k": 1}
    for name in (name for name, value in greedy.items() if settings[name] == value):
        if settings.samples > 1:
            raise UsageError(
                f"evaluate.samples is {settings.samples} and evaluate.{name} is {settings[name]}, "
                f"so all samples of a game would be equal: set samples to 1, or another {name}"
            )


def check_layout(config: ConfigDict) -> None:
    """Raise UsageError for an unknown layout, or one whose prompts no rollout builds.

    The second matters only where there are games to play.
    """
    settings = config.data
    try:
        layout = Layout(settings.layout, settings.history, settings.past_thoughts)
    except UsageError as error:
        raise UsageError(f"data.layout, data.history: {error}") from None
    if not layout.playable and wanted_games(config):
        raise UsageError(
            f"data.history={settings.history} with data.past_thoughts={settings.past_thoughts} "
            "trains on other prompts than a rollout's, which show all turns, without past "
            f"thoughts: set 0 and False, or {NUMBERS} to 0 to train alone"
        )
    _check_growing(config)


def _check_growing(config: ConfigDict) -> None:
    """Raise UsageError for what a growing text does not allow, and for what it alone allows."""
    settings = config.evaluate
    if settings.search not in (REAL, SIMULATED):
        raise UsageError(
            f"evaluate.search is {settings.search!r}; it must be {REAL!r} or {SIMULATED!r}"
        )
    if config.data.layout != GROWING:
        if settings.search != REAL:
            raise UsageError(
                f"evaluate.search is {settings.search!r}, which needs one growing text; set "
                f"data.layout to {GROWING!r}"
            )
        return
    others = {*settings.elicitations, *settings.offline} - {"cot", "prompt"}
    if others:
        raise UsageError(
            f"evaluate.elicitations: {min(others)!r} needs turns, and data.layout is {GROWING!r}; "
            "leave it out"
        )
    probes = {*config.probes.names} - _OF_ACTIONS
    if probes:
        raise UsageError(
            f"probes.names: {min(probes)!r} needs turns, and data.layout is {GROWING!r}; leave it "
            "out"
        )


def limits_of(config: ConfigDict) -> Limits:
    """Return the time limits of environments under this config."""
    settings = config.evaluate
    for name in ("start_timeout", "reset_timeout", "step_timeout"):
        if settings[name] <= 0:
            raise UsageError(
                f"evaluate.{name} is {settings[name]:g}; it must be more than 0 seconds"
            )
    if settings.env_retries < 0:
        raise UsageError(f"evaluate.env_retries is {settings.env_retries}; it must be at least 0")
    return Limits(
        start=settings.start_timeout, reset=settings.reset_timeout, step=settings.step_timeout
    )


def check_playable(config: ConfigDict, model: ModelConfig, codec: Codec) -> None:
    """Check that a model can be played and probed as the config says, before it is trained.

    Raises:
      UsageError: a setting does not fit the model, or its tokenizer cannot judge.
      DataError: the tokenizer cannot encode a prefix or the instruction.
    """
    settings, elicitation = config.evaluate, elicitation_of(config, codec.template)
    playing_mesh(config)
    model.check_length(settings.max_length, "evaluate.max_length")
    model.check_ids(codec.vocab_size)
    limits = ("max_new_tokens", "max_action_tokens", "max_result_tokens")
    for name in limits if elicitation.simulated else limits[:2]:
        if settings[name] >= settings.max_length:
            raise UsageError(
                f"evaluate.{name} is {settings[name]}; it must be less than evaluate.max_length, "
                f"{settings.max_length}"
            )
    for prefix in (elicitation.cot_prefix, elicitation.prompt_prefix):
        codec.prefill(prefix)
    if "instructed" in playing_of(config).measured:
        instruction_ids(codec, elicitation.instruction)
    if PreferenceProbe.name in config.probes.names:
        check_base_as_judge(config, codec)


def evaluate(
    config: ConfigDict,
    *,
    player: Callable[[int], Player],
    games: GameSets,
    expert: Mapping[str, Trajectory],
    arms: Mapping[str, Path],
    records: Path,
    base: Weights | None = None,
    plays_base: bool = True,
    report: Callable[[int, int, str], None] = lambda done, total, detail: None,
    warn: Callable[[str], None] = lambda text: None,
) -> None:
    """Play every episode that has no record yet.

    Each of several processes plays its share of the games on its own devices.

    Args:
      player: makes what plays, with at least so many slots for each of its policies.
      expert: game id -> the expert's trajectory on a played game; the offline diagnostics are
        measured on its states.
      arms: arm -> its folder of checkpoints. Checkpoint 0, the base, is the same in every arm and
        is played once.
      records: folder for the records.
      base: the base's weights; None: checkpoint 0 of the first arm.
      plays_base: whether the base is played, too; else another part of the study plays it.
      report: called after each episode with (episodes done, episodes in all, what is being
        played), of this process's share.
      warn: called with each warning, a sentence.
    """
    planned = distributed.from_first(
        "planned", lambda: {arm: planned_steps(folder.parent) for arm, folder in arms.items()}
    )
    if distributed.first():
        warn_of_unplayed(arms, planned, games, expert, warn)
    world = load_world(config.world).name
    jobs = [
        job
        for job in plan_jobs(world, arms, planned, games, expert, playing_of(config), base)
        if plays_base or not job.of_base
    ]
    play_unplayed(
        config,
        jobs,
        player=player,
        games=games,
        expert=expert,
        records=records,
        report=report,
        warn=warn,
    )


def play_unplayed(
    config: ConfigDict,
    jobs: Collection[Job],
    *,
    player: Callable[[int], Player],
    games: GameSets,
    expert: Mapping[str, Trajectory],
    records: Path,
    report: Callable[[int, int, str], None],
    warn: Callable[[str], None],
) -> None:
    """Play every episode of these jobs that has no record yet. Arguments as of `evaluate`."""
    unplayed = {job: job.unplayed(records, warn) for job in jobs}
    _check_listed(unplayed, expert)
    total = sum(len(job.plays) for job in unplayed)
    recorder = Recorder(
        records, games, total, total - sum(map(len, unplayed.values())), report, warn
    )
    if recorder.done == total:
        return
    most = len(games.played) * config.evaluate.samples
    slots = -(-min(config.evaluate.slots, most) // distributed.count())
    halves = 2 if config.evaluate.halves and slots > 1 else 1
    try:
        _play_jobs(unplayed, config, player(-(-slots // halves)), halves, expert, recorder)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; {recorder.done} of {total} episodes are finished and kept, the same "
            "command goes on from them"
        ) from None
    recorder.warn_of_endings(config.evaluate.max_length)


def _check_listed(jobs: Collection[Job], expert: Mapping[str, Trajectory]) -> None:
    """Raise UsageError where a kind chooses among actions that expert states do not list."""
    kinds = {kind for job in jobs for kind in job.kinds if kind in CONSTRAINED}
    for trajectory in expert.values() if kinds else ():
        if not all(step.admissible_commands for step in trajectory.steps):
            raise UsageError(
                f"the expert's trajectory {trajectory.id!r} lists no admissible actions, so none "
                f"can be chosen among: leave {', '.join(sorted(kinds))} out of "
                "evaluate.elicitations and evaluate.offline"
            )


def _play_jobs(
    unplayed: Mapping[Job, list[Play]],
    config: ConfigDict,
    player: Player,
    halves: int,
    expert: Mapping[str, Trajectory],
    recorder: Recorder,
) -> None:
    """Play the jobs in order.

    `halves`: 1, or 2 of as many slots as the player has, each with environments of its own.
    """
    world = load_world(config.world)
    if player.codec.growing is None:
        expert = {id_: as_written(world, player.codec, each) for id_, each in expert.items()}
    references, thoughts = (
        {
            game_id: [getattr(step, name) for step in trajectory.steps]
            for game_id, trajectory in expert.items()
        }
        for name in ("action", "thought")
    )
    with ExitStack() as stack:
        pools = [stack.enter_context(environments_of(config, player.slots)) for _ in range(halves)]
        for job, plays in unplayed.items():
            if not plays:
                continue
            (policy, environments), *others = [
                (policy, ReplayEnvironments(expert) if job.driver == "reference" else pool)
                for policy, pool in zip(player.policies(job, halves), pools, strict=True)
            ]
            play(
                plays,
                policy=policy,
                codec=player.codec,
                environments=environments,
                second_half=others[0] if others else None,
                driver=job.driver,
                elicitation=elicitation_of(config, player.template),
                seed=config.seed,
                on_record=partial(recorder.keep, job),
                references=references,
                thoughts=thoughts,
                kinds=job.kinds,
            )


def environments_of(config: ConfigDict, slots: int) -> EnvPool:
    """Return environments in processes of their own, so that no game affects another.

    Worlds whose processes take much memory have fewer of them (`World.processes_for`).
    """
    world = load_world(config.world)
    return EnvPool(
        world.make_env(config.evaluate.max_steps, _GAMES_KEPT),
        slots,
        world.processes_for(slots) if config.workers else 0,
        limits_of(config),
        config.evaluate.env_retries,
    )
