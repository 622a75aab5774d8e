"""The fields of a config on reinforcement learning (`cotjax rl`)."""

from __future__ import annotations

from ml_collections import ConfigDict


def rl() -> ConfigDict:
    """Return the section `rl`.

    Of the other sections `train` says how many steps there are, the optimizer and the rows of a
    micro-batch; `masking` and the arms say what action supervision is dropped; `evaluate` says the
    limits of an episode, and how checkpoints are played.
    """
    rl = ConfigDict()
    # ---- what a step plays
    rl.tasks = 16  # groups a step
    rl.group = 8  # plays of a group's game
    rl.slots = 64  # episodes played at once. They decide rounding, so a run cannot change them
    # Divides the logits wherever the policy plays, is trained or is compared with in training. What
    # is evaluated has evaluate.temperature.
    rl.temperature = 1.0
    # The log-probabilities that a sampler reports are the policy's at 1.0 and 0 alone, so other
    # values are refused.
    rl.top_p = 1.0
    rl.top_k = 0
    # Decode each state's prompt action, greedily, beside its sampled CoT action, and log how often
    # the two agree.
    rl.live_prompt = True
    # States of different groups whose thoughts are scored behind each other's prompts, to log
    # whether thoughts depend on what they follow (cotjax/rl/collapse.py); 0: none.
    rl.information = 8
    # The first steps, in which the policy writes the results of its searches itself (in one growing
    # text, data.layout); the world's own follow. 0: none.
    rl.simulated_steps = 0
    # 1: each step is played one step ahead, by the weights before the update that comes first, as
    # where sampler and trainer work at once. Importance weights correct for it (docs/rl.md).
    rl.off_policy_steps = 0
    # Devices, the last ones, on which the policy plays the next step while the others train this
    # one, which needs off_policy_steps 1. 0: all devices play and train in turn.
    rl.play_devices = 0
    # After a kill: "exact" plays the interrupted step again as a whole, "fast" keeps the episodes
    # that had ended, and may differ by rounding from a run that nothing interrupted.
    rl.resume = "exact"
    # ---- rewards
    # "win" (win_reward and score_reward), or of a world with answers "em" (1 for a right answer),
    # "f1" (over words) or "autocoa" (AutoCoA's published score, which has a hole: docs/rl.md).
    rl.reward = "win"
    rl.win_reward = 1.0  # of an episode that is won
    rl.score_reward = 0.0  # times the score at the end, in a world that has one
    # Taken from a step whose response is invalid.
    rl.format_penalty = 0.1
    # Taken from a step whose response is valid, and whose action the environment refused. At most
    # format_penalty: a policy for which malformed responses cost less learns to make them.
    rl.refused_penalty = 0.0
    rl.need_thought = True  # a response without a thought is invalid here, too
    rl.mask_cut = False  # leave responses cut by the token limit out of the policy loss
    # Decode past the closed action, up to the end of the turn, which is then sampled and trained
    # on; anything between the two makes the response invalid. Else decoding stops at the action.
    rl.sample_end = False
    _learning(rl)
    _loss(rl)
    return rl


def _learning(rl: ConfigDict) -> None:
    """Add what a step's plays become."""
    # ---- advantages
    # "grpo" ((r - mean) / std over the group), "dr_grpo" (r - mean) or "rloo" (r - mean of the
    # others). An arm can have its own.
    rl.advantage = "grpo"
    # What a group's mean and deviation count: each "trajectory" once, or each "step" (verl-agent's
    # default, in which long episodes weigh more).
    rl.stat_unit = "trajectory"
    # Weight of a second advantage, among the steps of a group that start from one state (GiGPO: 1);
    # 0: off.
    rl.omega = 0.0
    rl.gamma = 0.95  # discount of the return that this compares, a step
    # What steps from one state have in common: the "observation", "observation+admissible" (what
    # the environment said, and what it would accept), or the "state" (what it has carried out since
    # the start; a refused action changes nothing).
    rl.anchor = "observation+admissible"
    # Groups whose rewards are all equal: "keep", "skip" (they are not trained on) or "refill" (and
    # the next games of the stream are played in their place).
    rl.flat = "refill"
    # Groups whose rewards deviate by less (standard deviation over plays) count as flat, too: with
    # little to learn from, the KL term erases what was learnt (RAGEN-2, arXiv 2604.06268).
    rl.least_deviation = 0.0
    # The most times that a step plays further groups, in the place of flat and of broken ones.
    rl.refills = 2


def _loss(rl: ConfigDict) -> None:
    """Add what an update minimises."""
    # A mean over "token"s, over "trajectory"s of their means, or a sum over tokens by "constant".
    rl.aggregation = "token"
    rl.constant = 1024  # tokens that each trajectory's sum is divided by, with "constant"
    # What the mean over tokens counts: "fixed_budget" (dropped tokens too, so that the others weigh
    # as much as without dropping) or "token_sum" (tokens that are left).
    rl.normalizer = "fixed_budget"
    rl.clip_low = 0.2  # the ratio to the policy that played is clipped below 1 minus this
    rl.clip_high = 0.2  # and above 1 plus this
    # Bound of the loss of a negative advantage, in multiples of it (dual clip); 0: none.
    rl.dual_clip = 0.0
    # Weight of the KL divergence to the policy that training starts from; 0: it is not computed.
    rl.kl = 0.01
    # Divergence (the row's `kl`, nats a token) that this weight is adapted to after each step, and
    # how fast: by at most a fifth of kl_rate a step (arXiv 1909.08593: 0.1). 0: the weight stays.
    rl.kl_target = 0.0
    rl.kl_rate = 0.1
    # Where it is: a term of the "loss", or a cost of each play in the "reward" (the sum of k1 over
    # its tokens, before advantages are made).
    rl.kl_in = "loss"
    # Estimate of the divergence in the loss: "k1", "k2" or "k3". The gradient of k2 is that of
    # KL(policy || start), that of k3 of KL(start || policy), and that of k1 is 0 on average.
    rl.kl_estimator = "k2"
    # Action tokens that leave the policy term keep their KL and entropy terms.
    rl.kl_on_dropped = True
    # Weight of the entropy of the policy at sampled tokens, which the loss falls with; 0: none.
    rl.entropy = 0.0
    # Entropy (the row's, nats a token) up to which this weight grows by entropy_step after each
    # step; above it shrinks, and is not applied (arXiv 2505.22312, as TRL). 0: the weight stays.
    rl.entropy_target = 0.0
    rl.entropy_step = 0.005
    # Whose log-probabilities are those of the policy that played: "sampler", or "trainer"
    # (computed again before the first update, and each token weighted by the ratio of the two, at
    # most tis_cap). The latter for bfloat16.
    rl.old = "sampler"
    rl.tis_cap = 2.0
    rl.updates = 1  # updates a step, each on as many whole groups
    # Keep the optimizer's state in the host's memory while the policy plays, and the start's
    # parameters whenever they are not scored under: room for the sampler's weights and cache.
    rl.offload = False
