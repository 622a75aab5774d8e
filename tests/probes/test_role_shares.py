"""D6 and D7 at states of played episodes, with models whose shares are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.rollouts import as_record, games, play_games

from cotjax.config import default_config
from cotjax.diagnostics.attention import AttentionRow
from cotjax.diagnostics.gradient import GradientRow
from cotjax.diagnostics.probe_rows import read_probe
from cotjax.errors import UsageError
from cotjax.probes import asking, responses
from cotjax.probes.asking import BLOCKED, MASKED, NOTHING
from cotjax.probes.attention import AttentionProbe
from cotjax.probes.gradient import GradientProbe
from cotjax.probes.groups import REASONING, TAGS, Tokens
from cotjax.probes.measuring import measure, probe_path
from cotjax.probes.probe import Checkpoint, Weights, states_of
from cotjax.rollout.record import read_record, record_path, write_record

TURNS = 2


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """Return (run, codec) with expert episodes of two games, two turns each."""
    run = tmp_path_factory.mktemp("run")
    codec = tiny.word_codec(run / "tokenizer", tiny.TINY_WORDS)
    references = {f"g{n}": ["look", f"open cabinet {n}"] for n in (2, 3)}
    for episode in play_games(codec, games(2, 3), "reference", references=references):
        record = as_record(episode)
        path = record_path(
            run / "records",
            arm="sft",
            checkpoint=1,
            driver="reference",
            game_id=record.game.id,
        )
        write_record(path, record)
    return run, codec


def uniform(params):
    """Return parameters under which every token attends to all that it sees alike."""
    params = jax.tree.map(jnp.asarray, params)
    for layer in params["model"]["layers"].values():
        attention = dict(layer["self_attn"])
        for name in ("q_proj", "k_proj"):
            attention[name] = {"weight": jnp.zeros_like(attention[name]["weight"])}
        layer["self_attn"] = attention
    return params


def checkpoint(played, said, change=lambda params: params, dtype="float32", **fields):
    run, codec = played
    config = default_config()
    model = tiny.model_config(vocab_size=codec.vocab_size, compute_dtype=dtype)
    given = {
        "arm": "sft",
        "step": 1,
        "digest": "sha",
        "config": config,
        "world": None,
        "games": {},
        "codec": codec,
        "files": sorted((run / "records").glob("sft/1/*/*.json")),
        "load_policy": None,
        "load_weights": lambda: Weights(model, change(tiny.params(model)), tiny.mesh()),
        "workers": 0,
        "say": said.append,
    }
    return Checkpoint(**(given | fields))


def rows_of(probe, row, at, run):
    measure(probe, at, run, "games")
    return read_probe(probe_path(run, probe.name, "sft", 1), row)[1]


def test_uniform_attention_has_the_shares_of_the_tokens(played, tmp_path):
    rows = rows_of(
        AttentionProbe(), AttentionRow, checkpoint(played, said := [], uniform), tmp_path
    )
    assert len(rows) == 2 * TURNS
    assert not said
    for row in rows:
        assert row.skipped is None
        for part in (row.cot, row.prompt):
            assert part.share == pytest.approx(part.uniform, abs=2e-6)
            assert sum(part.share.values()) == pytest.approx(1, abs=1e-5)
        assert {"reasoning", "tags", "action", "task", "scaffold"} <= row.cot.share.keys()
        assert "reasoning" not in row.prompt.share
        assert ("history" in row.cot.share) == (row.turn > 0)
        assert row.cot.length - row.prompt.length > 5, "the thought and its tags"
        assert len(row.cot.prompt_by_layer) == 2
        counts = row.counts()
        assert counts.keys() == AttentionRow.metrics.keys()
        prompt, two = counts["attention_prompt"], counts["attention_of_two"]
        assert two == pytest.approx(prompt / (prompt + row.cot.share["reasoning"]))
        assert row.cot.prompt_by_layer == pytest.approx([prompt] * 2, abs=1e-5)


def test_hiding_the_reasoning_changes_the_action_of_a_model_that_uses_it(played, tmp_path):
    rows = rows_of(AttentionProbe(), AttentionRow, checkpoint(played, []), tmp_path)
    for row in rows:
        assert row.masked.nats != 0
        assert row.blocked.nats not in (0, row.masked.nats)

    def blind(params):
        """Values of zero: no token learns anything of another."""
        params = uniform(params)
        for layer in params["model"]["layers"].values():
            value = layer["self_attn"]["v_proj"]["weight"]
            layer["self_attn"]["v_proj"] = {"weight": jnp.zeros_like(value)}
        return params

    at = checkpoint(played, [], blind, digest="other")
    for row in rows_of(AttentionProbe(), AttentionRow, at, tmp_path):
        for hidden in (row.masked, row.blocked):
            assert (hidden.nats, hidden.changed) == (0, False)


def test_the_gradient_has_shares_of_all_groups_and_a_swapped_thought(played, tmp_path):
    at = checkpoint(played, said := [])
    rows = rows_of(GradientProbe(), GradientRow, at, tmp_path)
    assert len(rows) == 2 * TURNS
    assert not said
    for row in rows:
        for share in (row.cot.share, row.cot.input_share, row.prompt.share, row.cot.uniform):
            assert sum(share.values()) == pytest.approx(1, abs=1e-5)
        assert row.cot.share.keys() == row.cot.uniform.keys() >= {"reasoning", "tags", "action"}
        assert row.cot.share != pytest.approx(row.cot.uniform, rel=0.05)
        assert row.counts().keys() <= GradientRow.metrics.keys()
    # All thoughts are the same, so there is none to swap.
    assert all(row.swapped is None for row in rows)


def test_a_thought_is_swapped_for_the_nearest_one_of_another_game(played, tmp_path):
    """The same rows, however much an interrupted measurement had measured."""
    run, codec = played
    at = checkpoint(played, [], files=_with_other_thoughts(run, codec, tmp_path))
    rows = rows_of(GradientProbe(), GradientRow, at, tmp_path)
    by_key = {(row.game, row.turn): row.swapped for row in rows}
    for (game, _), swapped in by_key.items():
        assert swapped.game != game
        assert swapped.nats != 0
    assert (by_key["g2", 0].own_tokens, by_key["g2", 0].tokens) == (6, 5)
    assert by_key["g2", 0].turn == 1
    path = probe_path(tmp_path, "gradient", "sft", 1)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.unlink()
    path.with_suffix(".part").write_bytes(b"".join(lines[:3]))
    measure(GradientProbe(), at, tmp_path, "games")
    assert path.read_bytes() == whole


def _with_other_thoughts(run, codec, folder):
    """Write the records again with thoughts of other lengths; return their paths."""
    words = {("g2", 0): 6, ("g2", 1): 3, ("g3", 0): 9, ("g3", 1): 5}
    paths = []
    for path in sorted((run / "records").glob("sft/1/*/*.json")):
        record = read_record(path)
        steps = []
        for number, turn in enumerate(record.steps):
            count = words[record.game.id, number]
            thought = " ".join(["plate"] * count)
            ids = codec.encode(f"<think> {thought} </think><action> look </action>")
            cot = turn.cot.model_copy(update={"ids": tuple(ids), "thought": thought})
            steps.append(turn.model_copy(update={"cot": cot}))
        paths.append(folder / "records" / "reference" / path.name)
        write_record(paths[-1], record.model_copy(update={"steps": tuple(steps)}))
    return paths


# ---- wrong implementations: what is asked of the model

_ARRAYS, _TOKENS = asking._arrays, responses.response_tokens


def at_the_token_itself(row, size):
    arrays = dict(_ARRAYS(row, size))
    asked = arrays["at_BQ"] < size.row
    return arrays | {"at_BQ": arrays["at_BQ"] + asked}


def tags_as_reasoning(codec, ids):
    tokens = _TOKENS(codec, ids)
    return Tokens(tokens.ids, [REASONING if group == TAGS else group for group in tokens.groups])


def hidden_from_everyone(row, size):
    arrays = dict(_ARRAYS(row, size))
    prompt = np.isin(arrays["groups_BT"], range(REASONING))
    return arrays | {"masked_BT": arrays["masked_BT"] | (prompt & (row.hidden == MASKED))}


WRONG = {
    "": (asking, "_arrays", _ARRAYS),
    "queries at the token itself": (asking, "_arrays", at_the_token_itself),
    "tags as reasoning": (responses, "response_tokens", tags_as_reasoning),
    "the prompt hidden too": (asking, "_arrays", hidden_from_everyone),
    "nothing hidden": (asking, "MASKED", "another word"),
    "nothing blocked": (asking, "BLOCKED", "another word"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_queries_predict_the_action_and_exactly_the_thought_is_hidden(played, monkeypatch, wrong):
    run, codec = played
    monkeypatch.setattr(*WRONG[wrong])
    held = []
    for record in map(read_record, sorted((run / "records").glob("sft/1/*/*.json"))):
        for state in states_of([record]):
            tokens = responses.responses_of(state, codec, 1000).cot
            row = asking.Row("cot", tokens)
            asked = {
                kind: asking._arrays(asking.Row("cot", tokens, kind), row.size)
                for kind in (NOTHING, MASKED, BLOCKED)
            }
            ids, at = asked[NOTHING]["ids_BT"], asked[NOTHING]["at_BQ"]
            at = at[at < row.size.row]
            hidden = {
                MASKED: asked[MASKED]["masked_BT"],
                BLOCKED: asked[BLOCKED]["branches_BT"] > 0,
            }
            held.append(codec.decode(ids[at + 1].tolist()).strip() == state.turn.cot.action)
            thought = state.turn.cot.thought.strip()
            held += [
                codec.decode(ids[each].tolist()).strip() == thought for each in hidden.values()
            ]
            held.append(not asked[NOTHING]["masked_BT"].any())
    assert len(held) == 4 * 2 * TURNS
    assert all(held) == (not wrong)


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        ({"valid": False, "action": None, "reason": "cut", "problem": "cut"}, "invalid"),
        ({"ids": None}, "no_thought"),
        ({"prompt": True}, "prompt"),
        ({"length": True}, "length"),
    ],
)
def test_what_cannot_be_measured_is_counted(played, tmp_path, update, reason):
    run, codec = played
    path = sorted((run / "records").glob("sft/1/*/*.json"))[0]
    record = read_record(path)
    first, second = record.steps
    if "ids" in update:
        update = {"ids": tuple(codec.encode("<think> </think><action> look </action>"))}
    if reason == "prompt":
        first = first.model_copy(update={"prompt_ids": first.prompt_ids[1:]})
    elif reason != "length":
        first = first.model_copy(update={"cot": first.cot.model_copy(update=update)})
    changed = tmp_path / "records" / "reference" / path.name
    write_record(changed, record.model_copy(update={"steps": (first, second)}))
    at = checkpoint(played, said := [], files=[changed])
    if reason == "length":
        at.config.evaluate.max_length = first.prompt_length + 4  # the prompt action fits
    rows = rows_of(AttentionProbe(), AttentionRow, at, tmp_path)
    assert rows[0].skipped == reason
    assert (rows[0].cot, rows[0].masked) == (None, None)
    assert (rows[0].prompt is None) == (reason == "prompt")
    assert " of 2 states are not measured: " in said[0]
    # The prompt of the second turn goes on from the first's.
    assert (rows[1].skipped is None) == (reason in ("invalid", "no_thought"))


def test_settings_are_checked():
    config = default_config()
    for probe in (AttentionProbe(), GradientProbe()):
        probe.check(config)
        config.probes[probe.name].rows = 0
        with pytest.raises(UsageError, match=rf"probes.{probe.name}.rows is 0"):
            probe.check(config)


def test_rows_measured_together_are_as_if_alone_and_in_bfloat16_near(played, tmp_path):
    alone = rows_of(AttentionProbe(), AttentionRow, checkpoint(played, []), tmp_path / "alone")
    at = checkpoint(played, [])
    at.config.probes.attention.rows = 3
    together = rows_of(AttentionProbe(), AttentionRow, at, tmp_path / "together")
    half = rows_of(
        AttentionProbe(), AttentionRow, checkpoint(played, [], dtype="bfloat16"), tmp_path / "half"
    )
    for one, other, near in zip(alone, together, half, strict=True):
        assert other.cot.share == pytest.approx(one.cot.share, abs=5e-6)
        assert other.masked.nats == pytest.approx(one.masked.nats, abs=5e-5)
        assert near.cot.share == pytest.approx(one.cot.share, abs=0.02)
