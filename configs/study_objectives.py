"""Where the gains of eight objectives land: SFT, DPO, FRODO, GRPO and GiGPO, on made games.

All arms start from one short fine-tuning of the shipped base on thoughts that name the action
("short", 30 updates): what RL starts from must win now and then, and what preferences start from
must know the format. A "+" is reduced action supervision, k = 0.3. The rejected side of DPO and
FRODO is the thought and action of another state of the same episode; with records of the short
arm on training games (`rejected`, docs/objectives.md) it is the model's own.

Command   cotjax study --config configs/study_objectives.py
Budget    computed: 0.25M tokens of training for "short", 0.33M for each arm on data (twice that
          for a pair's reference); 2,560 sampled episodes of at most 20 steps for each arm that
          plays; 1,520 greedy episodes, and expert states at 19 checkpoints
Hardware  2 CPU cores: not measured; by the rates of README 2 minutes of training on data, 30 of
          sampled episodes, 15 of their updates and 15 of playing. The same command resumes
Result    this size was not run; configs/study_objectives_quick.py is a study of keys in minutes
"""

from cotjax.config import default_config

SHORT = {"start": "short"}
ARMS = {
    "short": {"label": "short SFT", "fraction": 0.0, "steps": 30, "learning_rate": 2e-3},
    "sft": {"label": "SFT", "fraction": 0.0, "learning_rate": 1e-3, **SHORT},
    "sft_plus": {"label": "SFT+", "fraction": 0.3, "learning_rate": 1e-3, **SHORT},
    "dpo": {"label": "DPO", "fraction": 0.0, "objective": "dpo", **SHORT},
    "dpo_plus": {"label": "DPO+", "fraction": 0.3, "objective": "dpo", **SHORT},
    "frodo": {"label": "FRODO", "fraction": 0.0, "objective": "frodo", **SHORT},
    "grpo": {"label": "GRPO", "fraction": 0.0, "objective": "grpo", **SHORT},
    "grpo_plus": {"label": "GRPO+", "fraction": 0.3, "objective": "grpo", **SHORT},
    "gigpo": {"label": "GiGPO", "fraction": 0.0, "objective": "gigpo", **SHORT},
}


def get_config():
    config = default_config()
    config.title = "Where the gains of eight objectives land"
    config.out = "runs/study_objectives"
    config.cpu_devices = 2
    config.games.train = 150  # of each in-domain task type: 600
    config.games.in_domain = 64
    config.games.ood_domains = ("ood_rooms",)
    config.games.ood = 12
    config.task_types.collect = config.task_types.in_domain
    config.collect.slips = 0.3
    config.data.max_length = 1024  # of a pair, too
    config.rl.tasks, config.rl.group, config.rl.slots = 8, 8, 32
    config.rl.clip_high = 0.28
    config.rl.flat = "skip"  # a budget that is known beforehand
    # Of arms on data updates of 4 rows; of those that play, steps of 64 episodes.
    config.train.steps = 40
    config.train.save_every = 20
    config.train.batch = 4
    config.train.row_length = 2048
    config.train.learning_rate = 3e-4
    config.train.warmup = 5
    config.train.schedule = "constant"
    config.train.vector_rate = 10.0
    config.train.information_examples = 16
    config.evaluate.max_steps = 20
    config.evaluate.max_new_tokens = 64
    config.evaluate.slots = 38
    config.evaluate.offline = ("cot_constrained", "prompt_constrained")
    config.evaluate.episodes_at = (0, -1)  # and what others start from
    config.primary.measure = "d1"  # free decoding hides the prompt action from D3
    config.primary.kinds = ("cot_constrained", "prompt_constrained")
    config.primary.domains = ("in_domain",)
    config.arms = ARMS
    return config
