"""The loss mask as a library: token roles, weights by target, reduced action supervision.

Importing it needs numpy alone. The array functions take numpy and jax arrays, inside and outside
`jax.jit`.

    from cotjax.masking import Dropping, roles_from_messages, target_weights, targets, token_sum

    ids, roles = roles_from_messages(messages, tokenizer)
    drop = Dropping(fraction=0.3).tokens(roles, example_id)  # the tokens that this example drops
    weights = target_weights(roles, drop_tokens=drop)  # weights[i] is that of predicting ids[i + 1]
    loss_sum, weight = token_sum(cross_entropy(logits, targets(ids)), weights)

`docs/masking.md` shows it in an optax loop, in transformers' Trainer and in TRL's SFTTrainer.
"""

from cotjax.masking.chat import roles_from_messages
from cotjax.masking.collate import MaskCollator, mask_callback
from cotjax.masking.drop import (
    CONTROLS,
    NEVER,
    UNITS,
    Dropping,
    LinearFraction,
    draw,
    drops_action,
    turn_numbers,
)
from cotjax.masking.losses import NORMALIZERS, example_mean, fixed_budget, token_sum
from cotjax.masking.policy import (
    KL_ESTIMATORS,
    MOST_LOG_RATIO,
    clipped,
    kl_estimates,
    log_ratios,
    policy_losses,
    truncated_importance,
)
from cotjax.masking.roles import RESPONSE_ROLES, MaskError, Role, RoleTokens, roles_from_segments
from cotjax.masking.sampled import SampledRoles, roles_from_ids
from cotjax.masking.text import DEFAULT_TAGS, Tags, roles_from_text
from cotjax.masking.weights import check_supervision, labels, spread, target_weights, targets

__all__ = [
    "CONTROLS",
    "DEFAULT_TAGS",
    "KL_ESTIMATORS",
    "MOST_LOG_RATIO",
    "NEVER",
    "NORMALIZERS",
    "RESPONSE_ROLES",
    "UNITS",
    "Dropping",
    "LinearFraction",
    "MaskCollator",
    "MaskError",
    "Role",
    "RoleTokens",
    "SampledRoles",
    "Tags",
    "check_supervision",
    "clipped",
    "draw",
    "drops_action",
    "example_mean",
    "fixed_budget",
    "kl_estimates",
    "labels",
    "log_ratios",
    "mask_callback",
    "policy_losses",
    "roles_from_ids",
    "roles_from_messages",
    "roles_from_segments",
    "roles_from_text",
    "spread",
    "target_weights",
    "targets",
    "token_sum",
    "truncated_importance",
    "turn_numbers",
]
