import io
import json
import re

import pytest
import tiny
from layouts import tokenizer
from rich.console import Console

from cotjax.cli import main
from cotjax.data.show_mask import read_shown, show
from cotjax.data.trajectories import write_trajectories
from cotjax.errors import DataError, UsageError
from cotjax.masking import Dropping, Role, drops_action

MESSAGES = [
    {"role": "user", "content": "you see a desk 1."},
    {"role": "assistant", "content": "<think>a mug may be there.</think><action>go to desk 1</action>"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mask")
    tiny.word_codec(folder / "words", tiny.TINY_WORDS)
    write_trajectories(folder / "t.jsonl", [tiny.trajectory(name=f"t{i}") for i in range(6)])
    tokenizer("qwen3").save_pretrained(folder / "chat")
    (folder / "m.jsonl").write_text("".join(json.dumps({"id": f"m{i}", "messages": MESSAGES}) + "\n" for i in range(4)))
    return folder


def test_the_weights_shown_are_the_tokens_own_and_the_dropped_are_marked(folder):
    dropping = Dropping(fraction=0.5, unit="turn", seed=1)
    seen = 0
    for example in read_shown(folder / "t.jsonl", folder / "words", dropping):
        actions = [run for run in example.runs() if run[0] is Role.ACTION]
        assert [" ".join(tokens) for _, _, _, tokens in actions] == [f"open cabinet {number}" for number in (1, 2, 3)]
        for step, (_, weight, dropped, _) in enumerate(actions):
            assert dropped is drops_action(1, f"{example.name}#{step}", 0.5)
            assert weight == (0.0 if dropped else 1.0)
            seen += dropped
        for role, weight, _, _ in example.runs():
            if role is not Role.ACTION:
                assert weight == (1.0 if role >= Role.REASONING else 0.0)
    assert 0 < seen < 18


def test_the_terminal_and_the_page_say_the_same_totals(folder, tmp_path):
    console = Console(width=120, record=True, file=io.StringIO())
    show(folder / "m.jsonl", folder / "chat", Dropping(fraction=1.0), limit=2, page=tmp_path / "mask.html", console=console)
    text, page = console.export_text(), (tmp_path / "mask.html").read_text()
    count = len(tokenizer("qwen3")("go to desk 1")["input_ids"])
    assert re.search(rf"ACTION +│ +{4 * count} +│ +0 +│ +{4 * count} +│", text)
    assert f"ACTION</span></td><td>{4 * count}</td><td>0</td><td>{4 * count}</td>" in page
    assert page.count("<h2>") == 2 and text.count("ACTION_OPEN  1") == 2
    assert "&lt;|im_end|&gt;" in page and "<|im_end|>" not in page and "http" not in page


def test_messages_with_a_bad_line_or_without_a_tokenizer(folder, tmp_path):
    dropping = Dropping(fraction=0.0)
    with pytest.raises(UsageError, match="--tokenizer"):
        list(read_shown(folder / "m.jsonl", None, dropping))
    with pytest.raises(UsageError, match="no chat template"):
        plain = tokenizer("chatml")
        plain.chat_template, kept = None, plain.chat_template
        plain.save_pretrained(tmp_path / "plain")
        plain.chat_template = kept
        list(read_shown(folder / "m.jsonl", tmp_path / "plain", dropping))
    good = json.dumps({"id": "a", "messages": MESSAGES})
    no_action = json.dumps({"id": "b", "messages": [MESSAGES[0], {"role": "assistant", "content": "go"}]})
    for bad, problem in (("{", "JSONDecodeError"), ('{"id": 1}', "KeyError"), (no_action, "no <action>")):
        file = tmp_path / "bad.jsonl"
        file.write_text(f"{good}\n{bad}\n")
        with pytest.raises(DataError, match=rf"bad\.jsonl:2.*{problem}"):
            list(read_shown(file, folder / "chat", dropping))


def test_a_file_that_trains_nothing_or_everything_is_an_error(folder, monkeypatch):
    import cotjax.data.show_mask as module

    for role, problem in ((Role.PROMPT, "no token is supervised"), (Role.REASONING, "every token is supervised")):
        monkeypatch.setattr(module, "trajectory_examples", lambda *a, role=role: [_all_of_one_role(folder, role)])
        with pytest.raises(DataError, match=rf"t\.jsonl, trajectory 't0': {problem}"):
            list(read_shown(folder / "t.jsonl", folder / "words", Dropping(fraction=0.0)))


def _all_of_one_role(folder, role):
    from dataclasses import replace

    from cotjax.data.tokens import Codec, trajectory_examples

    (example,) = trajectory_examples(Codec.load(folder / "words"), tiny.trajectory(), "direct", 500)
    return replace(example, roles=example.roles * 0 + role)


def test_the_command_line(folder, tmp_path, capsys):
    arguments = ["show-mask", "--data", str(folder / "t.jsonl"), "--tokenizer", str(folder / "words"), "--limit", "1"]
    assert main([*arguments, "--drop", "0.3", "--html", str(tmp_path / "m.html")]) == 0
    out = capsys.readouterr().out
    assert "t0" in out and "t1\n" not in out and (tmp_path / "m.html").exists()
    assert main([*arguments, "--control", "nothing"]) == 2
    assert "there are action, random tokens" in capsys.readouterr().err
    assert main(["show-mask", "--data", str(folder / "none.jsonl")]) == 3
    assert "none.jsonl: no such file" in capsys.readouterr().err
