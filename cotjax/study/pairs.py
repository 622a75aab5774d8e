"""The pairs of an arm that prefers: built from its trajectories and a rejected side, once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cotjax.config.preference import JUDGED
from cotjax.data.codec import Codec
from cotjax.data.pair_store import PairSource, write_pairs
from cotjax.data.pairs import (
    Answers,
    OtherStates,
    PairCounts,
    PairExample,
    SameState,
    lost_trees,
    step_pairs,
    trajectory_pairs,
)
from cotjax.data.tfds_agent import AgentConfig, fingerprint
from cotjax.data.trajectories import Trajectory, read_trajectories
from cotjax.envs.base import Game
from cotjax.rl.pairs import SampledAnswers, lost_episodes
from cotjax.rollout.record import read_records, record_files
from cotjax.study.arms import Arm
from cotjax.study.judging import JudgedStates, worse_steps

_VERSION = 1  # of the pairs that the same files give


def build_pairs(
    config: ConfigDict,
    run: Path,
    arm: Arm,
    agent: AgentConfig,
    games: Sequence[Game],
    digest: Callable[[Path], str],
) -> PairSource:
    """Build an arm's pairs unless they exist; return them. Of several processes each in turn.

    Args:
      agent: the settings of its trajectories, tokenizer and selection.
      games: those of training, in which responses are judged.
      digest: returns a file's SHA-256.

    Raises:
      DataError: a file is malformed, or gives no pair.
    """
    folder = run / "dataset" / f"pairs-{_fingerprint(config, arm, agent, digest)}"
    if not folder.exists():
        counts = PairCounts()
        return write_pairs(folder, _pairs(config, arm, agent, games, counts), counts)
    return PairSource(folder)


def pairs_made_from(made_from: Mapping[str, Any], pairs: PairSource) -> dict[str, Any]:
    """Return what an arm is made from, with its pairs in the place of its examples."""
    examples = pairs.folder.name.removeprefix("pairs-")
    return dict(made_from) | {"data": made_from["data"] | {"examples": examples}}


def _pairs(
    config: ConfigDict, arm: Arm, agent: AgentConfig, games: Sequence[Game], counts: PairCounts
) -> Iterator[PairExample]:
    codec = Codec.load(agent.tokenizer, agent.template, agent.prompt)
    limit, rejected = config.data.max_length, Path(arm.rejected)
    chosen = _chosen(agent)
    if config.preference.pairs == "trajectory":
        lost = (
            lost_episodes(codec, read_records(rejected), limit)
            if rejected.is_dir()
            else lost_trees(codec, read_trajectories(rejected), limit)
        )
        return trajectory_pairs(codec, chosen, lost, limit, counts)
    kinds = {"triples": arm.objective == "frodo", "differing": arm.objective == "trigger"}
    if arm.rejected == JUDGED:
        worse = worse_steps(config, arm.seed, _chosen(agent), games)
        answers: Answers = JudgedStates(codec, worse)
    else:
        answers = _answers(arm, codec)
    return step_pairs(codec, chosen, answers, limit, counts, **kinds)


def _chosen(agent: AgentConfig) -> Iterator[Trajectory]:
    (file,) = agent.sources.values()
    for trajectory in read_trajectories(file):
        if agent.selection.reason(trajectory) is None:
            yield trajectory


def _answers(arm: Arm, codec: Codec) -> Answers:
    if not arm.rejected:
        return OtherStates(codec, arm.seed)
    rejected = Path(arm.rejected)
    if rejected.is_dir():
        return SampledAnswers(codec, read_records(rejected))
    return SameState(codec, read_trajectories(rejected))


def _fingerprint(
    config: ConfigDict, arm: Arm, agent: AgentConfig, digest: Callable[[Path], str]
) -> str:
    """Return 12 hexadecimal digits of a hash of everything that the pairs depend on."""
    together = hashlib.sha256(fingerprint(agent, digest).encode())
    for file in _rejected_files(arm):
        together.update(f"{file.name}\0{digest(file)}\n".encode())
    settings: tuple[Any, ...] = (
        _VERSION,
        config.preference.pairs,
        arm.objective == "frodo",
        None if arm.rejected else arm.seed,
        config.data.max_length,
    )
    if arm.rejected == JUDGED:
        settings = (*settings, JUDGED, arm.seed, config.probes.revisions.limit)
    together.update(repr(settings).encode())
    if arm.objective == "trigger":
        together.update(b"differing")
    return together.hexdigest()[:12]


def _rejected_files(arm: Arm) -> Iterable[Path]:
    if arm.rejected in ("", JUDGED):
        return ()
    rejected = Path(arm.rejected)
    return record_files(rejected) if rejected.is_dir() else (rejected,)
