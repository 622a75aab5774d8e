"""Expert states with thoughts, and policies that answer to forced thoughts by a rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cotjax.config import default_config
from cotjax.data.codec import Codec
from cotjax.diagnostics.metrics import Point
from cotjax.diagnostics.probe_rows import Measured, ProbeHeading
from cotjax.probes.probe import Checkpoint
from cotjax.rollout.record import (
    PlayedGame,
    Record,
    Response,
    Timing,
    Turn,
    record_path,
    write_record,
)
from helpers.rollouts import Generation, Prompts


@dataclass(frozen=True)
class Said:
    """One expert state: what was seen there, and what the checkpoint said.

    `action`: the CoT action; None for an invalid response. `prompt`: the prompt action.
    """

    thought: str | None
    action: str | None
    prompt: str | None = "look"
    admissible: tuple[str, ...] | None = None
    observation: str = "You see a plate 1."


def response(codec: Codec, text: str, thought: str | None, action: str | None) -> Response:
    """Return a response as it would be read from this text."""
    ids = tuple(codec.encode(text))
    return Response(
        text=text,
        thought=thought,
        action=action,
        valid=action is not None,
        reason=None if action else "no_action",
        problem=None if action else "no <action>",
        admissible=None,
        ids=ids,
        new_tokens=len(ids),
        stopped=True,
        seed=0,
    )


def write_states(
    run: Path,
    codec: Codec,
    game: str,
    states: list[Said],
    *,
    task: str = "put a plate in fridge",
    task_type: str = "pick",
    domain: str = "in_domain",
    arm: str = "sft",
    checkpoint: int = 10,
) -> None:
    """Write the record of a game's expert states."""
    turns: list[Turn] = []
    length = 0
    for said in states:
        ids = (
            codec.next_prompt("look", said.observation)
            if turns
            else codec.first_prompt(task, said.observation)
        )
        length += len(ids)
        thought = "" if said.thought is None else f"<think>{said.thought}</think>"
        turns.append(
            Turn(
                observation=said.observation,
                admissible_commands=said.admissible,
                prompt_ids=tuple(ids),
                prompt_length=length,
                cot=response(
                    codec,
                    f"{thought}<action>{said.action or ''}</action>",
                    said.thought,
                    said.action,
                ),
                prompt=response(codec, f"{said.prompt or ''}</action>", None, said.prompt),
                reference="look",
                executed="look",
                accepted=True,
                score=None,
            )
        )
    record = Record(
        world="alfworld",
        arm=arm,
        checkpoint=checkpoint,
        checkpoint_hash="c",
        games_hash="g",
        domain=domain,
        driver="reference",
        game=PlayedGame(id=game, task_type=task_type, split="valid_unseen"),
        seed=0,
        sample=0,
        task=task,
        success=True,
        score=None,
        ended="won",
        env_error=None,
        env_faults=(),
        elicitation={"cot_prefix": ""},
        steps=tuple(turns),
        final_observation="Done.",
        timing=Timing(environment_s=0.0, waited_s=0.0, sampler_s=0.0, total_s=0.0),
    )
    path = record_path(
        run / "records", arm=arm, checkpoint=checkpoint, driver="reference", game_id=game
    )
    write_record(path, record)


def checkpoint(run, codec, policy, *, said=None, arm="sft", step=10, **settings) -> Checkpoint:
    """Return the checkpoint of these records; `settings`: of `config.probes` or one of its parts.

    A setting of a part is named with two underscores: `conflict__variants`.
    """
    config = default_config()
    config.probes.states = 0
    config.evaluate.update(max_length=4096)
    for name, value in settings.items():
        *part, last = name.split("__")
        section = config.probes[part[0]] if part else config.probes
        section[last] = value
    return Checkpoint(
        arm=arm,
        step=step,
        digest="sha",
        config=config,
        world=None,
        games={},
        codec=codec,
        files=sorted((run / "records" / arm / str(step)).glob("*/*.json")),
        load_policy=lambda: policy,
        load_weights=None,
        workers=0,
        say=(said if said is not None else []).append,
    )


@dataclass
class TextPolicy(Prompts):
    """Answers by a rule: (prompt, what is prefilled) as text -> the text that it writes.

    `sampled`: the prefixes of each call.
    """

    codec: Codec
    rule: Callable[[str, str], str]
    slots: int = 3
    max_length: int = 4096
    prompts: dict = field(default_factory=dict)
    sampled: list = field(default_factory=list)

    def sample(self, prefixes, *, max_new, seeds, temperature, **how):
        assert seeds.keys() == prefixes.keys()
        self.sampled.append((dict(prefixes), max_new))
        answers = {}
        for slot, prefix in prefixes.items():
            text = self.rule(self.codec.decode(self.prompts[slot]), self.codec.decode(prefix))
            answers[slot] = Generation(self.codec.encode(text), None)
        return answers


def estimates(probe, rows):
    """Return name -> estimate of all that the rows of a probe count."""
    heading = ProbeHeading(
        probe=probe, arm="sft", checkpoint=10, checkpoint_hash="c", games_hash="g",
        settings={}, states=len(rows),
    )  # fmt: skip
    point = Point()
    for row in rows:
        point.add_state(Measured.of(heading, row))
    return {name: point.estimate(name) for name in type(rows[0]).metrics}
