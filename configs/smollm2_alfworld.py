"""SmolLM2-135M-Instruct on real ALFWorld games: three kinds of thoughts, each with k = 0 and 0.3.

"named" and "unnamed" are trained on a scripted expert whose thoughts name the action, or do not;
"written" on the thoughts that a model wrote while it played: episodes of KnowAgent (zjunlp), one
JSON line each in the layout `steps` of docs/data.md, or any other file of trajectories. Prompts
hold the model's own system message, the world's instruction, and 8 sampled admissible actions a
turn: 200 to 250 tokens a step.

Command   cotjax base smollm2 --out models/smollm2
          cotjax data import knowagent.jsonl --environment alfworld --out data/knowagent.jsonl
          cotjax study --config configs/smollm2_alfworld.py --config.games.root=/path/to/alfworld
Data      ALFWorld's json_2.1.1/train and json_2.1.1/valid_seen, in the 0.4 command grammar
Budget    computed: 368,640 tokens an arm, 2.2M in all; a CoT episode decodes at most 15 x 96
          tokens, a prompt episode 15 x 16
Hardware  computed from 250 tokens/s: 2.5 hours of training and some 4 of playing on 2 CPU cores
          with 12 GB, minutes on one GPU. The same command resumes at any point.
Result    this size was not run; the 6 updates of configs/smollm2_alfworld_quick.py move nothing
"""

from cotjax.config import default_config

WRITTEN = "data/knowagent.jsonl"
ARMS = {
    "named": {"label": "thoughts name the action", "fraction": 0.0},
    "named_reduced": {"label": "named, k = 0.3", "fraction": 0.3},
    "unnamed": {"label": "thoughts do not name it", "fraction": 0.0, "thoughts": "unnamed"},
    "unnamed_reduced": {"label": "unnamed, k = 0.3", "fraction": 0.3, "thoughts": "unnamed"},
    "written": {"label": "a model's thoughts", "fraction": 0.0, "trajectories": WRITTEN},
    "written_reduced": {
        **{"label": "a model's thoughts, k = 0.3", "fraction": 0.3, "trajectories": WRITTEN},
    },
}


def get_config():
    config = default_config()
    config.title = "Where the gains of CoT training land: SmolLM2 on real ALFWorld games"
    config.out = "runs/smollm2-alfworld"
    config.cpu_devices = 1  # of all cores: two would each read all weights for half of the slots
    config.model.base = "models/smollm2"
    config.model.compute_dtype = "bfloat16"  # 1.7 times as fast where a CPU multiplies it
    config.games.source = "alfworld"
    config.games.train = 240
    config.games.eval_split = "valid_seen"
    config.games.in_domain = 30
    config.games.ood = 12
    config.task_types.collect = config.task_types.in_domain
    config.collect.slips = 0.3
    config.prompt.system = "template"
    config.prompt.instruction = "world"
    config.prompt.admissible = "sampled"  # all of them: half as many tokens again
    config.prompt.admissible_count = 8
    # One pass over the written episodes, in batches of 6,144 tokens.
    config.data.max_length = config.train.row_length = 1536
    config.train.batch = 4
    config.train.accumulate = 2
    config.train.steps = 60
    config.train.save_every = 30
    config.train.warmup = 5
    config.train.learning_rate = 2e-4
    config.train.information_examples = 8
    config.evaluate.slots = 8
    config.evaluate.max_length = 2048
    config.evaluate.max_steps = 15
    # The longest scripted response has 69 tokens, the longest written one 135.
    config.evaluate.max_new_tokens = 96
    config.evaluate.offline = ("prompt_constrained",)
    config.evaluate.episodes_at = (0, -1)
    config.arms = ARMS
    return config
