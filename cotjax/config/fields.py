"""Every field of a config, with its unit and default."""

from __future__ import annotations

from ml_collections import ConfigDict

from cotjax.config.autocoa import autocoa
from cotjax.config.playing import evaluate, primary, probes
from cotjax.config.preference import JUDGED, preference
from cotjax.config.rl import rl
from cotjax.envs.worlds import IN_DOMAIN, OOD, World, load_world

# Fields that name a file or a folder: `~` and `$NAME` are expanded in them, and URLs are refused.
PATHS = ("out", "games.root", "data.trajectories", "model.base", "model.tokenizer")

# The fields of an arm, with their defaults.
ARM_FIELDS = {
    "label": "",
    "fraction": 0.0,
    "last_fraction": 0.0,
    "fraction_steps": 0,
    "control": "action",
    "thoughts": "",
    "trajectories": "",
    "task_types": (),
    "direct_share": -1.0,
    "advantage": "",
    "start": "",
    "steps": 0,
    "learning_rate": 0.0,
    "objective": "sft",
    "rejected": "",
    "seed": -1,
}


def default_config(world: str = "alfworld") -> ConfigDict:
    """Return a config with every field. Lengths are in tokens, times in seconds.

    `world`: a name for `load_world`, which gives the defaults of `task_types`, `games.source` and
    `games.eval_split`.
    """
    config = ConfigDict()
    # The world that is played: one of cotjax.envs, or "package.module:ATTRIBUTE". A config file for
    # another world than ALFWorld starts from default_config(world), for the world's task types.
    config.world = world
    config.title = "Where the gains of CoT training land"
    config.out = "runs/study"  # folder that everything is written to
    # Of the games and of sampled decoding; and of the data order, masking and adapters of an arm
    # that has no seed of its own.
    config.seed = 0
    # Training seeds (of data order, masking and adapters), such as (0, 1, 2): every arm is trained
    # once from each, and reported as one arm. (): each arm has one seed, its own or the config's.
    config.seeds = ()
    # Devices that a CPU's cores are divided into where there is no accelerator; one a core is
    # fastest.
    config.cpu_devices = 1
    # Processes that make games and collect. An evaluation has one a slot instead; with 0 it plays
    # in this process.
    config.workers = 2
    config.games = games_of(load_world(world))
    config.task_types = task_types_of(load_world(world))
    config.collect = _collect()
    config.data = _data()
    config.prompt = _prompt()
    config.model = _model()
    config.train = _train()
    config.masking = _masking()
    config.rl = rl()
    config.preference = preference()
    config.autocoa = autocoa()
    config.arms = _arms()
    # Devices on each axis of the training mesh; -1: all that the other axes leave.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    # The TPU slice that `cotjax plan` compiles for unless told another one, such as "v5e:8x8".
    config.topology = ""
    config.evaluate = evaluate()
    config.probes = probes()
    config.primary = primary()
    # Locked, so that a config file cannot set an unknown field.
    return config.lock()


def games_of(world: World) -> ConfigDict:
    games = ConfigDict()
    # "made": the world's maker generates games; the world's name, such as "alfworld": games are
    # read from games.root.
    games.source = "made" if world.makes_games else world.name
    # Folder of the games. Empty: <out>/games ("made"), else the world's default ($ALFWORLD_DATA).
    games.root = ""
    # Training games. "made": of each task type; else at most this many in all (0: all).
    games.train = 0
    games.eval_split = world.eval_split  # split that is played
    games.in_domain = 60  # games played of all task_types.in_domain together
    games.ood = 30  # games played of each domain in games.ood_domains
    # Out-of-domain domains that are played, of the world's (docs/worlds.md): those that task types
    # make up, such as "ood" of task_types.ood, and axes, such as "ood_rooms", which hold games of
    # the in-domain types out of training.
    games.ood_domains = played_ood(world)
    games.seed = 0  # of the generator
    return games


def played_ood(world: World) -> tuple[str, ...]:
    """Return the OOD domains that are played by default: "ood", else all that types make up."""
    named = tuple(domain for domain in world.ood_domains if domain not in world.axes)
    return (OOD,) if OOD in named else named


def task_types_of(world: World) -> ConfigDict:
    types = ConfigDict()
    types.in_domain = world.task_types_of(IN_DOMAIN)  # shown in CoT training
    # Of each OOD domain that task types make up: held out of CoT training.
    for domain in world.ood_domains:
        if domain not in world.axes:
            types[domain] = world.task_types_of(domain)
    # Played by the agent that collects. Types that are not in_domain are left out of CoT training.
    types.collect = world.task_types
    return types


