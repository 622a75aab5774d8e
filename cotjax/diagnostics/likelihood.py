"""Rows of the probe `likelihood`: how likely a model finds actions, with its reasoning and without.

D1 and D2 ask whether two texts are equal. Here the actions of a state are scored, by their own
tokens and those of `</action>`, under the model at temperature 1:

    prompt | <action>                      then the action, </action>     after the prompt
    prompt | own reasoning | <action>      then the action, </action>     after the CoT

The second is what the CoT response said before its first `<action>`, as in constrained choice
(`cotjax.rollout.constrained`). The action is encoded as in training.

- D1: nats of the reference action (minus its log-probability), whole and per token; their
  difference is what the model's own reasoning adds. Where the environment lists its admissible
  actions, and the reference is among them, also its posterior: its share of the probability of all
  listed actions.
- D2: what the prompt alone thinks of the CoT action: its log-probability minus that of the prompt
  action, both after the prompt; 0 where they are the same. And how far both posteriors over the
  listed actions are apart, by their Jensen-Shannon divergence, from 0 to ln 2 nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field
from scipy.special import logsumexp, rel_entr

from cotjax.diagnostics.metric import Metric
from cotjax.diagnostics.probe_rows import ProbeRow

NAME = "likelihood"
# An action counts up to so many nats, and so does the mean of its tokens: a model that rules an
# action out may give it hundreds, and a few such states would decide a mean. The limits also set
# how wide an interval of few states is, so they are no larger than what can be told apart.
_NATS, _TOKEN_NATS = 10.0, 5.0


def _metrics() -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    for kind, place in (("cot", "the CoT"), ("prompt", "the prompt")):
        metrics |= {
            f"d1_nats_{kind}": Metric(
                f"D1, nats of the reference action after {place}", NAME, "mean", upper=_NATS
            ),
            f"d1_token_nats_{kind}": Metric(
                f"D1, nats per token of the reference action after {place}",
                NAME,
                "mean",
                upper=_TOKEN_NATS,
            ),
            f"d1_posterior_{kind}": Metric(
                f"D1, posterior of the reference action after {place}", NAME, "mean", upper=1.0
            ),
        }
    return metrics | {
        "d1_nats_gap": Metric(
            "D1, nats of the reference action that reasoning saves",
            NAME,
            "mean",
            upper=_NATS,
            low=-_NATS,
        ),
        "d1_posterior_gap": Metric(
            "D1, posterior of the reference action, gap (CoT − prompt)",
            NAME,
            "mean",
            upper=1.0,
            low=-1.0,
        ),
        "d2_nats": Metric(
            "D2, log-probability of the CoT action minus the prompt action's, after the prompt",
            NAME,
            "mean",
            upper=_NATS,
            low=-_NATS,
        ),
        "d2_divergence": Metric(
            "D2, divergence of the posteriors after CoT and prompt, nats",
            NAME,
            "mean",
            upper=float(np.log(2)),
        ),
    }


class LikelihoodRow(ProbeRow):
    """Log-probabilities of actions at one state, in nats, of all their tokens and of `</action>`.

    After the prompt unless said otherwise.
    """

    metrics: ClassVar[Mapping[str, Metric]] = _metrics()

    tokens: int = Field(description="of the reference action, those of `</action>` included")
    reference: float | None = Field(
        description="of the reference action; null where it does not fit behind the prompt"
    )
    reference_after_cot: float | None = Field(
        description="of the reference action after the model's own reasoning; null where there is "
        "no CoT response, or it leaves no space for the action"
    )
    cot: float | None = Field(description="of the CoT action; null where there is none")
    prompt: float | None = Field(description="of the prompt action; null where there is none")
    posterior: float | None = Field(
        description="the reference action's share of the probability of all admissible actions; "
        "null where none are listed, or it is not among them"
    )
    posterior_after_cot: float | None = Field(description="the same after the model's reasoning")
    divergence: float | None = Field(
        description="Jensen-Shannon divergence of the posteriors over the admissible actions, "
        "after the prompt and after the reasoning; null where one is missing"
    )

    def counts(self) -> Mapping[str, float]:
        """Return the state's value of every metric that is defined here."""
        found: dict[str, float | None] = {}
        for kind, logprob in (("prompt", self.reference), ("cot", self.reference_after_cot)):
            if logprob is not None:
                found[f"d1_nats_{kind}"] = min(-logprob, _NATS)
                found[f"d1_token_nats_{kind}"] = min(-logprob / self.tokens, _TOKEN_NATS)
        apart = _minus(self.cot, self.prompt)
        found |= {
            "d1_nats_gap": _minus(found.get("d1_nats_prompt"), found.get("d1_nats_cot")),
            "d1_posterior_prompt": self.posterior,
            "d1_posterior_cot": self.posterior_after_cot,
            "d1_posterior_gap": _minus(self.posterior_after_cot, self.posterior),
            "d2_nats": None if apart is None else min(max(apart, -_NATS), _NATS),
            "d2_divergence": self.divergence,
        }
        return {name: value for name, value in found.items() if value is not None}


def posterior(logprobs: Sequence[float]) -> np.ndarray:
    """Return each action's share of the probability of all: the softmax of log-probabilities."""
    values = np.asarray(logprobs, np.float64)
    return np.exp(values - logsumexp(values))


def divergence(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Jensen-Shannon divergence of two distributions, in nats (Lin 1991)."""
    middle = (one + other) / 2
    return float(rel_entr(one, middle).sum() + rel_entr(other, middle).sum()) / 2


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
