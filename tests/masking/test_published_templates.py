"""The chat templates of TRL: each gives the right mask, or is refused with advice.

The proof has two sides. The trained text is what the template renders between the generation prompt
of the previous messages and the end of the turn. And where TRL has a copy of the template with
`{% generation %}` marks, the trained tokens are the marked ones.
"""

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from cotjax.masking import RESPONSE_ROLES, MaskError, Role, Tags, roles_from_messages

trl = pytest.importorskip("trl", reason="TRL ships the templates")

FOLDER = Path(trl.__file__).parent / "chat_templates"
CALLS = Tags(action_open="<tool_call>", action_close="</tool_call>")
CONTROL = re.compile(
    r"<[|｜][^<>\n]{1,40}?[|｜]>|<\|\w+>|<\w+\|>|<(?:bos|eos|sop|start_of_turn|end_of_turn|end_of_utterance|image)>|\[gMASK\]|</?s>"
)


@cache
def tokenizer(file: str):
    """A byte-level tokenizer that knows the control tokens that the template names."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    template = (FOLDER / file).read_text(encoding="utf-8")
    letters = {
        letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    made = Tokenizer(models.BPE(letters, []))
    made.pre_tokenizer, made.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    control = sorted(
        {*CONTROL.findall(template), *(["<|user|>", "<|observation|>"] if "glm" in file else [])}
    )
    tok = PreTrainedTokenizerFast(
        tokenizer_object=made,
        chat_template=template,
        additional_special_tokens=control,
        pad_token="[PAD]",
        bos_token="<bos>",
        eos_token="<eos>",
    )
    tok.add_tokens(["<think>", "</think>"])
    return tok


def call(city):
    return {
        "type": "function",
        "id": f"id0000{city}",
        "function": {"name": "get_weather", "arguments": {"city": city}},
    }


ASKED, TOLD = (
    {"role": "user", "content": "you see a mug 1."},
    {"role": "tool", "name": "get_weather", "content": "user"},
)
ACTED = "<action>go to desk 1</action>"
THOUGHT = {"role": "assistant", "reasoning_content": "i need a mug."}
CALLED = {"role": "assistant", "content": "", "tool_calls": [call("Rome")]}
ANSWER = {"role": "assistant", "content": "It is sunny."}
# letter -> messages, and what the actions are
CONVERSATIONS = {
    "t": (
        [ASKED, {"role": "assistant", "content": f"<think>i need a mug.</think>{ACTED}"}],
        ["go to desk 1"],
    ),
    "n": (
        [ASKED, {"role": "assistant", "content": f"<think>\ni need a mug.\n</think>\n\n{ACTED}"}],
        ["go to desk 1"],
    ),
    "f": ([ASKED, THOUGHT | {"content": ACTED}], ["go to desk 1"]),
    "d": (
        [
            ASKED,
            ANSWER | {"content": ACTED},
            ASKED | {"content": "you arrive."},
            ANSWER | {"content": ACTED},
        ],
        ["go to desk 1"] * 2,
    ),
    "c": ([ASKED, CALLED, TOLD, ANSWER], ["Rome", "It is sunny."]),
    "p": (
        [
            ASKED,
            CALLED | {"content": "I look.", "tool_calls": [call("Rome"), call("Oslo")]},
            TOLD,
            TOLD,
            ANSWER,
        ],
        ["Rome", "Oslo", "It is sunny."],
    ),
    "r": ([ASKED, THOUGHT | CALLED, TOLD, THOUGHT | ANSWER], ["Rome", "It is sunny."]),
}
# The conversations that each template renders correctly; the others are refused. A copy with marks
# has those of its template, except where it is named here.
RIGHT = {
    "tnd": "cohere cohere2 gemma gemma3 idefics3 lfm2 llama3 llava_next phi3 phi3_5 qwen2_5_vl "
    "smolvlm",
    "tndc": "gemma4 gemma4_v2 gemma4_v3 gemma4_v4 llama3_1 llama3_2",
    "tndcp": "lfm2_v2 qwen2_5 qwen3_instruct_2507 qwen3_vl",
    "tnfdc": "gptoss",
    "tnfdcr": "diffusion_gemma gemma4_v5 muse_glimmer",
    "tnfdcpr": "glm4moe lfm2_2_5 lfm2_2_5_v2 lfm2_2_5_vl qwen3_training "
    "qwen3_5_think_training qwen3_6_training",
    "tnfcpr": "qwen3_5_think qwen3_6",
    "tnfr": "qwen3",
    "fdcpr": "qwen3_8",
    "nfr": "nemotron_3_5_lightning nemotron_3_nano nemotron_3_super nemotron_3_ultra",
    "cp": "qwen3_5_nothink",
    "dcp": "qwen3_5_nothink_training",
    "n": "deepseek_r1_distill_training",
    "": "deepseek_r1_distill deepseekv3",
}
ADVICE = re.compile(
    r"trained='last'|reasoning_content|in parts|renders tool_calls|end_of_turn|leave out|"
    r"renders all of these messages|responses='chat'"
)


def masked(file, letter):
    """(messages, ids, roles) of a conversation under a template; what GLM's lacks is given."""
    messages, _ = CONVERSATIONS[letter]
    if file.startswith(("idefics", "smolvlm", "llava")):
        messages = [
            m | {"content": [{"type": "text", "text": m["content"]}]} if m["content"] else m
            for m in messages
        ]
    options = {"responses": "chat", "tags": CALLS} if letter in "cpr" else {}
    end = {"end_of_turn": "<|user|>"} if file == "glm4moe.jinja" else {}
    return messages, *roles_from_messages(messages, tokenizer(file), **options, **end)


