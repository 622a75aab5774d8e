r"""AutoCoA with the paper's model and hyper-parameters, DeepSeek-R1-Distill-Qwen-7B, to plan with.

The stages are the paper's: SFT-1 on 1,500 choices, SFT-2 and SFT-3 on 5,000 episodes with a search
and 1,000 without, then 80 steps of GRPO with simulated results and 16 with a retriever's, 48
questions of 5 plays each. There is no stage "base": the model knows what it knows, so choices come
from its own runs (cotjax data choices --records).

Plan      cotjax plan --stages --config configs/autocoa_7b_v5e_8x8.py
Result    compiled (2026-11-28): the prefill of play, which fits: 6.45 of 16 GiB a chip, with the
          state and the start held. The others by the shardings, not yet by the compiler: in
          training the state, the KL term's start and the sums of gradients take 2.3 GiB a chip; in
          play, the sampler's weights take 3.6 and the cache of 128 slots 0.9 GiB beside the state
          and the start
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
