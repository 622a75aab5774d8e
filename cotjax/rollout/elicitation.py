"""How actions are drawn out of the model.

Five kinds of action of one state, all from the same cached prompt:

| kind | |
|---|---|
| `cot` | the ordinary response: reasoning, then the action |
| `prompt` | the response is prefilled with `<action>`, so there is no reasoning |
| `cot_constrained` | the most likely admissible action after the reasoning of `cot`, `<action>` |
| `prompt_constrained` | the most likely admissible action after `<action>` |
| `instructed` | the ordinary response to the prompt with an instruction in words not to reason |

The first two ask what the model writes, the constrained ones what it knows: no format can go wrong.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from cotjax import formats
from cotjax.rollout.record import KINDS, Driver, Kind

# The fields of an Elicitation that say how the next id is drawn: a policy's `sample` takes them.
DRAWN = ("temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size")
CONSTRAINED: tuple[Kind, ...] = ("cot_constrained", "prompt_constrained")
CONSTRAINED_BY = ("total", "mean")
INSTRUCTION = "Do not reason. Answer with the action alone."
REAL, SIMULATED = "real", "simulated"  # who writes the results of a search: the world, the policy
# What the history of a growing text holds, in words.
WHOLE_TEXT = "all that was sampled, and the results; one growing text"
# What is decoded beside a driver's own kind, unless `play` is told.
_BESIDE: dict[Driver, tuple[Kind, ...]] = {"cot": ("prompt",), "reference": ("cot", "prompt")}


@dataclass(frozen=True)
class Elicitation:
    """How actions are drawn out of the model: part of every record, the same at all checkpoints.

    Attributes:
      temperature, …: the fields named in DRAWN are those of `cotjax.sample.sampling.Sampling`;
        temperature 0 is greedy.
      max_new_tokens: limit of a CoT response, in tokens, and of an instructed one.
      max_action_tokens: limit of a prompt response, in tokens.
      max_steps: turns after which an episode ends.
      cot_prefix: prefilled before a CoT response ("" lets the model decide whether to reason).
      prompt_prefix: prefilled before a prompt response.
      history: what a prompt shows of past turns, in words.
      constrained_by: the score of a constrained action: "total" log-probability, or "mean" per
        token.
      instruction: the last line of the user's turn before an instructed response.
      greedy: kinds of action that are decoded greedily, whatever the temperature is.
      to_end: a CoT response is decoded up to the end of the turn, not to the action's closing tag,
        and is well-formed if it ends where the turn does.
      simulated: the policy writes the results of its searches itself, in a growing text.
      max_result_tokens: limit of such results, in tokens.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    max_new_tokens: int = 96
    max_action_tokens: int = 16
    max_steps: int = 30
    cot_prefix: str = ""
    prompt_prefix: str = formats.ACTION_OPEN
    history: str = "observations and executed actions; past reasoning is not part of the prompt"
    constrained_by: str = "total"
    instruction: str = INSTRUCTION
    greedy: tuple[Kind, ...] = ()
    to_end: bool = False
    simulated: bool = False
    max_result_tokens: int = 256

    def how(self, kind: Kind) -> dict[str, float]:
        """Return how a kind's next id is drawn, as keyword arguments of a policy's `sample`."""
        how = {name: getattr(self, name) for name in DRAWN}
        return how | {"temperature": 0.0} if kind in self.greedy else how

    def recorded(self, kinds: Collection[Kind]) -> dict[str, Any]:
        """Return the fields for a record with these kinds, without those that concern others."""
        fields = asdict(self)
        if not {*kinds} & {*CONSTRAINED}:
            del fields["constrained_by"]
        if "instructed" not in kinds:
            del fields["instruction"]
        if not self.greedy:
            del fields["greedy"]
        if not self.to_end:
            del fields["to_end"]
        if not self.simulated:
            del fields["simulated"], fields["max_result_tokens"]
        return fields


def longest_response(settings: Any, simulated: bool = False) -> int:
    """Return the most tokens that are decoded at once with a config's `evaluate` settings.

    `simulated`: the policy may also write results of searches, whatever `settings.search` says.
    """
    limits = [settings.max_new_tokens, settings.max_action_tokens]
    if simulated or settings.search == SIMULATED:
        limits.append(settings.max_result_tokens)
    return max(limits)


def kinds_decoded(driver: Driver, kinds: Collection[Kind] | None = None) -> tuple[Kind, ...]:
    """Return the kinds that are decoded in every state, in the order of decoding.

    `kinds`: those that are asked for; None: as the driver says. Besides, the driver's own, and the
    CoT response whose reasoning a constrained choice follows.
    """
    wanted = {driver, *(_BESIDE.get(driver, ()) if kinds is None else kinds)}
    if "cot_constrained" in wanted:
        wanted.add("cot")
    return tuple(kind for kind in KINDS if kind in wanted)
