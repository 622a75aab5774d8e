"""A model behind an endpoint, played as it is: the base of a study that trains no arm.

Everything but the model is as in `cotjax.study.model`: games, loop, records and report. Answers are
kept in the run's folder, so an interrupted evaluation asks for nothing twice.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from cotjax.endpoint.client import Client
from cotjax.endpoint.messages import MessageCodec
from cotjax.endpoint.policy import EndpointPolicy, check_drawing
from cotjax.errors import InternalError, UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.params import Params
from cotjax.report.summary import Summary
from cotjax.rollout.elicitation import CONSTRAINED, DRAWN
from cotjax.runtime import distributed
from cotjax.study.describe import describe_run
from cotjax.study.evaluate import evaluate, playing_of
from cotjax.study.games import GameSets
from cotjax.study.jobs import Job
from cotjax.study.model import bind_played, config_without_arms
from cotjax.study.ready import check_games_alone, examples_alone
from cotjax.study.run import Study
from cotjax.study.training_data import prompt_of

NO_PREFILL = (
    "the endpoint does not go on with a response that is begun for it (it was asked once), so "
    "prompt actions are not available"
)


@dataclass(frozen=True)
class Endpoint:
    """Where a model is.

    Attributes:
      url: of an OpenAI-compatible server, up to the version.
      model: its name there.
      key_variable: environment variable with the server's key.
    """

    url: str
    model: str
    key_variable: str

    def __str__(self) -> str:
        return f"{self.model} at {self.url}"

    def digest(self, step: int) -> str:
        """Return a hash of the address and the name: the weights themselves are not known."""
        return hashlib.sha256(str(self).encode()).hexdigest()

    def restore_params(self, step: int, model: ModelConfig, mesh: Mesh) -> Params:
        raise InternalError("an endpoint's weights were asked for")


def config_of_endpoint(
    endpoint: Endpoint,
    *,
    world: str | None = None,
    split: str | None = None,
    games: Path | None = None,
    kinds: Sequence[str] = (),
    out: Path | None = None,
    file: Path | None = None,
    overrides: Sequence[str] = (),
) -> ConfigDict:
    """Return the config with which an endpoint's model is played.

    The arguments and errors are those of `cotjax.study.model.config_of_model`. The server has the
    chat template, so `data.template` has no effect.
    """
    name = re.sub(r"[^\w.-]+", "-", endpoint.model).strip("-") or "endpoint"
    return config_without_arms(
        str(endpoint), name, world, split, games, kinds, out, file, overrides
    )


class EndpointPlayer:
    """Plays an endpoint's model (a `cotjax.study.players.Player`)."""

    def __init__(self, client: Client, codec: MessageCodec, slots: int):
        self.codec, self.template, self.slots = codec, codec.template, slots
        self._client = client

    def policies(self, job: Job, number: int) -> Sequence[EndpointPolicy]:
        return [EndpointPolicy(self._client, self.codec, self.slots) for _ in range(number)]


def check_endpoint(config: ConfigDict) -> None:
    """Check a config whose base is an endpoint's model. Nothing is asked or written.

    Raises:
      UsageError: a setting is impossible, or one that endpoints do not have.
    """
    check_games_alone(config)
    if distributed.several():
        raise UsageError("an endpoint is asked by one process: start this command on one host")
    check_drawing({name: config.evaluate[name] for name in DRAWN})
    for kind in playing_of(config).measured:
        if kind in CONSTRAINED:
            raise UsageError(
                f"endpoints report no probabilities of given texts, so none can be chosen among: "
                f"leave {kind!r} out of evaluate.elicitations and evaluate.offline"
            )
    MessageCodec(prompt_of(config))


def play_endpoint(study: Study, games: GameSets, endpoint: Endpoint) -> Summary | None:
    """Play an endpoint's model; return the report's summary.

    Raises:
      UsageError: the endpoint refuses, cannot be reached, or begins no response that prompt actions
        alone need; or episodes were played with another model or other games.
      DataError: its answers, or kept ones, cannot be read.
    """
    config, run = study.config, study.folder
    codec = MessageCodec(prompt_of(config, examples_alone(config)))
    if config.probes.names:
        study.reporter.say(
            f"warning: probes.names ({', '.join(config.probes.names)}) has no effect: probes need "
            "a model's weights, which an endpoint does not give"
        )
    made_from: dict[str, Any] = {
        "base": {"file": str(endpoint), "sha256": endpoint.digest(0)},
    }
    bind_played(run, made_from, games.hash, {})
    expert = study.trajectories.expert(games)
    client = Client(
        endpoint.url,
        endpoint.model,
        run / "answers",
        key_variable=endpoint.key_variable,
        concurrency=config.evaluate.slots,
    )
    try:
        continues = _without_prompt_actions(study, client)
        with study.reporter.stage("evaluate", f"Playing {endpoint}") as stage:
            evaluate(
                config,
                player=partial(EndpointPlayer, client, codec),
                games=games,
                expert=expert,
                arms={},
                base=endpoint,
                records=run / "records",
                report=stage.update,
                warn=study.reporter.say,
            )
    finally:
        client.close()
    about = {"base": str(endpoint), "continues_responses": continues}
    describe_run(config, run, games, about, codec, expert, study.reporter.seconds, made_from)
    return study.report()


def _without_prompt_actions(study: Study, client: Client) -> bool | None:
    """Leave prompt actions out where they are not available.

    Returns whether they are; None where nobody asks for them. Raises UsageError where nothing else
    is asked for.
    """
    settings = study.config.evaluate
    if "prompt" not in {*settings.elicitations, *settings.offline}:
        return None
    if client.prefill is not None:
        return True
    for name in ("elicitations", "offline"):
        settings[name] = tuple(kind for kind in settings[name] if kind != "prompt")
    if not settings.elicitations:
        raise UsageError(f"{client.url}: {NO_PREFILL}; play 'cot' or 'instructed'")
    study.reporter.say(f"warning: {NO_PREFILL}")
    return False
