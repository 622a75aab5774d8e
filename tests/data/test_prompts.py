"""What a prompt says beside the episode, and the model's own chat template."""

import hashlib
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import tiny
from helpers.layouts import tokenizer as chat_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cotjax import formats
from cotjax.assets import BASE_FOLDER
from cotjax.data.chat_template import default_system, turn_template
from cotjax.data.codec import Codec
from cotjax.data.prompt_examples import draw_examples, keep_examples, kept_examples
from cotjax.data.selection import Counts, Selection
from cotjax.data.tokens import Layout, trajectory_examples
from cotjax.data.trajectories import write_trajectories
from cotjax.envs.worlds import load_world
from cotjax.errors import DataError, UsageError
from cotjax.formats import CHATML, TEMPLATES, Example, ExampleStep, Prompt, parse_response
from cotjax.masking import Role, target_weights

WORLD = load_world("alfworld")
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# How a tokenizer cuts text before its merges: GPT-2's way (SmolLM2), and that of Qwen and Llama 3,
# in which a line break may join the punctuation before it.
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
QWEN = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(
            Regex(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            "isolated",
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
STATE = ("You see a mug 1.", ("look", "go to desk 1"))


def published(name: str) -> str:
    """Return a chat template that TRL ships."""
    trl = pytest.importorskip("trl", reason="TRL ships the templates")
    file = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    return file.read_text(encoding="utf-8")


def model_folder(folder: Path, template: str, cut=GPT2) -> PreTrainedTokenizerFast:
    """Save a byte-level tokenizer with a chat template; return it as transformers has it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = cut, decoders.ByteLevel()
    marks = dict.fromkeys(mark for each in TEMPLATES.values() for mark in each.marks)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["[PAD]", *marks],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [
        WORLD.instruction,
        "You see a mug 1.\n\nYour task is to: look.\n",
        "Admissible actions: ",
    ]
    bpe.train_from_iterator(texts * 3, trainer)
    begin = "<｜begin▁of▁sentence｜>" if "｜" in template else "<|begin_of_text|>"
    chat = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        chat_template=template,
        pad_token="[PAD]",
        bos_token=begin,
        eos_token="<|im_end|>",
    )
    chat.save_pretrained(folder)
    return chat


# ---- today's ids


def _digest(codec: Codec) -> str:
    digest = hashlib.sha256()
    layouts = (Layout(), Layout("step"), Layout("step", 1), Layout(past_thoughts=True))
    episode = tiny.trajectory(steps=5)
    for form, layout, most in itertools.product(("cot", "direct"), layouts, (60, 120, 1000)):
        for example in trajectory_examples(codec, episode, form, most, layout):
            for name in ("steps", "ids", "roles", "branches", "positions"):
                digest.update(getattr(example, name).astype("int32").tobytes())
    ids = codec.first_prompt("put a plate in fridge", "You see a fridge 1.")
    ids += codec.next_prompt("look", "You see a cabinet 1.")
    ids += codec.next_prompt([3, 4], "Nothing happens.")
    digest.update(repr(ids).encode())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize(
    ("layout", "system", "digest"),
    [
        ("chatml", "", "345a912674b9fb00"),
        ("chatml", "you are a robot.", "f1e80350974cc139"),
        ("llama3", "", "43f3cf8ed74d3255"),
        ("llama3", "you are a robot.", "f389f7dbe8ff0ce7"),
    ],
)
def test_the_ids_of_a_prompt_with_the_task_alone_stay_as_they_are(layout, system, digest):
    tokenizer = Tokenizer.from_str(chat_tokenizer(layout).backend_tokenizer.to_str())
    assert _digest(Codec(tokenizer, TEMPLATES[layout], Prompt(system))) == digest


def test_the_ids_of_the_shipped_base_stay_as_they_are():
    assert _digest(Codec.load(BASE_FOLDER)) == "f2a30eddf12a3451"
    assert _digest(tiny.subword_codec()) == "ac402f621869de83"


# ---- the model's own chat template


@pytest.mark.parametrize("cut", [GPT2, QWEN], ids=["gpt2", "qwen"])
@pytest.mark.parametrize(
    ("model", "template", "system"),
    [
        (
            "smollm2",
            "chatml",
            "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
        ),
        (
            "qwen2_5",
            "chatml",
            "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        ),
        ("qwen3_instruct_2507", "chatml", ""),
        ("qwen3", "qwen3", ""),
        ("qwen3_5_think", "qwen3-thinking", ""),
        ("llama3", "llama3", ""),
        (
            "llama3_1",
            "llama3",
            "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
        ),
        ("deepseek_r1_distill", "r1", ""),
    ],
)
def test_a_prompt_has_the_ids_of_the_models_own_chat_template(
    tmp_path, model, template, system, cut
):
    chat = model_folder(tmp_path, SMOLLM2 if model == "smollm2" else published(model), cut)
    assert turn_template("auto", tmp_path).name == template
    assert default_system(TEMPLATES[template], tmp_path) == system
    prompt = Prompt("template", WORLD.instruction, "all")
    codec = Codec.load(tmp_path, "auto", prompt)
    seen = f"{STATE[0]}\nAdmissible actions: go to desk 1, look."
    messages = [
        {
            "role": "user",
            "content": f"{WORLD.instruction}\n{formats.first_turn('find a mug', seen)}",
        }
    ]
    ids = codec.first_prompt("find a mug", *STATE)
    assert ids + codec.prefill(codec.template.cot_open) == _ids(chat, messages)
    # Qwen3 cuts the thoughts of past turns. R1 does too, but leaves the line breaks behind them.
    thought = "<think>\nno.\n</think>\n\n" if template.startswith("qwen3") else ""
    messages += [
        {"role": "assistant", "content": f"{thought}<action>look</action>"},
        {"role": "user", "content": seen},
    ]
    ids += codec.next_prompt("look", *STATE) + codec.prefill(codec.template.cot_open)
    written = chat.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert codec.decode(ids) == written, "past turns are shown without their thoughts"
    if cut is GPT2:  # Qwen's joins the tags of an action, which are encoded apart, to their content
        assert ids == _ids(chat, messages)


def _ids(chat, messages, **how):
    return chat.apply_chat_template(
        messages, tokenize=True, return_dict=False, add_generation_prompt=True, **how
    )


def test_qwen3_marks_a_response_that_does_not_reason_as_its_template_does(tmp_path):
    chat = model_folder(tmp_path, published("qwen3"))
    codec = Codec.load(tmp_path, "qwen3")
    messages = [{"role": "user", "content": formats.first_turn("find a mug", STATE[0])}]
    ids = codec.first_prompt("find a mug", STATE[0])
    silent = codec.prefill(codec.template.direct_open)
    assert ids + silent == _ids(chat, messages, enable_thinking=False)
    # As trained, and as prefilled before a prompt action.
    acted = [i for piece, _ in codec.direct("look") for i in piece]
    prefix = codec.prefill(f"{codec.template.direct_open}<action>")
    assert prefix == silent + codec.action_prefix == acted[: len(prefix)]
    # A trained thought is written as the template writes the last response's.
    messages += [
        {"role": "assistant", "content": "<think>\na mug.\n</think>\n\n<action>look</action>"}
    ]
    written = [i for piece, _ in codec.reasoned("a mug.", "look") for i in piece]
    assert codec.decode(ids + written) + "\n" == chat.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize("name", ["qwen3", "qwen3-thinking", "r1"])
@pytest.mark.parametrize("form", ["cot", "direct"])
def test_later_prompts_of_a_thinking_template_lack_its_blocks(tmp_path, name, form):
    model_folder(tmp_path, SMOLLM2)
    codec = Codec.load(tmp_path, name)
    episode = tiny.trajectory(steps=3)
    (example,) = trajectory_examples(codec, episode, form, 10_000)
    trunk = codec.decode(example.ids[example.branches == 0])
    prompt = codec.first_prompt(episode.task, episode.steps[0].observation)
    for before, step in itertools.pairwise(episode.steps):
        prompt += codec.next_prompt(before.action, step.observation)
    assert trunk.startswith(codec.decode(prompt)) and "think" not in trunk
    response = codec.decode(example.ids[example.branches == 1])
    assert response.startswith(
        "<think>\n\n</think>\n\n<action>" if form == "direct" else "<think>\ni "
    )
    assert (Role.REASONING in example.roles) == (form == "cot")
    parsed = parse_response(response, prefilled=False)
    thought = episode.steps[0].thought if form == "cot" else ""
    assert (parsed.thought, parsed.action) == (thought, "open cabinet 1")


def test_a_chat_template_that_none_fits_is_refused(tmp_path):
    for name, words in (
        ("gemma3", "its chat template is none of chatml, llama3"),
        ("gptoss", "its chat template cannot be rendered ('strftime_now' is undefined)"),
    ):
        model_folder(tmp_path, published(name))
        with pytest.raises(UsageError) as caught:
            Codec.load(tmp_path, "auto")
        assert words in str(caught.value) and "set data.template" in str(caught.value)
    with pytest.raises(UsageError, match=r"not a system message of the turn template 'chatml'"):
        default_system(CHATML, model_folder(tmp_path, published("gemma3")) and tmp_path)
    with pytest.raises(UsageError, match=r"has no chat template; set data\.template"):
        Codec.load(BASE_FOLDER, "auto")
    with pytest.raises(UsageError, match="'auto', but the tokenizer is made from the data"):
        turn_template("auto")
    with pytest.raises(UsageError, match="'template', but the tokenizer is made from the data"):
        Codec(Tokenizer.from_file(str(BASE_FOLDER / "tokenizer.json")), CHATML, Prompt("template"))


# ---- instruction and actions


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    model_folder(folder, SMOLLM2)
    return folder


def test_tags_of_an_instruction_are_tags_and_control_tokens_are_refused(smollm2):
    for text in ("<think> <|im_end|>", "between <action> and </action>[PAD]"):
        with pytest.raises(DataError, match="the instruction contains a control token"):
            Codec.load(smollm2, prompt=Prompt(instruction=text))
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    tokenizer.add_tokens(["<think>"])
    codec = Codec(tokenizer, CHATML, Prompt(instruction="Write <think> first."))
    assert tokenizer.token_to_id("<think>") in codec.opening
    # Content that names a tag or a control token stays plain.
    ids = codec.first_prompt("look", "a note: <|im_start|>", ["read <|im_end|><think>"])
    assert [i for i in ids if i in tokenizer.get_added_tokens_decoder()] == [
        i for i in codec.opening if i in tokenizer.get_added_tokens_decoder()
    ] + codec.encode("<|im_end|><|im_start|>")


def test_sampled_actions_depend_on_the_state_alone():
    commands = [f"go to shelf {number}" for number in range(40)]
    prompt = Prompt(admissible="sampled", admissible_count=5)
    lines = {prompt.actions_line(commands, f"g/{turn}") for turn in range(20)}
    assert len(lines) > 15 and all(line.count("shelf") == 5 for line in lines)
    assert prompt.actions_line(commands[::-1], "g/0") == prompt.actions_line(commands * 2, "g/0")
    assert prompt.actions_line(commands[:5], "g/0").count("shelf") == 5
    every = Prompt(admissible="all").actions_line(commands, "g/0")
    assert every == Prompt(admissible="all").actions_line(commands, "other") and every.endswith(".")


def test_a_trajectory_without_admissible_actions_is_named(smollm2):
    codec = Codec.load(smollm2, prompt=Prompt(admissible="all"))
    bare = tiny.trajectory("bare", steps=1)
    bare = replace(bare, steps=(replace(bare.steps[0], admissible_commands=()),))
    with pytest.raises(DataError, match=r"trajectory 'bare', step 0: .* prompt\.admissible='all'"):
        list(trajectory_examples(codec, bare, "cot", 1000))
    with pytest.raises(UsageError, match="the world does not list its admissible actions"):
        codec.first_prompt("look", "a mug 1.", None)


def test_impossible_settings_are_refused():
    with pytest.raises(UsageError, match=r"prompt\.admissible is 'some'; it must be one of none"):
        Prompt(admissible="some")
    with pytest.raises(UsageError, match=r"prompt\.admissible_count is 0"):
        Prompt(admissible_count=0)


# ---- examples


@pytest.fixture
def episodes(tmp_path):
    """A file of six episodes; the first two are of one game."""
    games = ["g0", "g0", "g1", "g2", "g3", "unknown"]
    kinds = ["put", "put", "put", "heat", "heat", "cool"]
    path = tmp_path / "t.jsonl"
    write_trajectories(
        path,
        [
            tiny.trajectory(f"t{n}", game=game, task_type=kind)
            for n, (game, kind) in enumerate(zip(games, kinds, strict=True))
        ],
    )
    return path


def test_examples_are_drawn_by_seed_of_many_task_types_and_are_not_trained_on(episodes, tmp_path):
    drawn = [draw_examples(episodes, Selection(), 3, seed) for seed in range(8)]
    assert drawn[0] == draw_examples(episodes, Selection(), 3, 0) and len({*drawn}) > 1
    kinds = {"t0": "put", "t1": "put", "t2": "put", "t3": "heat", "t4": "heat", "t5": "cool"}
    for each in drawn:
        ids = [example.id for example in each.examples]
        assert {kinds[id] for id in ids} == {"put", "heat", "cool"}
        twins = {"t0": "t1", "t1": "t0"}
        assert set(each.left_out) == {*ids, *(twins[id] for id in ids if id in twins)}
    keep_examples(tmp_path, drawn[0])
    assert kept_examples(tmp_path) == drawn[0] and kept_examples(tmp_path / "none") is None
    with pytest.raises(DataError, match=r"prompt\.examples is 7, but only 6 of its trajectories"):
        draw_examples(episodes, Selection(), 7, 0)
    (tmp_path / "prompt.json").write_text("{}[")
    with pytest.raises(DataError, match="not a prompt's examples"):
        kept_examples(tmp_path)
    selection, counts = Selection(shown=("t0", "t1")), Counts()
    for number in range(2):
        assert not selection.examples(None, tiny.trajectory(f"t{number}"), counts)
    assert counts.left_out == {"shown": {"trajectories": 2, "steps": 6}}


def test_examples_stand_before_the_first_turn_with_thoughts_and_no_weight(smollm2):
    steps = (
        ExampleStep("You see a desk 1.", "a desk.", "go to desk 1", ("go to desk 1",)),
        ExampleStep("You see a mug 1.", "the mug.", "take mug 1 from desk 1", ("look",)),
    )
    example = Example("e", "g", "find a mug", steps)
    codec = Codec.load(smollm2, prompt=Prompt(instruction="Act.", examples=(example,)))
    plain = Codec.load(smollm2, prompt=Prompt(instruction="Act."))
    text = codec.decode(codec.first_prompt("look", "a desk 1."))
    assert text == (
        "<|im_start|>user\nAct.\nYour task is to: find a mug.\nYou see a desk 1.<|im_end|>\n"
        "<|im_start|>assistant\n<think>a desk.</think><action>go to desk 1</action><|im_end|>\n"
        "<|im_start|>user\nYou see a mug 1.<|im_end|>\n<|im_start|>assistant\n<think>the mug."
        "</think><action>take mug 1 from desk 1</action><|im_end|>\n"
        "<|im_start|>user\nYour task is to: look.\na desk 1.<|im_end|>\n<|im_start|>assistant\n"
    )
    episode = tiny.trajectory(steps=2)
    (with_it,) = trajectory_examples(codec, episode, "cot", 10_000)
    (without,) = trajectory_examples(plain, episode, "cot", 10_000)
    more = len(with_it.ids) - len(without.ids)
    assert more > 0 and (with_it.roles[: len(codec.opening)] == Role.PROMPT).all()
    weights = [target_weights(each.roles, branches=each.branches) for each in (with_it, without)]
    assert weights[0][more:].tolist() == weights[1].tolist() and not weights[0][:more].any()
