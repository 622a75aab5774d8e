r"""GRPO of Qwen3-4B on 64 TPU v5e chips, to plan with: which phase of a step needs what memory.

Plan      cotjax plan --config configs/qwen3_4b_grpo_v5e_8x8.py
Result    by the compiler of jax 0.10.2, of a chip's 16 GiB at the worst moment: play 8.2 while it
          reads prompts and 7.9 while it decodes (the sampler's weights 1.9, its cache 4.8, the
          state and the start 0.9), scoring 2.4, a micro-batch 7.8, the update 1.4. The sampler's
          weights and cache are freed after play, the sums of gradients after the update. Compiled
          in 33 minutes of low priority on 2 cores, 28 November 2026
Command   on each of the slice's 16 hosts of 4 chips (docs/launch.md): not run yet
          cotjax rl --config configs/qwen3_4b_grpo_v5e_8x8.py --config.model.base=FOLDER
          FOLDER: the model, fine-tuned to respond in the format first (cotjax train, export)
Hardware  v5litepod-64: 16 GiB a chip
"""

import pod


def get_config():
    config = pod.get_config()
    config.title = "Where the gains of GRPO land: Qwen3-4B"
    config.out = "runs/qwen3_4b_grpo_v5e_8x8"
    config.topology = "v5e:8x8"
    config.model.base = "qwen3-4b"
    config.mesh.data, config.mesh.fsdp = 1, -1
    config.rl.tasks, config.rl.group, config.rl.slots = 32, 8, 256
    config.rl.kl = 0.01
    config.rl.old = "trainer"  # the sampler's bfloat16 weights round differently
    config.train.steps, config.train.save_every = 200, 20
    config.train.batch = 64
    config.train.row_length = config.data.max_length = config.evaluate.max_length = 8192
    config.train.learning_rate = 1e-6
    config.train.warmup = 0
    config.train.schedule = "constant"
    config.evaluate.max_steps = 50
    config.evaluate.max_action_tokens = 32
    config.arms = {
        "grpo": {"label": "GRPO", "fraction": 0.0, "advantage": "grpo"},
        "grpo_reduced": {"label": "GRPO, k = 0.3", "fraction": 0.3, "advantage": "grpo"},
    }
    return config