def runs(tok, ids, chosen):
    """Texts of the runs of chosen tokens."""
    found, run = [], []
    for token, here in zip(ids, chosen, strict=True):
        if here:
            run.append(int(token))
        elif run:
            found.append(tok.decode(run))
            run = []
    return found + ([tok.decode(run)] if run else [])


@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("*.jinja")))
def test_a_published_template_gives_the_right_mask_or_says_what_to_do(file):
    tok, right = tokenizer(file), ""
    for letter, (_, actions) in CONVERSATIONS.items():
        try:
            messages, ids, roles = masked(file, letter)
        except MaskError as error:
            assert ADVICE.search(str(error)), f"{letter}: {error}"
            continue
        right += letter
        whole = tok.apply_chat_template(messages, tokenize=False)
        assert tok.decode(ids).removesuffix("<|user|>") == whole.removesuffix("<|user|>")
        trained = runs(tok, ids, np.isin(roles, RESPONSE_ROLES))
        numbers = [
            number for number, message in enumerate(messages) if message["role"] == "assistant"
        ]
        assert len(trained) == len(numbers)
        for number, text in zip(numbers, trained, strict=True):
            before = tok.apply_chat_template(
                messages[:number], tokenize=False, add_generation_prompt=True
            )
            assert (whole + "<|user|>").startswith(before + text), (
                f"{letter}: {text!r} does not stand behind the generation prompt"
            )
            assert CONTROL.search(text) and CONTROL.split(text)[-1] == "", (
                f"{letter}: {text!r} does not end in a control token"
            )
            for field in ("content", "reasoning_content"):
                said = messages[number].get(field) or ""
                for piece in re.split(
                    r"</?\w+>", said if isinstance(said, str) else said[0]["text"]
                ):
                    assert piece.strip() in text, f"{letter}: {piece!r} is not trained on"
        acted = runs(tok, ids, roles == Role.ACTION)
        assert len(acted) <= len(actions) and all(
            any(action in text for text in acted) for action in actions
        ), acted
        assert not any("i need" in text or "I look" in text for text in acted), (
            "the thought and the text before a call are no action"
        )
        seen = [
            message
            for number, message in enumerate(messages)
            if number > numbers[0] and message["role"] != "assistant"
        ]
        assert runs(tok, ids, roles == Role.OBSERVATION) == [
            message["content"]
            if isinstance(message["content"], str)
            else message["content"][0]["text"]
            for message in seen
        ]
        _as_trl_marks(file, messages, trained)
    expected = {name: letters for letters, names in RIGHT.items() for name in names.split()}
    name = file.removesuffix(".jinja")
    assert right == (
        expected[name] if name in expected else expected[name.removesuffix("_training")]
    )


def _as_trl_marks(file, messages, trained):
    """TRL's marks may include the end of the header, and text after the end of a turn."""
    twin = file if "_training" in file else file.replace(".jinja", "_training.jinja")
    if (
        not (FOLDER / twin).exists() or "diffusion_gemma" in file
    ):  # which writes another header behind a tool's result, unmarked
        return
    tok = tokenizer(twin)
    theirs = tok.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    marked = runs(tok, theirs["input_ids"], theirs["assistant_masks"])
    assert len(marked) == len(trained)
    for mark, ours in zip(marked, trained, strict=True):
        before, found, behind = mark.partition(ours)
        assert found, f"TRL marks {mark!r}, not {ours!r}"
        assert re.fullmatch(r"(<[|｜][^<>]+[|｜]>|assistant|</?think>|\s)*", before) and behind in (
            "",
            "\n",
            "\n<eos>",
        ), (before, behind)
