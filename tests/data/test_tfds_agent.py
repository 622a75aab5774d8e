"""The dataset on disk: its name is a fingerprint of everything that the examples depend on."""

import pytest

from cotjax.data.tfds_agent import AgentConfig, fingerprint
from cotjax.errors import UsageError
from cotjax.formats import Prompt


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(f"{name}\n")
    return tmp_path


def test_the_fingerprint_of_a_config_stays_as_it_is(folder):
    """Another one would make every prepared dataset anew, and refuse to resume every run."""
    train, tokenizer = str(folder / "a.jsonl"), str(folder / "tokenizer")
    plain = AgentConfig(name="x", sources={"train": train}, tokenizer=tokenizer)
    assert fingerprint(plain) == "c01e6d48c13e"
    every_field = AgentConfig(
        name="y",
        sources={"train": train, "v": str(folder / "b.jsonl")},
        tokenizer=tokenizer,
        template="llama3",
        prompt=Prompt("be brief"),
        splits=("train", "dev"),
        won_only=False,
        task_types=("a", "b"),
        held_out=("c",),
        direct_share=0.25,
        no_thought="direct",
        max_length=512,
        layout="step",
        history=3,
        past_thoughts=True,
    )
    assert fingerprint(every_field) == "36c5f0a7b106"


def test_a_config_refuses_what_a_selection_refuses(folder):
    settings = {"name": "x", "sources": {"train": "a.jsonl"}, "tokenizer": "tokenizer"}
    with pytest.raises(TypeError, match="shuffle"):
        AgentConfig(**settings, shuffle=True)
    with pytest.raises(UsageError, match=r"data\.max_length is 0"):
        AgentConfig(**settings, max_length=0)
