"""GRPO on ALFWorld with the settings of reduced action supervision (arXiv 2606.26935), appendix A.

200 steps of 32 games x 8 plays, constant rate 1e-6, KL 0.01, penalty 0.1 for an invalid step. The
standard arm, and k = 0.3 of the turns without their action's loss. The KL term is k2, whose
gradient is that of the divergence to the start (docs/rl.md); `--config.rl.kl_estimator=k3` is what
the paper's code base does.

Plan      cotjax plan --config configs/grpo_qwen3_8b_alfworld.py --config.model.base=qwen3-8b
Result    by the compiler of jax 0.10.2, of a chip's 95 GiB at the worst moment: play 64.4 while it
          reads prompts and 62.2 while it decodes (the sampler's weights 7.6, its cache 38.3, the
          state and the start 15.3), scoring 17.7, a micro-batch 29.0, the update 19.2. Compiled
          in three quarters of an hour of the lowest priority on 2 busy cores, 28 November 2026
Command   ALFWORLD_DATA=~/alfworld cotjax rl --config configs/grpo_qwen3_8b_alfworld.py
          with models/qwen3-8b fine-tuned to respond in the format first (cotjax train, export)
Hardware  8 chips with 95 GiB each (two hosts of v5p): not run yet
"""

from cotjax.config import default_config


def get_config():
    config = default_config()
    config.title = "Where the gains of GRPO land: Qwen3-8B on ALFWorld"
    config.out = "runs/grpo_qwen3_8b_alfworld"
    config.games.source = "alfworld"
    config.games.root = ""  # $ALFWORLD_DATA
    config.games.eval_split = "valid_seen"
    config.games.train = 0  # all
    config.games.in_domain, config.games.ood = 60, 30
    config.data.template = "qwen3"
    config.model.base = "models/qwen3-8b-sft"
    config.model.param_dtype = config.model.compute_dtype = "bfloat16"
    config.topology = "v5p:2x2x2"
    config.mesh.data, config.mesh.fsdp = 1, -1
    config.rl.tasks, config.rl.group, config.rl.slots = 32, 8, 256
    config.rl.format_penalty = 0.1
    config.rl.kl = 0.01
    config.rl.old = "trainer"  # sampler and trainer round bfloat16 differently
    config.train.steps, config.train.save_every = 200, 20
    config.train.batch = 8
    config.train.scan_layers = True  # compiles one layer, and not 36
    config.train.row_length = config.data.max_length = 8192
    config.train.learning_rate = 1e-6
    config.train.warmup = 0
    config.train.schedule = "constant"
    config.evaluate.tensor = 2
    config.evaluate.max_steps = 50
    config.evaluate.max_length = 8192
    config.evaluate.max_new_tokens = 512
    config.evaluate.max_action_tokens = 32
    config.evaluate.slots = 128
    config.arms = {
        "grpo": {"label": "GRPO", "fraction": 0.0, "advantage": "grpo"},
        "grpo_reduced": {"label": "GRPO, k = 0.3", "fraction": 0.3, "advantage": "grpo"},
    }
    return config
