"""AutoCoA of SmolLM2-135M-Instruct on an invented world, for a GPU.

The stages and arms are those of configs/autocoa_demo.py, for a model that was pretrained: it reads
and writes English, and is taught half of the world's facts first, so it is known when a search is
needed. LoRA keeps what it knows else.

Command   cotjax base smollm2 --out models/smollm2
          cotjax autocoa --config configs/autocoa_smollm2.py
Hardware  one GPU of 16 GB, by cotjax.train.memory; not run
"""

from cotjax.config import default_config


def get_config():
    config = default_config("search_qa")
    config.title = "AutoCoA: SmolLM2 on an invented world"
    config.out = "runs/autocoa_smollm2"
    config.model.base = "models/smollm2"
    config.model.compute_dtype = "bfloat16"
    config.model.lora_rank, config.model.lora_alpha = 64, 128.0
    config.games.train = 600  # of each in-domain task type
    config.games.in_domain = 120
    config.games.ood = 60  # of each
    config.games.ood_domains = ("ood_chains", "ood_hops", "ood_entities")
    config.task_types.in_domain = ("one_hop", "two_hops")
    config.task_types.collect = config.task_types.in_domain
    config.data.layout = "growing"
    config.prompt.system = "template"
    config.train.row_length = config.data.max_length = config.evaluate.max_length = 2048
    config.train.batch = 8
    config.train.learning_rate = 2e-4
    config.train.steps = 300  # of a stage that does not say
    config.train.save_every = 300
    stages = config.autocoa.stages
    stages.base.steps, stages.base.learning_rate = 2000, 5e-4
    stages.sft1.learning_rate = 5e-5
    for stage in (stages.rl, stages.rl2, stages.rl2_alone):
        stage.learning_rate = 1e-5
    config.rl.tasks, config.rl.group, config.rl.slots = 16, 8, 128
    config.rl.kl, config.rl.kl_estimator, config.rl.entropy = 0.001, "k3", 0.001
    config.rl.flat = "skip"
    config.rl.old = "trainer"  # the sampler's bfloat16 weights round differently
    config.rl.information = 0
    config.rl.live_prompt = False
    config.autocoa.samples = 3
    config.evaluate.slots = 128
    config.evaluate.max_new_tokens = 128
    config.evaluate.max_result_tokens = 384
    config.evaluate.max_action_tokens = 24
    config.evaluate.max_steps = 12
    return config
