"""The fields of a config on training with pairs: what they are, and what is minimised."""

from __future__ import annotations

from ml_collections import ConfigDict

# In place of a file as an arm's `rejected`: other actions, of which the environment says that they
# are worse.
JUDGED = "environment"


def preference() -> ConfigDict:
    preference = ConfigDict()
    # What is compared: "step" (two responses in one state) or "trajectory" (a won and a lost
    # episode of a game; for "dpo" alone).
    preference.pairs = "step"
    # DPO, FRODO: how strongly the policy is held to the reference.
    preference.beta = 0.1
    # DPO: divide each side's log-ratio by its tokens.
    preference.length_normalised = False
    # DPO: weight of the mean NLL of the chosen side's tokens; 0: none.
    preference.nll = 0.0
    preference.frodo = _frodo()
    preference.trigger = _trigger()
    return preference


def _trigger() -> ConfigDict:
    trigger = ConfigDict()
    trigger.alpha = 0.2  # weight of the chosen continuation's mean log-probability
    return trigger


def _frodo() -> ConfigDict:
    frodo = ConfigDict()
    frodo.lm = 1.0  # weight of -log pi(action | thought)
    frodo.counterfactual = 1.0  # of the same for the counterfactual thought and its action
    frodo.ranking = 1.0  # of the margin between the action behind the right thought and the other
    frodo.margin = 1.0  # nats a token
    return frodo