def _collect() -> ConfigDict:
    collect = ConfigDict()
    collect.agent = "expert"  # "expert" (only won episodes are kept) or "explorer" (all are kept)
    collect.skill = (0.1, 0.5)  # explorer: range of the share of steps that an expert would take
    # Explorer: share of random steps whose thought also mentions the latest observation.
    collect.news = 0.4
    # Kind of the scripted thoughts: "named" ends with the action; "unnamed" says the goal, what is
    # held, what was seen and why, but neither the action nor its objects. Both have the same
    # episodes and actions. An arm can have its own kind.
    collect.thoughts = "named"
    collect.max_steps = 30  # steps an episode
    # Share of the expert's steps replaced by a mistake. Mistakes are not trained on; the steps
    # after them show how to recover.
    collect.slips = 0.0
    collect.episodes_per_game = 1  # episodes of each training game
    return collect


def _data() -> ConfigDict:
    data = ConfigDict()
    data.trajectories = ""  # JSONL file to train on; empty: collect them
    data.splits = ("train",)  # train only on episodes of these splits; (): on all
    data.won_only = True  # do not train on lost episodes; those of unknown outcome are trained on
    # What becomes of a step without a thought in the CoT form: "skip" (it is part of the history
    # only), "direct" (its action alone is trained on) or "error".
    data.no_thought = "skip"
    data.direct_share = 0.0  # share of trajectories in the direct form (without reasoning)
    # Turn template: "chatml", "llama3", "qwen3", "qwen3-thinking" or "r1"; "auto": the one that
    # fits the tokenizer's chat template.
    data.template = "chatml"
    data.max_length = 768  # tokens an example; at most train.row_length
    # "trajectory": one example an episode; "step": a prompt and a response for each step;
    # "growing": one example an episode, as one text without turns that keeps its thoughts.
    data.layout = "trajectory"
    # Past turns in a step's prompt (0: all). A model can be trained, but not played, with fewer
    # or with past_thoughts.
    data.history = 0
    data.past_thoughts = False  # past turns keep their thoughts
    return data


def _prompt() -> ConfigDict:
    prompt = ConfigDict()
    # System message before the first turn. "": none; "template": the default one of the tokenizer's
    # chat template; else its text.
    prompt.system = ""
    # Text before the task. "": none; "world": the world's, on what the agent can do and on the
    # response format; else the text. An untrained instruct model needs one.
    prompt.instruction = ""
    # Admissible actions listed in each user turn: "none", "all" or "sampled".
    prompt.admissible = "none"
    prompt.admissible_count = 20  # actions listed with "sampled", drawn by game and turn
    # Example episodes before the first turn, with their thoughts: drawn from the training
    # trajectories by seed, the same in every prompt, and not trained on.
    prompt.examples = 0
    return prompt


def _model() -> ConfigDict:
    model = ConfigDict()
    # A local Hugging Face folder, an Orbax folder that `cotjax convert` wrote, or a PEFT folder,
    # whose adapters are merged into their base; "package": the base shipped with cotjax; "random":
    # new weights. `cotjax plan` also accepts the names of published models, such as "qwen3-8b".
    model.base = "package"
    # Folder with tokenizer.json. Empty: the base's own; of a "random" model: made from the data.
    model.tokenizer = ""
    # Dtype of parameters and gradients: "float32" or "bfloat16". With bfloat16 the optimizer keeps
    # a float32 copy, from which the parameters are rounded after each update. The copy and Adam's
    # moments are float32, so bfloat16 saves communication between devices, but no memory.
    model.param_dtype = "float32"
    # Dtype of matmuls: "float32" or "bfloat16". Norms, rotary positions and softmax are float32.
    model.compute_dtype = "float32"
    model.width = 128  # from here to feed_forward: sizes of a "random" model
    model.layers = 6
    model.heads = 4
    model.kv_heads = 2
    model.head_size = 32
    model.feed_forward = 288
    # Begin a "random" model with heads that look up earlier tokens, placed instead of trained
    # (cotjax/model/induction.py): it recalls 98 % of random pairs before its first update.
    model.induction = False
    # Updates of a "random" model on associative recall before it trains on the data. 500 are enough
    # to form heads that look up earlier tokens.
    model.recall_steps = 0
    model.lora_rank = 0  # rank of the LoRA adapters, which alone are trained; 0: train all weights
    model.lora_alpha = 16.0  # the adapters' output is multiplied by alpha / rank
    # Matched against a projection's full path, e.g. model.layers.3.self_attn.q_proj.
    model.lora_targets = r".*\.(q|k|v|o|gate|up|down)_proj"
    return model


