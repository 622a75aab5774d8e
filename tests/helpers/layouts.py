"""Tiny byte-level tokenizers with the chat templates of ChatML, Llama 3 and Qwen3."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_SPECIAL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "[PAD]",
)
CHATML = """\
{%- for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LLAMA3 = """\
{{ '<|begin_of_text|>' }}{%- for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>

{{ m['content'] | trim }}<|eot_id|>{%- endfor %}{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
# Qwen3 strips reasoning from turns before the last question, and shows tool results in a user turn.
QWEN3 = """\
{%- set last = namespace(user=0) %}{%- for m in messages %}{%- if m['role'] == 'user' %}{%- set last.user = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}{%- set text = m['content'] %}
{%- if m['role'] == 'assistant' %}{%- if loop.index0 > last.user %}{{- '<|im_start|>assistant\n<think>\n' + text.split('</think>')[0].split('<think>')[-1].strip('\n') + '\n</think>\n\n' + text.split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}
{%- else %}{{- '<|im_start|>assistant\n' + text.split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}{%- endif %}
{%- elif m['role'] == 'tool' %}{%- if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\n<tool_response>\n' + text + '\n</tool_response>' }}{%- if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
{%- else %}{{- '<|im_start|>' + m['role'] + '\n' + text + '<|im_end|>\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "qwen3": QWEN3}
_CORPUS = (
    "you see a mug 1 and a desk 1. go to desk 1. take mug 1 from desk 1. <think>i need a mug, so i go to the desk.</think>",
    "<action>go to desk 1</action> you arrive at desk 1. system user assistant tool <tool_response> think> action> \n\n",
)


@cache
def tokenizer(layout: str) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with the layout's template.

    It has some 350 entries, and its merges may cross the edges of tags.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        chat_template=TEMPLATES[layout],
        pad_token="[PAD]",
        eos_token="<|eot_id|>" if layout == "llama3" else "<|im_end|>",
    )
