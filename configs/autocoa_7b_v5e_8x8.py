r"""AutoCoA with the paper's model and hyper-parameters, DeepSeek-R1-Distill-Qwen-7B, to plan with.

The stages are the paper's: SFT-1 on 1,500 choices, SFT-2 and SFT-3 on 5,000 episodes with a search
and 1,000 without, then 80 steps of GRPO with simulated results and 16 with a retriever's, 48
questions of 5 plays each. There is no stage "base": the model knows what it knows, so choices come
from its own runs (cotjax data choices --records).

Plan      cotjax plan --stages --config configs/autocoa_7b_v5e_8x8.py
Result    by the compiler of jax 0.10.2 (28 November 2026), of a chip's 16 GiB at the worst moment:
          SFT-1, SFT-2 and SFT-3 4.9; RL-1 and RL-2 6.4 while they read prompts and 6.6 while they
          decode (the sampler's weights 3.6, the cache of 128 slots 1.1, the state and the start
          1.8), 3.1 to score, 5.8 in a micro-batch, 2.4 in the update. Compiled in two hours of low
          priority on 2 cores
Differs   from the paper: float32 parameters. Rows are packed, so an update of 16 rows has more than
          its 32 texts: the steps are those of 2 epochs at 1,400 tokens a text
Hardware  v5litepod-64: 16 GiB a chip. `cotjax autocoa` runs as one process, so this slice of 16
          hosts is planned with alone
"""

import pod


def get_config():
    config = pod.get_config("cotjax.envs.search_qa:REAL")
    config.title = "AutoCoA: DeepSeek-R1-Distill-Qwen-7B"
    config.out = "runs/autocoa_7b_v5e_8x8"
    config.topology = "v5e:8x8"
    config.model.base = "deepseek-r1-distill-qwen-7b"
    config.data.template = "r1"
    config.data.layout = "growing"
    config.prompt.instruction = "world"
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, -1, 4
    config.train.row_length = config.data.max_length = config.evaluate.max_length = 8192
    config.train.batch = 16
    config.train.learning_rate = 5e-5
    config.train.warmup = 0
    config.train.schedule = "cosine"
    config.train.steps = config.train.save_every = 128
    # ---- stages
    config.autocoa.choices = 1500
    config.autocoa.episodes, config.autocoa.thinking = 5000, 1000
    config.autocoa.other_episodes = 0
    config.autocoa.closed_book = 5  # answers to each fact; 4 right ones: it is known
    with config.unlocked():
        for stage in ("base", "few"):
            del config.autocoa.stages[stage]
        for arm in ("base", "few"):
            del config.autocoa.arms[arm]
    stages, arms = config.autocoa.stages, config.autocoa.arms
    stages.sft1.update({"start": "", "choices": "choices.jsonl", "steps": 32})
    stages.sft1.learning_rate = 5e-6
    stages.sft2_alone.start = ""
    stages.rl2_alone.start = ""
    for stage in (stages.rl, stages.rl2, stages.rl2_alone):
        stage.learning_rate = 7e-7
    for arm in (arms.sft1, arms.sft2, arms.rl2):
        arm.minus = ""
    # ---- what is played
    config.rl.tasks, config.rl.group, config.rl.slots = 48, 5, 128
    config.rl.kl, config.rl.kl_estimator, config.rl.entropy = 0.001, "k3", 0.001
    config.rl.temperature = 0.6
    config.rl.flat = "keep"
    config.rl.reward = "autocoa"
    config.rl.format_penalty = 0.0
    config.rl.old = "trainer"  # the sampler's bfloat16 weights round differently
    config.rl.information = 0
    config.rl.live_prompt = False
    config.autocoa.samples = 3
    config.evaluate.max_new_tokens = 2048
    config.evaluate.max_result_tokens = 1024
    config.evaluate.max_action_tokens = 64
    config.evaluate.max_steps = 12
    return config