def _train() -> ConfigDict:
    train = ConfigDict()
    train.steps = 200  # updates
    train.batch = 8  # rows an update
    train.row_length = 768  # tokens a row
    train.learning_rate = 1e-3  # peak
    train.warmup = 20  # updates of linear warm-up; the first has rate 0. 0: none
    # "constant", "cosine" or "linear"; the last two end at a tenth of the peak and stay there.
    train.schedule = "cosine"
    # Update at which the schedule ends; 0: at train.steps. Needed to make a run longer later
    # (docs/runs.md).
    train.schedule_steps = 0
    train.b1 = 0.9  # Adam's decay of the first moment
    train.b2 = 0.98  # Adam's decay of the second moment
    train.weight_decay = 0.0  # decoupled; on matrices only, not on norm scales and biases
    # Factor on the learning rate of norm scales and biases; above 1 for a small "random" model.
    train.vector_rate = 1.0
    train.clip_norm = 1.0  # global gradient norm; 0: no clipping
    train.save_every = 40  # updates between checkpoints
    # Updates between held-out losses, which are then measured at every checkpoint too; 0: off.
    train.eval_every = 0
    # Share of the trajectories, drawn by id, that is held out for these losses.
    train.eval_share = 0.0
    # Examples on which is measured, at every checkpoint, what the action has left to learn and its
    # share of loss and gradient (docs/runs.md); 0: off.
    train.information_examples = 32
    # Newest checkpoints to keep; 0: keep all, which a study that plays them needs.
    train.keep_last = 0
    train.keep_every = 0  # also keep every N-th step's checkpoint; 0: off
    train.keep_best = 0  # also keep the N with the lowest held-out loss (needs eval_every); 0: off
    train.tensorboard = False  # also write TensorBoard event files; needs tensorboardX
    # Project in Weights & Biases to log to (offline with WANDB_MODE=offline); empty: none.
    train.wandb_project = ""
    train.profile_start = 1  # first update that jax's profiler records, to <arm>/profile
    train.profile_steps = 0  # updates that it records; 0: no profile
    # What the backward pass recomputes to save memory: "none", "dots", "mlp" or "block" (most);
    # "auto": the least that fits.
    train.remat = "block"
    train.scan_layers = False  # compile one layer and loop over it: faster to compile deep models
    # Attention kernel: "xla", "splash" (TPU), "pallas" or "cudnn" (GPU, bfloat16); "auto": the
    # fastest there.
    train.attention = "auto"
    # Micro-batches that a batch is processed in, to save memory; losses are summed and divided
    # once.
    train.accumulate = 1
    return train


def _masking() -> ConfigDict:
    masking = ConfigDict()
    # Level at which action losses are dropped: "example" (trajectory), "turn" or "token".
    masking.unit = "turn"
    masking.redraw = False  # draw a new subset each epoch; else it is fixed
    masking.action_close = False  # drop the loss on `</action>` with its action's
    masking.end = False  # drop the loss on the end-of-turn token with its action's
    # Roles that are trained on.
    masking.supervised = ("REASONING", "ACTION_OPEN", "ACTION", "ACTION_CLOSE", "END")
    # What the loss is divided by: "token_sum", "example_mean" (of responses) or "fixed_budget".
    masking.normalizer = "token_sum"
    return masking


def _arms() -> ConfigDict:
    """Return the arms by name.

    label: shown in the report.
    fraction: share of units (masking.unit) whose action loss is dropped.
    last_fraction, fraction_steps: the fraction goes linearly to last_fraction in this many updates.
    control: what is dropped in place of actions, one of cotjax.masking.CONTROLS.
    thoughts: kind of the scripted thoughts; "": collect.thoughts.
    trajectories: JSONL file to train this arm on; "": data.trajectories, or collected ones.
    task_types: task types of the trajectories that this arm is trained on, which may be those of an
      OOD domain; (): task_types.in_domain, or all but the OOD ones of a file.
    direct_share: share of trajectories in the direct form; -1: data.direct_share.
    advantage: of reinforcement learning; "": rl.advantage.
    start: an arm that is trained first, and from whose checkpoint this one starts: "short" (its
      last one) or "short@30"; "": the base.
    steps, learning_rate: 0: those of `train`.
    objective: "sft", one that trains on pairs ("dpo", "frodo", "trigger": docs/objectives.md), or
      one that trains on what it plays ("grpo", "gigpo": docs/rl.md).
    rejected: trajectory file, or folder of records, with the rejected side of pairs; "": thoughts
      and actions of other states of the same episode; "environment": those of them that leave the
      world's expert farther from the goal (it takes at most probes.revisions.limit steps).
    seed: of the arm's data order, masking and adapters; -1: the config's. Several: config.seeds.
    """
    arms = ConfigDict()
    arms.sft = ConfigDict({"label": "standard SFT", "fraction": 0.0})
    arms.reduced = ConfigDict({"label": "reduced action supervision, k = 0.3", "fraction": 0.3})
    return arms


def own_files(config: ConfigDict, field: str = "trajectories") -> dict[str, str]:
    """Return arm -> the trajectory file that it names itself; `field` may also be "rejected"."""
    arms = {arm: own for arm, own in config.arms.items() if isinstance(own, ConfigDict)}
    return {
        arm: own[field] for arm, own in arms.items() if own.get(field) not in (None, "", JUDGED)
    }


def sampler_mesh(config: ConfigDict) -> dict[str, int]:
    """Return the axis sizes of the sampler's mesh.

    Decoding reads every weight for each token, so with evaluate.tensor the weights are not
    distributed over fsdp.
    """
    if config.evaluate.tensor:
        return {"data": -1, "fsdp": 1, "tensor": config.evaluate.tensor}
    return dict(config.mesh)
