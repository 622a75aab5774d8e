import io
import json
import re

import numpy as np
import pytest
from helpers import tiny
from helpers.layouts import tokenizer
from rich.console import Console

from cotjax.cli.main import main
from cotjax.data.show_mask import read_shown, show
from cotjax.data.trajectories import write_trajectories
from cotjax.errors import DataError, UsageError
from cotjax.masking import Dropping, Role, drops_action

MESSAGES = [
    {"role": "user", "content": "you see a desk 1."},
    {
        "role": "assistant",
        "content": "<think>a mug may be there.</think><action>go to desk 1</action>",
    },
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mask")
    tiny.word_codec(folder / "words", tiny.TINY_WORDS)
    write_trajectories(folder / "t.jsonl", [tiny.trajectory(name=f"t{i}") for i in range(6)])
    tokenizer("qwen3").save_pretrained(folder / "chat")
    (folder / "m.jsonl").write_text(
        "".join(json.dumps({"id": f"m{i}", "messages": MESSAGES}) + "\n" for i in range(4))
    )
    return folder


def test_the_weights_shown_are_the_tokens_own_and_the_dropped_are_marked(folder):
    dropping = Dropping(fraction=0.5, unit="turn", seed=1)
    seen = 0
    for example in read_shown(folder / "t.jsonl", folder / "words", dropping):
        actions = [run for run in example.runs() if run[0] is Role.ACTION]
        assert [" ".join(tokens) for _, _, _, tokens in actions] == [
            f"open cabinet {number}" for number in (1, 2, 3)
        ]
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
    examples = read_shown(folder / "m.jsonl", folder / "chat", Dropping(fraction=1.0))
    show(examples, "m.jsonl", limit=2, page=tmp_path / "mask.html", console=console)
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
    no_action = json.dumps(
        {"id": "b", "messages": [MESSAGES[0], {"role": "assistant", "content": "go"}]}
    )
    for bad, problem in (
        ("{", "JSONDecodeError"),
        ('{"id": 1}', "no .*messages"),
        (good, "is also that of line 1"),
        (no_action, "no <action>"),
    ):
        file = tmp_path / "bad.jsonl"
        file.write_text(f"{good}\n{bad}\n")
        with pytest.raises(DataError, match=rf"bad\.jsonl:2.*{problem}"):
            list(read_shown(file, folder / "chat", dropping))


def test_a_file_that_trains_nothing_or_everything_is_an_error(folder, monkeypatch):
    import cotjax.data.show_mask as module

    for role, problem in (
        (Role.PROMPT, "no token is supervised"),
        (Role.REASONING, "every token is supervised"),
    ):
        monkeypatch.setattr(
            module, "trajectory_examples", lambda *a, role=role: [_all_of_one_role(folder, role)]
        )
        with pytest.raises(DataError, match=rf"t\.jsonl, trajectory 't0': {problem}"):
            list(read_shown(folder / "t.jsonl", folder / "words", Dropping(fraction=0.0)))


def _all_of_one_role(folder, role):
    from dataclasses import replace

    from cotjax.data.codec import Codec
    from cotjax.data.tokens import trajectory_examples

    (example,) = trajectory_examples(Codec.load(folder / "words"), tiny.trajectory(), "direct", 500)
    return replace(example, roles=example.roles * 0 + role)


def test_the_command_line(folder, tmp_path, capsys):
    arguments = [
        "show-mask",
        "--data",
        str(folder / "t.jsonl"),
        "--tokenizer",
        str(folder / "words"),
        "--limit",
        "1",
    ]
    assert main([*arguments, "--drop", "0.3", "--html", str(tmp_path / "m.html")]) == 0
    out = capsys.readouterr().out
    assert "t0" in out and "t1\n" not in out and (tmp_path / "m.html").exists()
    assert main([*arguments, "--control", "nothing"]) == 2
    assert "there are action, random tokens" in capsys.readouterr().err
    assert main(["show-mask", "--data", str(folder / "none.jsonl")]) == 3
    assert "none.jsonl: no such file" in capsys.readouterr().err


CONFIG = """
from cotjax.config import default_config

def get_config():
    config = default_config()
    config.data.trajectories, config.model.tokenizer = {data!r}, {tokenizer!r}
    config.seed = 5
    with config.unlocked():
        config.arms.late = dict(fraction=0.0, last_fraction=1.0, fraction_steps=10)
        config.arms.random = dict(fraction=0.6, control="random tokens")
    return config
"""


@pytest.mark.parametrize(
    ("fields", "arm", "at"),
    [
        ({}, "reduced", {}),
        ({"data.layout": "step", "data.history": "1"}, "reduced", {}),
        ({"data.past_thoughts": "True"}, "random", {}),
        ({"data.direct_share": "0.5"}, "random", {}),
        ({"masking.action_close": "True", "masking.end": "True"}, "reduced", {}),
        ({"masking.supervised": "ACTION,END"}, "random", {}),
        ({"masking.redraw": "True", "masking.unit": "token"}, "reduced", {"epoch": 3}),
        ({}, "late", {"step": 5}),
        ({"data.max_length": "50"}, "sft", {}),
    ],
)
def test_with_a_config_it_shows_the_weights_that_a_run_trains_with(
    folder, tmp_path, fields, arm, at
):
    """Against the dataset that a run builds and the batches that it reads."""
    from cotjax.config import load_config
    from cotjax.data.pipeline import dropped_weights, packed_row
    from cotjax.data.show_mask import run_shown
    from cotjax.data.tfds_agent import prepare_dataset
    from cotjax.study.arms import dropping_of
    from cotjax.study.training_data import agent_config, codec_of, selection_of

    data, words = folder / "t.jsonl", folder / "words"
    (tmp_path / "c.py").write_text(CONFIG.format(data=str(data), tokenizer=str(words)))
    config = load_config(tmp_path / "c.py", [f"{name}={value}" for name, value in fields.items()])
    dropping = dropping_of(config, arm)
    shown = list(run_shown(data, codec_of(config, data), selection_of(config), dropping, **at))
    source = prepare_dataset(agent_config(config, data, words), tmp_path).as_data_source(
        split="train"
    )
    assert len(shown) == len(source) > 0
    dropped = 0
    for example, stored in zip(shown, source, strict=True):
        row = {
            name: array[None]
            for name, array in packed_row(
                [stored], dropping, at.get("epoch", 0), len(stored["ids"])
            ).items()
        }
        trained = dropped_weights(row, dropping.fraction_at(at.get("step", 0)))
        np.testing.assert_array_equal(example.weights, np.append(0, trained["weights"][0, :-1]))
        np.testing.assert_array_equal(example.roles, stored["roles"])
        assert example.dropped.sum() == trained["dropped"][0, 0]
        dropped += int(example.dropped.sum())
    assert (dropped > 0) == (arm != "sft")


def test_the_command_line_shows_an_arm_of_a_config(folder, tmp_path, capsys):
    (tmp_path / "c.py").write_text(
        CONFIG.format(data=str(folder / "t.jsonl"), tokenizer=str(folder / "words"))
    )
    config = ["show-mask", "--config", str(tmp_path / "c.py"), "--limit", "0"]

    def totals(*more):
        assert main([*config, *more]) == 0
        out = " ".join(capsys.readouterr().out.split())
        return int(re.search(r"│ all +│[^│]+│[^│]+│ +([\d,]+) +│", out)[1]), out

    assert totals("--arm", "sft")[0] == 0
    assert [totals("--arm", "late", "--step", step)[0] for step in ("0", "10")] == [0, 6 * 3 * 3]
    assert "arm 'late'" in totals()[1], "the first that drops"
    dropped, out = totals("--arm", "random", "--config.arms.random.fraction=1.0")
    assert (
        dropped == 6 * 3 * 3
        and "arm 'random', k = 1 of each turn, dropped: random tokens: 6 examples" in out
    )
    for wrong, said in (
        (["--arm", "none"], "there are late, random, reduced, sft"),
        (["--drop", "0.5"], "without a config"),
        (["--step", "-1"], "--step is -1"),
        (["--data", "none.jsonl"], "none.jsonl: no such"),
    ):
        assert main([*config, *wrong]) in (2, 3)
        assert said in capsys.readouterr().err


def test_chats_are_shown_as_the_flags_say(folder, tmp_path, capsys):
    call = "<think>so</think>I look.<tool_call>a</tool_call><tool_call>b</tool_call>"
    rows = [
        MESSAGES[0],
        {"role": "assistant", "content": call},
        {"role": "user", "content": "ok"},
        {"role": "assistant", "content": "<think>so</think>done"},
    ]
    (tmp_path / "m.jsonl").write_text(json.dumps({"id": "a", "messages": rows}))
    command = [
        "show-mask",
        "--data",
        str(tmp_path / "m.jsonl"),
        "--tokenizer",
        str(folder / "chat"),
    ]
    assert main(command) == 3
    flags = [
        "--trained",
        "last",
        "--responses",
        "chat",
        "--tags",
        "<think>,</think>,<tool_call>,</tool_call>",
    ]
    assert main([*command, *flags]) == 0
    assert re.search(r"ACTION +1 +d", capsys.readouterr().out)
    for wrong, said in (
        (["--trained", "some"], "all, last"),
        (["--tags", "<a>"], "four"),
        (["--responses", "x"], "action, chat"),
    ):
        assert main([*command, *wrong]) == 2
        assert said in capsys.readouterr().err


def test_trajectories_are_shown_in_the_template_and_layout_of_the_flags(folder, capsys):
    command = [
        "show-mask",
        "--data",
        str(folder / "t.jsonl"),
        "--tokenizer",
        str(folder / "words"),
        "--limit",
        "0",
    ]
    assert main([*command, "--layout", "step"]) == 0
    assert ": 18 examples" in capsys.readouterr().out
    for wrong, said in (
        (["--layout", "x"], "trajectory, step"),
        (["--template", "x"], "chatml, llama3"),
        (["--limit", "-3"], "--limit is -3"),
    ):
        assert main([*command, *wrong]) == 2
        assert said in capsys.readouterr().err
    assert main(["show-mask"]) == 2
    assert "--data FILE" in capsys.readouterr().err


def test_messages_that_windows_wrote_are_read(folder, tmp_path):
    (tmp_path / "m.jsonl").write_bytes(
        b"\xef\xbb\xbf" + (folder / "m.jsonl").read_bytes().replace(b"\n", b"\r\n") + b"\r\n"
    )
    ours, plain = (
        list(read_shown(place / "m.jsonl", folder / "chat", Dropping(0.0)))
        for place in (tmp_path, folder)
    )
    assert [shown.tokens for shown in ours] == [shown.tokens for shown in plain]


def test_a_package_that_is_missing_is_named_in_a_line(folder):
    """As in an environment of the mask alone, with numpy."""
    import subprocess
    import sys

    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"rich", "tokenizers", "transformers", "jax", "grain"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
from cotjax.cli.main import main
sys.exit(main(["show-mask", "--data", sys.argv[1]]))
"""
    found = subprocess.run(
        [sys.executable, "-c", code, str(folder / "t.jsonl")], capture_output=True, text=True
    )
    assert found.returncode == 2
    assert re.fullmatch(
        r"cotjax: this command needs the package '\w+'.*install.*\n", found.stderr
    ), found.stderr
