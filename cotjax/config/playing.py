"""The fields of a config on what is played and measured."""

from __future__ import annotations

from ml_collections import ConfigDict


def _conflict() -> ConfigDict:
    """D5: thoughts that support another action are forced."""
    conflict = ConfigDict()
    # "swap" (own thought, one noun swapped), "other" (another state's), "cut" (that one, before it
    # mentions what its action names), "cut_action" (before it says its action).
    conflict.variants = ("swap", "other", "cut", "cut_action")
    conflict.least_words = 3  # words that must be left of a thought that is cut
    return conflict


def _faithfulness() -> ConfigDict:
    """Lanham et al. 2023: the own thought is changed."""
    faithfulness = ConfigDict()
    # "early" (cut), "mistake" (a sentence made wrong), "filler" (dots), "paraphrase".
    faithfulness.tests = ("early", "mistake", "filler")
    faithfulness.mistakes = 3  # sentences of a thought that are made wrong, one at a time
    # Who writes paraphrases: "self" (the checkpoint), "endpoint"; "": nobody.
    faithfulness.writer = ""
    # The writer makes sentences wrong, too; else one noun of them is swapped for another.
    faithfulness.written_mistakes = False
    # Writer "endpoint": address of an OpenAI-compatible server, and the model's name there.
    faithfulness.endpoint = ""
    faithfulness.endpoint_model = ""
    faithfulness.key_variable = "OPENAI_API_KEY"  # environment variable with the key
    return faithfulness


def evaluate() -> ConfigDict:
    evaluate = ConfigDict()
    evaluate.slots = 64  # episodes played at once
    # Decode one half of the slots while the environments of the other half answer. Pays on a CPU
    # whose cores are idle while environments answer (docs/performance.md).
    evaluate.halves = False
    # Devices that share one copy of the weights while sampling; further copies play other episodes.
    # 0: the training mesh.
    evaluate.tensor = 0
    evaluate.max_length = 2048  # tokens a slot holds
    evaluate.max_steps = 30  # steps an episode
    evaluate.max_new_tokens = 96  # tokens a CoT response
    evaluate.max_action_tokens = 16  # tokens a prompt action
    # Plays of each game by each driver, which differ in what is drawn; over 1 needs a temperature.
    evaluate.samples = 1
    evaluate.temperature = 0.0  # divides the logits; 0: greedy
    evaluate.top_k = 0  # sample among the N most likely ids; 0: all
    evaluate.top_p = 1.0  # sample among the most likely ids of this total probability; 1: all
    # Divides positive and multiplies negative logits of ids in the prompt or response; 1: off.
    evaluate.repetition_penalty = 1.0
    # Forbid repeating any n-gram of this size (ids) in prompt + response; 0: off. When every id is
    # forbidden, the response ends.
    evaluate.no_repeat_ngram_size = 0
    # Kinds of action that drive episodes and are measured on expert states: "cot", "prompt",
    # "cot_constrained", "prompt_constrained" (the most likely admissible action, after the CoT
    # response's reasoning or right after the prompt), "instructed" (told in words not to reason).
    evaluate.elicitations = ("cot", "prompt")
    evaluate.offline = ()  # kinds that are measured on expert states alone
    # What a constrained action is chosen by: "total" log-probability, or its "mean" per token.
    evaluate.constrained_by = "total"
    # Last line of the prompt of an instructed response; "": a default sentence.
    evaluate.instruction = ""
    # Checkpoints (updates) at which episodes are played; (): all. Expert states are measured at
    # all.
    evaluate.episodes_at = ()  # -1 is the last
    # Who writes the results of searches in one growing text (data.layout): "real", the world;
    # "simulated", the model itself.
    evaluate.search = "real"
    evaluate.max_result_tokens = 256  # tokens of such results, if the model writes them
    evaluate.cot_prefix = ""  # prefilled before a CoT response; "<think>" forces reasoning
    evaluate.start_timeout = 120.0  # seconds for an environment's process to start
    evaluate.reset_timeout = 120.0  # seconds for an environment to load a game
    evaluate.step_timeout = 120.0  # seconds for an environment to answer an action
    evaluate.env_retries = 2  # restarts of an episode's environment before the episode is given up
    return evaluate


def primary() -> ConfigDict:
    """Return what the verdicts of the report are about, fixed before anything is measured."""
    primary = ConfigDict()
    # By what a gain is placed: "d3" (success of whole episodes) or "d1" (agreement with the expert
    # on its states, which needs fewer games, and can be right where no episode is won).
    primary.measure = "d3"
    # With reasoning and without: ("cot", "prompt"), or their constrained kinds.
    primary.kinds = ("cot", "prompt")
    # Arms and domains that have verdicts; (): all, and so where the config has none of these arms.
    # The others are described by their intervals, and fewer tests share one level.
    primary.arms = ()
    primary.domains = ()
    # The gap is said to have stayed where its change is shown to be less than this (share: 0.1 is
    # 10 points) to either side.
    primary.margin = 0.1
    # What `cotjax study --power` assumes: the rates of both kinds at the base and at the end, the
    # expert states of a game (D1), and the deviation over training seeds in logits.
    primary.assumed_base = (0.3, 0.25)
    primary.assumed_last = (0.7, 0.4)
    primary.assumed_states = 7
    primary.assumed_deviation = 0.3
    return primary


def probes() -> ConfigDict:
    probes = ConfigDict()
    probes.conflict = _conflict()
    probes.faithfulness = _faithfulness()
    # What is measured at single states of the episodes, beside what is played: names of
    # cotjax.probes.
    probes.names = ()
    probes.at = (0, -1)  # checkpoints (updates) at which it is measured; (): all; -1: the last
    # States of each domain, drawn by seed and the same at every checkpoint; 0: all.
    probes.states = 64
    probes.preference = _preference()
    probes.revisions = _revisions()
    # "attention" (D6) and "gradient" (D7): states measured at once on each copy of the weights.
    probes.attention = ConfigDict({"rows": 1})
    probes.gradient = ConfigDict({"rows": 1})
    probes.floor = _floor()
    return probes


def _preference() -> ConfigDict:
    """D4: judges are asked which of a state's two actions is better."""
    preference = ConfigDict()
    # "environment" (the probe `revisions` says how), "model" (a local one), "endpoint".
    preference.judges = ("environment",)
    # Judge "model": a Hugging Face, Orbax or PEFT folder; "": the base of the study.
    preference.model = ""
    preference.max_length = 4096  # tokens of a question to a model's folder
    preference.slots = 16  # questions asked at once, of a model's folder and of an endpoint
    # Judge "endpoint": address of an OpenAI-compatible server, and the model's name there.
    preference.endpoint = ""
    preference.endpoint_model = ""
    preference.key_variable = "OPENAI_API_KEY"  # environment variable with the key
    preference.max_tokens = 512  # tokens that the endpoint's model may write
    preference.turns = 0  # the latest turns that a question shows; 0: all
    return preference


def _revisions() -> ConfigDict:
    """D1', D2, and the progress of episodes: the world's expert finishes after an action."""
    revisions = ConfigDict()
    # States of each domain and driver (expert states, CoT-driven states); 0: all.
    revisions.states = 0
    revisions.limit = 100  # the most steps that the expert may take to the goal
    return revisions


def _floor() -> ConfigDict:
    """D2's floor: responses of each kind that are sampled from one state."""
    floor = ConfigDict()
    floor.samples = 2  # responses of each kind
    floor.temperature = 1.0  # over 0; evaluate.temperature may be 0
    return floor
