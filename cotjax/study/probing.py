"""The stage that measures checkpoints by probes, at the states of the episodes that were played."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from ml_collections import ConfigDict

from cotjax.data.codec import Codec
from cotjax.diagnostics.share import Verdict
from cotjax.envs.base import Successor
from cotjax.envs.worlds import AgentSettings, load_world
from cotjax.errors import UsageError
from cotjax.model.config import ModelConfig
from cotjax.probes.catalog import probes_of
from cotjax.probes.measuring import measure
from cotjax.probes.preference import PreferenceProbe, check_base_as_judge
from cotjax.probes.probe import Checkpoint, Probe, Weights
from cotjax.report.summarize import summarize
from cotjax.rollout.contracts import Policy
from cotjax.runtime import distributed
from cotjax.runtime.claim import checkpoint_steps, planned_steps
from cotjax.study import jobs
from cotjax.study.games import GameSets
from cotjax.study.players import playing_mesh, sampler_of
from cotjax.study.starts import Place, starts_of


def check_probes(config: ConfigDict, names: Sequence[str] = ()) -> None:
    """Raise UsageError for an unknown probe, one that the config forbids, or a wrong checkpoint."""
    probes_of(config, names)
    _steps(config)


def _steps(config: ConfigDict) -> tuple[int, ...]:
    """Return the checkpoints that are measured; () for all."""
    saved = checkpoint_steps(config.train.steps, config.train.save_every)
    return jobs.steps_named(config.probes.at, saved, "probes.at")


def probe_checkpoints(
    config: ConfigDict,
    *,
    model: ModelConfig,
    codec: Codec,
    games: GameSets,
    arms: Mapping[str, Path],
    run: Path,
    base: jobs.Weights | None = None,
    measures_base: bool = True,
    names: Sequence[str] = (),
    stage: Callable[[int, int, str], None] = lambda done, total, detail: None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Measure the config's checkpoints by its probes, in process 0.

    A checkpoint whose episodes were not played has no states, and is left out.

    Args:
      arms: arm -> its folder of checkpoints.
      run: the run's folder, with the records.
      base: the base's weights; None: checkpoint 0 of the first arm.
      measures_base: whether the base is measured, too.
      names: of the probes; (): those of the config.
      stage: called with (rows done, rows in all, what is measured) after each row.
      say: called with each warning, a sentence.

    Raises:
      UsageError: an unknown probe, or one that the config, its world or the base's tokenizer does
        not allow.
      DataError: a record is malformed.
    """
    if not distributed.first():
        return
    probes = _probes(config, names, codec)
    planned = {arm: planned_steps(folder.parent) for arm, folder in arms.items()}
    plan = jobs.checkpoints_of(arms, planned, base)
    # Loaded once for all checkpoints, if a probe asks for it.
    load_base = cache(partial(_policy, config, model, codec, plan[0][2], 0))
    is_wanted = _wanted(config, measures_base) if arms else lambda place: True
    for arm, step, weights in plan:
        files = sorted((run / "records" / arm / str(step)).glob("*/*.json"))
        if not files or not is_wanted(Place(arm, step)):
            continue
        at = Checkpoint(
            arm=arm,
            step=step,
            digest=weights.digest(step),
            config=config,
            world=load_world(config.world),
            games={game.id: game for game in games.played},
            codec=codec,
            files=files,
            load_policy=partial(_policy, config, model, codec, weights, step),
            load_weights=partial(_weights, config, model, weights, step),
            workers=config.workers,
            say=say,
            load_base=load_base,
        )
        _measure(probes, at, run, games.hash, stage)


def _probes(config: ConfigDict, names: Sequence[str], codec: Codec) -> list[Probe]:
    """Return the probes. Raises UsageError where the base is to judge and cannot."""
    probes = probes_of(config, names)
    if any(probe.name == PreferenceProbe.name for probe in probes):
        check_base_as_judge(config, codec)
    return probes


def _wanted(config: ConfigDict, measures_base: bool) -> Callable[[Place], bool]:
    """Return whether a checkpoint is measured: by the config, or as another arm's start."""
    steps, starts = _steps(config), starts_of(config)

    def is_wanted(place: Place) -> bool:
        if place.member == jobs.BASE_ARM and not measures_base:
            return False
        return not steps or place.step in steps or place in starts

    return is_wanted


def _measure(
    probes: Iterable[Probe],
    at: Checkpoint,
    run: Path,
    games_hash: str,
    stage: Callable[[int, int, str], None],
) -> None:
    for probe in probes:
        detail = f"states, {probe.title}, {at.arm} at step {at.step}"

        def progress(done: int, total: int, detail: str = detail) -> None:
            stage(done, total, detail)

        try:
            measure(probe, at, run, games_hash, progress)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "interrupted; the states that were measured are kept, the same command goes on "
                "from them"
            ) from None


def _policy(
    config: ConfigDict, model: ModelConfig, codec: Codec, weights: jobs.Weights, step: int
) -> Policy:
    """Return a sampler with a checkpoint's weights."""
    settings = config.evaluate
    sampler = sampler_of(settings, model, codec, playing_mesh(config), settings.slots)
    sampler.load(weights.restore_params(step, model, sampler.mesh))
    return sampler


def _weights(config: ConfigDict, model: ModelConfig, weights: jobs.Weights, step: int) -> Weights:
    mesh = playing_mesh(config)
    # Read as they compute. A float32 original beside a bfloat16 copy would take twice as much more.
    model = replace(model, param_dtype=model.compute_dtype)
    return Weights(model, weights.restore_params(step, model, mesh), mesh)


def needs_progress(config: ConfigDict, run: Path, games: GameSets) -> bool:
    """Whether a verdict of a run is on the floor, and the world's expert can say how far off."""
    world, game = load_world(config.world), games.played[0]
    if "expert" not in world.agents:
        return False
    if not isinstance(world.agent("expert", 0, AgentSettings(game=game)), Successor):
        return False

    def on_the_floor() -> bool:
        rows = (row for row in summarize(run).placements if row.primary)
        return any(row.placement.verdict is Verdict.FLOOR for row in rows)

    return bool(distributed.from_first("progress", on_the_floor))


def require_probes(config: ConfigDict, names: Sequence[str]) -> None:
    """Raise UsageError where there is nothing to measure."""
    if not (names or config.probes.names):
        raise UsageError(
            "probes.names is empty: name what to measure with --only, or set it in the config"
        )
