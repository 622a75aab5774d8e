"""How actions are drawn out of the model."""

from __future__ import annotations

from dataclasses import dataclass

from cotjax import formats

# The fields of an Elicitation that say how the next id is drawn: a policy's `sample` takes them.
DRAWN = ("temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size")


@dataclass(frozen=True)
class Elicitation:
    """How actions are drawn out of the model: part of every record, the same at all checkpoints.

    Attributes:
      temperature, …: the fields named in DRAWN are those of `cotjax.sample.sampling.Sampling`;
        temperature 0 is greedy.
      max_new_tokens: limit of a CoT response, in tokens.
      max_action_tokens: limit of a prompt response, in tokens.
      max_steps: turns after which an episode ends.
      cot_prefix: prefilled before a CoT response ("" lets the model decide whether to reason).
      prompt_prefix: prefilled before a prompt response.
      history: what a prompt shows of past turns, in words.
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

    @property
    def how(self) -> dict[str, float]:
        """How the next id is drawn, as keyword arguments of a policy's `sample`."""
        return {name: getattr(self, name) for name in DRAWN}
