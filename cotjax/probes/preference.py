"""D4: asks judges which of a state's two actions is better (`cotjax.diagnostics.preference`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import jax
from ml_collections import ConfigDict

from cotjax.config import sampler_mesh
from cotjax.data.chat_template import AUTO, has_template
from cotjax.data.codec import Codec
from cotjax.diagnostics.episodes import action_of
from cotjax.diagnostics.preference import JUDGES, JudgeName, Opinion, PreferenceRow
from cotjax.endpoint.client import Client
from cotjax.envs.worlds import load_world
from cotjax.errors import UsageError
from cotjax.model.sharding import make_mesh, whole_slots
from cotjax.probes.judges import (
    EndpointJudge,
    EnvironmentJudge,
    Judge,
    ModelJudge,
    Pair,
    ids_of_letters,
)
from cotjax.probes.probe import Checkpoint, State, drawn
from cotjax.probes.revisions import both_decoded
from cotjax.sample.sampler import Sampler
from cotjax.train.fingerprints import Fingerprints
from cotjax.weights.convert import folder_kind, load_params, read_config, tokenizer_folder

# States that are asked about before their rows are written.
_AT_ONCE = 32


class PreferenceProbe:
    """The probe. The drawn expert states have a row."""

    name: ClassVar[str] = "preference"
    title: ClassVar[str] = "preference of judges"

    def check(self, config: ConfigDict) -> None:
        """Raise UsageError for an unknown judge, or one whose settings are missing or wrong."""
        settings = config.probes.preference
        for name in settings.judges:
            if name not in JUDGES:
                raise UsageError(
                    f"probes.preference.judges: unknown judge {name!r}; there are "
                    f"{', '.join(JUDGES)}"
                )
        if not settings.judges:
            raise UsageError("probes.preference.judges is empty; name at least one judge")
        for name, least in (("turns", 0), ("slots", 1), ("max_length", 1), ("max_tokens", 1)):
            if settings[name] < least:
                raise UsageError(
                    f"probes.preference.{name} is {settings[name]}; it must be at least {least}"
                )
        if "environment" in settings.judges and "expert" not in load_world(config.world).agents:
            raise UsageError(
                f"the judge 'environment' lets the world's expert finish, and world "
                f"{config.world!r} has none; leave it out of probes.preference.judges"
            )
        if "model" in settings.judges and settings.model:
            folder_kind(Path(settings.model))
            ids_of_letters(_codec_of(settings.model), settings.model)
        if "endpoint" in settings.judges and not (settings.endpoint and settings.endpoint_model):
            raise UsageError(
                "the judge 'endpoint' needs probes.preference.endpoint, an address such as "
                "http://localhost:8000/v1, and probes.preference.endpoint_model, the name there"
            )

    def settings(self, config: ConfigDict) -> dict[str, Any]:
        """Return the judges, and what their opinions depend on."""
        settings = config.probes.preference
        used: dict[str, Any] = {"judges": list(settings.judges)}
        if "environment" in settings.judges:
            used["limit"] = config.probes.revisions.limit
        if {"model", "endpoint"} & {*settings.judges}:
            used["turns"] = settings.turns
        if "model" in settings.judges:
            used["model"] = _fingerprint(config) if settings.model else "base"
            used["max_length"] = settings.max_length
        if "endpoint" in settings.judges:
            used |= {name: settings[name] for name in ("endpoint", "endpoint_model", "max_tokens")}
        return used

    def states(self, at: Checkpoint) -> list[State]:
        """Return the drawn expert states in which both responses were decoded."""
        return drawn(both_decoded(at, "reference"), at.config)

    def measure(self, states: Sequence[State], at: Checkpoint) -> Iterator[PreferenceRow]:
        """Ask every judge about every state whose actions differ."""
        names: Sequence[JudgeName] = at.config.probes.preference.judges
        pairs: dict[tuple, Pair] = {}
        for state in states:
            pair = _pair_of(state)
            if pair is None:
                yield _row(state, names, None)
            else:
                pairs[state.key] = pair
        if not pairs:
            return
        with ExitStack() as opened:
            judges = {name: judge_of(name, at, opened) for name in names}
            yield from _asked(list(pairs.values()), judges, names)


def check_base_as_judge(config: ConfigDict, codec: Codec) -> None:
    """Raise UsageError where the base of the study is to judge, and its tokenizer cannot."""
    settings = config.probes.preference
    if "model" in settings.judges and not settings.model:
        ids_of_letters(codec, "the study's base")


def _asked(
    asked: Sequence[Pair], judges: dict[JudgeName, Judge], names: Sequence[JudgeName]
) -> Iterator[PreferenceRow]:
    """Yield the rows of states whose actions differ."""
    # The environment has processes of its own, which start once.
    found: dict[JudgeName, list[Opinion]] = {}
    if "environment" in judges:
        found["environment"] = list(judges.pop("environment").judge(asked))
    for start in range(0, len(asked), _AT_ONCE):
        some = asked[start : start + _AT_ONCE]
        opinions = {name: list(judge.judge(some)) for name, judge in judges.items()}
        opinions |= {name: all_[start : start + _AT_ONCE] for name, all_ in found.items()}
        for number, pair in enumerate(some):
            own = {name: opinions[name][number] for name in names}
            yield _row(pair.state, names, own)


def _pair_of(state: State) -> Pair | None:
    """Return a state's two actions; None where they are equal, or there are not two."""
    turn = state.turn
    cot, prompt = action_of(turn.cot), action_of(turn.prompt)
    if cot is None or prompt is None or cot == prompt:
        return None
    return Pair(state, cot, prompt)


