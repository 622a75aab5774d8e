"""Configs: ml_collections files whose every field is declared here, with its unit and its default.

A config file defines `get_config() -> ConfigDict`; it starts from `default_config()` and changes what its experiment changes. On
the command line `--config FILE` loads it and `--config.train.steps=200` changes a field. An unknown key is an error.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from cotjax.envs.base import IN_DOMAIN_TASKS, OOD_TASKS, TASK_TYPES
from cotjax.errors import UsageError
from cotjax.runtime.files import local_path

# Fields that name a file or a folder: `~` and `$NAME` are expanded in them, and URLs are refused.
PATHS = ("out", "games.root", "data.trajectories", "model.base", "model.tokenizer")


# What an arm may say, and what holds where it does not.
ARM_FIELDS = {
    "label": "",
    "fraction": 0.0,
    "last_fraction": 0.0,
    "fraction_steps": 0,
    "control": "action",
}


def default_config() -> ConfigDict:
    """Every field there is. Counts are numbers of things; lengths are tokens; times are seconds."""
    config = ConfigDict()
    config.title = "Where the gains of CoT training land"
    config.out = "runs/study"  # folder that everything is written to
    config.seed = 0  # of games, data order, masking and sampled decoding
    config.cpu_devices = 1  # devices that a CPU's cores are split into, where there is no accelerator; one a core is faster
    config.workers = 2  # processes that make games and collect; an evaluation has one a slot. 0: all is played in this process

    config.games = ConfigDict()
    config.games.source = (
        "made"  # "made": household games are generated; "alfworld": read from games.root
    )
    config.games.root = ""  # ALFWorld data folder; empty: $ALFWORLD_DATA (source "alfworld"), or <out>/games (source "made")
    config.games.train = (
        0  # training games: made, a task type; of real data, at most this many in all (0: all)
    )
    config.games.eval_split = "valid_unseen"  # split that is played
    config.games.in_domain = (
        60  # in-domain games played (all task types of task_types.in_domain together)
    )
    config.games.ood = 30  # OOD games played
    config.games.seed = 0  # of the generator

    config.task_types = ConfigDict()
    config.task_types.in_domain = IN_DOMAIN_TASKS  # shown in CoT training
    config.task_types.ood = OOD_TASKS  # held out of CoT training
    config.task_types.collect = TASK_TYPES  # played by the agent that collects; what is not in_domain is left out of CoT training

    config.collect = ConfigDict()
    config.collect.agent = (
        "expert"  # "expert" (only won episodes are kept) or "explorer" (all are kept)
    )
    config.collect.skill = (
        0.1,
        0.5,
    )  # explorer: range of the share of steps that an expert would take
    config.collect.news = (
        0.4  # explorer: share of steps at random whose thought also tells what was just seen
    )
    config.collect.max_steps = 30  # steps an episode
    config.collect.slips = 0.0  # share of the expert's steps that go wrong and are not trained on, so that recovering is shown
    config.collect.episodes_per_game = 1  # episodes of each training game

    config.data = ConfigDict()
    config.data.trajectories = ""  # JSONL file to train on; empty: collect them
    config.data.splits = ("train",)  # only episodes of these splits are trained on; (): of all
    config.data.won_only = (
        True  # lost episodes are not trained on; those whose outcome nobody knows are
    )
    config.data.no_thought = "skip"  # a step without a thought, in the CoT form: "skip" (history alone), "direct" (action alone), "error"
    config.data.system = ""  # text of a system message before the first turn, as some models' own templates have one; empty: none
    config.data.direct_share = 0.0  # share of trajectories in the direct form (no reasoning)
    config.data.template = "chatml"  # turn template: "chatml" or "llama3"
    config.data.max_length = 768  # tokens an example; at most train.row_length
    config.data.layout = (
        "trajectory"  # one example an episode, or "step": each step its own prompt and response
    )
    config.data.history = 0  # past turns that a step's prompt shows (0: all); fewer, or past_thoughts, can be trained but not played
    config.data.past_thoughts = False  # past turns keep their thoughts

    config.model = ConfigDict()
    # A local Hugging Face folder, what `cotjax convert` made of one, or PEFT's folder of adapters, which are merged into their base;
    # "package": the base shipped with cotjax; "random": new weights.
    # `cotjax plan` also knows published models by name, such as "qwen3-8b"; to train one, give the folder that holds it.
    config.model.base = "package"
    config.model.tokenizer = (
        ""  # folder with tokenizer.json; empty: the base's own ("random": made from the data)
    )
    # Parameters and their gradients: "float32" or "bfloat16". With bfloat16 the optimizer keeps a float32 copy, from which they are
    # rounded after each update; it and Adam's moments stay float32, so this spares exchange between devices, and no memory.
    config.model.param_dtype = "float32"
    config.model.compute_dtype = "float32"  # matmuls: "float32" or "bfloat16"; norms, rotary positions and softmax are always float32
    config.model.width = 128  # sizes of a "random" model
    config.model.layers = 6
    config.model.heads = 4
    config.model.kv_heads = 2
    config.model.head_size = 32
    config.model.feed_forward = 288
    config.model.recall_steps = 0  # updates of a "random" model on associative recall before it trains on the data; 500 grow look-up heads
    config.model.lora_rank = (
        0  # rank of LoRA's adapters, which then alone are trained; 0: all weights are
    )
    config.model.lora_alpha = 16.0  # the adapters' output is multiplied by alpha / rank
    config.model.lora_targets = r".*\.(q|k|v|o|gate|up|down)_proj"  # a projection's whole path, e.g. model.layers.3.self_attn.q_proj

    config.train = ConfigDict()
    config.train.steps = 200  # updates
    config.train.batch = 8  # rows an update
    config.train.row_length = 768  # tokens a row
    config.train.learning_rate = 1e-3  # peak
    config.train.warmup = (
        20  # updates of linear warm-up from 0, at which the first of them is made; 0: none
    )
    config.train.schedule = "cosine"  # "constant", "cosine" or "linear"; the last two end at a tenth of the peak, and stay there
    config.train.schedule_steps = 0  # update at which the schedule ends; 0: at train.steps. A run that is prolonged needs it (docs/runs.md)
    config.train.b1 = 0.9  # Adam's decay of the first moment
    config.train.b2 = 0.98  # Adam's decay of the second moment
    config.train.weight_decay = 0.0  # decoupled, on matrices only: not on norm scales and biases
    config.train.vector_rate = 1.0  # times the learning rate, for norm scales and biases; more for a small model from random weights
    config.train.clip_norm = 1.0  # global gradient norm; 0: no clipping
    config.train.save_every = 40  # updates between checkpoints
    config.train.eval_every = 0  # updates between held-out losses, which every checkpoint has then too; 0: none are measured
    config.train.eval_share = (
        0.0  # share of the trajectories that is held out for them, drawn by id, and not trained on
    )
    config.train.keep_last = 0  # newest checkpoints that stay, the others are deleted; 0: all stay, which a study that plays them needs
    config.train.keep_every = (
        0  # where some are deleted: those of every so many updates stay too; 0: none of them
    )
    config.train.keep_best = 0  # where some are deleted: so many of the least held-out loss stay too (needs eval_every); 0: none
    config.train.tensorboard = (
        False  # event files for TensorBoard beside metrics.jsonl; needs tensorboardX
    )
    config.train.wandb_project = ""  # project in Weights & Biases that rows go to, offline with WANDB_MODE=offline; empty: none
    config.train.profile_start = (
        1  # first update of a window under jax's profiler, written to <arm>/profile
    )
    config.train.profile_steps = 0  # updates in that window; 0: no profile
    config.train.remat = "block"  # what the backward pass computes again to save memory: "none", "dots" or "block" (most)
    config.train.scan_layers = (
        False  # layers as one program that runs once a layer: compiles faster where there are many
    )
    config.train.attention = "auto"  # kernel: "xla", "splash" (TPU) or "cudnn" (GPU, bfloat16); "auto": the fastest there
    config.train.accumulate = (
        1  # parts of a batch that follow one another, for less memory; their sums are divided once
    )

    config.masking = ConfigDict()
    config.masking.unit = "turn"  # what is drawn to drop its action loss: "example" (trajectory), "turn" (a step's response) or "token"
    config.masking.redraw = False  # draw anew each epoch; else the subset is fixed
    config.masking.action_close = False  # a dropped action takes `</action>` with it
    config.masking.end = False  # a dropped action takes the end-of-turn token with it
    config.masking.supervised = (
        "REASONING",
        "ACTION_OPEN",
        "ACTION",
        "ACTION_CLOSE",
        "END",
    )  # roles trained on
    config.masking.normalizer = "token_sum"  # what the loss is divided by: "token_sum", "example_mean" (of responses) or "fixed_budget"
    # name -> label, and fraction: the share of units whose action loss is dropped. An arm may also have: control (see
    # cotjax.masking.CONTROLS), and last_fraction with fraction_steps (the fraction goes there over so many updates); see ARM_FIELDS.
    config.arms = ConfigDict()
    config.arms.sft = ConfigDict({"label": "standard SFT", "fraction": 0.0})
    config.arms.reduced = ConfigDict(
        {"label": "reduced action supervision, k = 0.3", "fraction": 0.3}
    )

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices on each axis; -1: what is left
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    config.evaluate = ConfigDict()
    config.evaluate.slots = 64  # episodes decoded together
    config.evaluate.tensor = 0  # devices that share one copy of the weights while sampling, the rest play apart; 0: the training mesh
    config.evaluate.max_length = 2048  # tokens a slot holds
    config.evaluate.max_steps = 30  # steps an episode
    config.evaluate.max_new_tokens = 96  # tokens a CoT response
    config.evaluate.max_action_tokens = 16  # tokens a prompt action
    config.evaluate.temperature = 0.0  # logits are divided by it; 0: greedy
    config.evaluate.top_k = 0  # sample among so many most likely ids; 0: all
    config.evaluate.top_p = (
        1.0  # sample among the most likely ids whose probabilities add up to this; 1: all
    )
    config.evaluate.repetition_penalty = 1.0  # divides positive logits of ids in the prompt or response, multiplies negative ones; 1: none
    # Forbid repeating any n-gram of this size (ids) in prompt + response (0: off); where every id is forbidden, the response ends.
    config.evaluate.no_repeat_ngram_size = 0
    config.evaluate.cot_prefix = ""  # prefilled before a CoT response; "<think>" forces reasoning
    config.evaluate.start_timeout = 120.0  # seconds an environment's process may take to start
    config.evaluate.reset_timeout = 120.0  # seconds an environment may take to load a game
    config.evaluate.step_timeout = 120.0  # seconds an environment may take to answer an action
    config.evaluate.env_retries = (
        2  # times an episode's environment may fail and be replaced before the episode is given up
    )
    return config.lock()  # a config file that sets an unknown key fails there


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ConfigDict:
    """Run a config file and apply `--config.a.b=value` overrides.

    Raises:
      UsageError: no such file, no get_config in it, an unknown key, or a value of another type.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such config file; configs/demo.py is one")
    spec = importlib.util.spec_from_file_location(f"cotjax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    # One config may start from another beside it: `import demo`.
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except (AttributeError, KeyError, TypeError, SyntaxError, NameError, ImportError) as error:
        raise UsageError(f"{path}: {error}") from None
    finally:
        sys.path.remove(str(path.parent))
    for override in overrides:
        set_field(config, override)
    for dotted in PATHS:
        *sections, name = dotted.split(".")
        section = config[sections[0]] if sections else config
        if section[name]:
            section[name] = str(local_path(section[name]))
    return config


def sampler_mesh(config: ConfigDict) -> dict[str, int]:
    """Sizes of the sampler's mesh. Decoding reads every weight for each token, so it wants them near, not shared out by fsdp."""
    return (
        {"data": -1, "fsdp": 1, "tensor": config.evaluate.tensor}
        if config.evaluate.tensor
        else dict(config.mesh)
    )


def set_field(config: ConfigDict, override: str) -> None:
    """Apply one `train.steps=200`. Text values need no quotes."""
    dotted, equals, text = override.partition("=")
    if not equals:
        raise UsageError(f"--config.{dotted}: give a value, as in --config.{dotted}=…")
    *sections, name = dotted.split(".")
    section = config
    for depth, part in enumerate(sections):
        section = section[_known(section, part, ".".join(sections[:depth]))]
        if not isinstance(section, ConfigDict):
            raise UsageError(
                f"--config.{dotted}: {'.'.join(sections[: depth + 1])} is a value, not a section"
            )
    if len(sections) == 2 and sections[0] == "arms" and name in ARM_FIELDS and name not in section:
        with section.unlocked():
            section[name] = ARM_FIELDS[name]
    name = _known(section, name, ".".join(sections))
    old = section[name]
    if isinstance(old, ConfigDict):
        raise UsageError(
            f"--config.{dotted}: this is a section; name one of its fields: {', '.join(old)}"
        )
    section[name] = _parse(text, old, dotted)


def _known(section: ConfigDict, name: str, where: str) -> str:
    if name in section:
        return name
    close = difflib.get_close_matches(name, list(section), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(section)}"
    raise UsageError(f"unknown config key {'.'.join(filter(None, (where, name)))!r}{hint}")


def _parse(text: str, old, dotted: str):
    if isinstance(old, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(old, tuple):
        value = tuple(value) if isinstance(value, list | tuple) else tuple(text.split(","))
    if type(value) is not type(old):
        raise UsageError(
            f"--config.{dotted}: {text!r} is no {type(old).__name__}; the value now is {old!r}"
        )
    return value