def _row(
    state: State, names: Sequence[JudgeName], opinions: Mapping[JudgeName, Opinion] | None
) -> PreferenceRow:
    """Return a state's row. `opinions`: None where no judge is asked."""
    cot, prompt = action_of(state.turn.cot), action_of(state.turn.prompt)
    if opinions is None:
        comparable = cot is not None and prompt is not None
        opinions = {name: Opinion.of("tie", "tie") for name in names} if comparable else {}
    return PreferenceRow(**state.place, cot=cot, prompt=prompt, opinions=dict(opinions))


def judge_of(name: JudgeName, at: Checkpoint, opened: ExitStack) -> Judge:
    """Return a judge of this name. Raises UsageError where it cannot be had.

    `opened`: closes its connections.
    """
    settings = at.config.probes.preference
    if name == "environment":
        return EnvironmentJudge(at)
    if name == "endpoint":
        client = Client(
            settings.endpoint,
            settings.endpoint_model,
            at.run / "answers",
            key_variable=settings.key_variable,
            concurrency=settings.slots,
        )
        opened.callback(client.close)
        return EndpointJudge(client, settings.max_tokens, settings.turns)
    if settings.model:
        policy, codec = _local_model(
            settings.model,
            settings.max_length,
            settings.slots,
            tuple(sampler_mesh(at.config).items()),
            tuple((name, at.config.model[name]) for name in ("param_dtype", "compute_dtype")),
        )
        return ModelJudge(policy, codec, settings.turns)
    if at.load_base is None:
        raise UsageError("there is no base to judge; name a model in probes.preference.model")
    return ModelJudge(at.load_base(), at.codec, settings.turns)


@lru_cache(maxsize=1)
def _local_model(
    folder: str,
    max_length: int,
    slots: int,
    mesh_shape: tuple[tuple[str, int], ...],
    dtypes: tuple[tuple[str, Any], ...],
) -> tuple[Sampler, Codec]:
    """Return a sampler with a model folder's weights, and its codec, kept for all checkpoints."""
    path = Path(folder)
    mesh = make_mesh(**dict(mesh_shape), devices=jax.local_devices())
    codec = _codec_of(folder)
    model = read_config(path, **dict(dtypes))
    sampler = Sampler(
        model,
        mesh,
        slots=whole_slots(slots, mesh),
        max_length=min(max_length, model.max_length),
        stop=codec.stop_texts,
        pad_id=codec.pad_id,
        max_new=1,
        pieces=codec.pieces,
    )
    sampler.load(load_params(path, mesh, **dict(dtypes)))
    return sampler, codec


@lru_cache(maxsize=1)
def _codec_of(folder: str) -> Codec:
    """Return the codec of a model folder."""
    home = tokenizer_folder(Path(folder))
    return Codec.load(home, AUTO if has_template(home) else "chatml")


def _fingerprint(config: ConfigDict) -> str:
    """Return the SHA-256 of the weights of the judge's folder."""
    fingerprints = Fingerprints(Path(config.out) / "fingerprints.json")
    digest = fingerprints.of_base(Path(config.probes.preference.model))
    fingerprints.keep()
    return digest
