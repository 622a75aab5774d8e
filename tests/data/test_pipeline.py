import json
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny

from cotjax.data.packing import Packing, example_lengths
from cotjax.data.pipeline import batches, dropped_weights, example_features, packed_row
from cotjax.data.tfds_agent import AgentConfig, prepare_dataset
from cotjax.data.trajectories import write_trajectories
from cotjax.errors import DataError, UsageError
from cotjax.masking import NEVER, Dropping, MaskError, Role, drops_action, target_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny.word_codec(folder / "tokenizer", tiny.TINY_WORDS)
    played = [
        tiny.trajectory(name=f"t{i}", steps=1 + i % 4, task_type="a" if i % 3 else "b")
        for i in range(30)
    ]
    write_trajectories(folder / "t.jsonl", played)
    return folder


def _dataset(folder, **changes):
    config = AgentConfig(
        name="tiny",
        sources={"train": str(folder / "t.jsonl")},
        tokenizer=str(folder / "tokenizer"),
        **changes,
    )
    return prepare_dataset(config, folder / "tfds").as_data_source(split="train")


@pytest.fixture(scope="module")
def source(folder):
    return _dataset(folder)


def _batches(
    source, count, *, batch=2, seed=0, dropping=None, state=None, row_length=256, **changes
):
    iterator = iter(
        batches(
            source,
            row_length=row_length,
            batch=batch,
            dropping=dropping or Dropping.of(),
            seed=seed,
            **changes,
        )
    )
    if state is not None:
        iterator.set_state(state)
    return [next(iterator) for _ in range(count)], iterator


def _weights(example, dropping, epoch=0):
    """Return the weights of one example at the fraction of the dropping."""
    features = example_features(example, dropping, epoch)
    return np.where(features["draws"] < np.float32(dropping.fraction), 0, features["weights"])


def test_the_dataset_reads_back_what_was_encoded_in_order(folder, source):
    from cotjax.data.codec import Codec
    from cotjax.data.tokens import trajectory_examples
    from cotjax.data.trajectories import read_trajectories

    codec = Codec.load(folder / "tokenizer")
    expected = [
        e
        for t in read_trajectories(folder / "t.jsonl")
        for e in trajectory_examples(codec, t, "cot", 768)
    ]
    assert len(source) == len(expected) == 30
    for stored, example in zip((source[i] for i in range(30)), expected, strict=True):
        assert stored["id"].decode() == example.id
        for name in ("ids", "roles", "branches", "positions"):
            np.testing.assert_array_equal(stored[name], getattr(example, name))


def test_task_types_and_direct_share_choose_what_is_stored(folder):
    held_in = _dataset(folder, task_types=("a",))
    assert len(held_in) == 20
    direct = _dataset(folder, direct_share=1.0)
    assert not any(direct[i]["branches"].any() for i in range(len(direct)))
    with pytest.raises(DataError, match="nothing to train on"):
        _dataset(folder, task_types=("c",))


def test_segments_and_branches_of_packed_rows_are_runs(source):
    """What tree_kernel's one number a key stands on."""
    (first, *more), _ = _batches(source, 6)
    for batch in (first, *more):
        for segments, branches in zip(batch["segment_ids"], batch["branches"], strict=True):
            pairs = np.stack([segments, branches])
            changes = np.flatnonzero((pairs[:, 1:] != pairs[:, :-1]).any(axis=0)) + 1
            runs = [tuple(pairs[:, at].tolist()) for at in (0, *changes)]
            written = [run for run in runs if run[1] > 0]
            assert written and len(set(written)) == len(written)
            order = [run[0] for run in runs]
            assert len({*order}) == 1 + sum(a != b for a, b in pairwise(order))
            assert [s for s in order if s > 0] == sorted(s for s in order if s > 0)


def test_packed_rows_keep_each_examples_tokens_and_weights(source):
    dropping = Dropping.of(fraction=0.5)
    known = {}
    for index in range(len(source)):
        features = example_features(source[index], dropping)
        known.setdefault(features["ids"].tobytes(), []).append(_weights(source[index], dropping))
    (batch,), _ = _batches(source, 1, batch=4, dropping=dropping)
    whole = batch["weights"]
    batch = dropped_weights(batch, dropping.fraction)
    assert (
        "draws" not in batch
        and batch.pop("budget").tolist() == whole.sum(-1, keepdims=True).tolist()
    )
    del batch["dropped"]
    found = 0
    for row in range(4):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            here = batch["segment_ids"][row] == segment
            weights = known[batch["ids"][row][here].tobytes()]
            # Trajectories of equal text differ in their id, so in what they drop.
            assert any((batch["weights"][row][here] == candidate).all() for candidate in weights)
            found += 1
        assert not batch["weights"][row][batch["segment_ids"][row] == 0].any(), (
            "padding is never trained on"
        )
    assert found > 4
    assert all(array.shape == (4, 256) for array in batch.values())


@pytest.mark.parametrize(
    "layout", [{}, {"direct_share": 1.0}, {"layout": "step"}], ids=["trees", "lines", "steps"]
)
def test_a_packed_example_has_the_features_that_it_has_alone(folder, layout):
    dropping = Dropping.of(fraction=0.5)
    examples = [_dataset(folder, **layout)[index] for index in (3, 0, 7)]
    row, place = packed_row(examples, dropping, 0, 2000), 0
    for number, example in enumerate(examples, start=1):
        here = slice(place, place + len(example["ids"]))
        for name, array in example_features(example, dropping).items():
            np.testing.assert_array_equal(row[name][here], array)
        assert (row["segment_ids"][here] == number).all()
        assert row["targets"][here].tolist() == [*example["ids"][1:], example["ids"][-1]], (
            "no target is another example's token"
        )
        place = here.stop
    assert (
        not any(row[name][place:].any() for name in row if name != "draws")
        and (row["draws"][place:] == NEVER).all()
    )


def test_an_example_that_begins_with_a_response_adds_nothing_to_the_one_before_it():
    """The last token of an example predicts nothing, whatever the next example begins with."""
    roles = np.array([Role.ACTION, Role.ACTION, Role.END], np.int8)
    one = {
        "id": b"a",
        "first_step": 0,
        "steps": np.zeros(1, np.int32),
        "ids": np.arange(5, 8, dtype=np.int32),
        "roles": roles,
    }
    one |= {"branches": np.zeros(3, np.int32), "positions": np.arange(3, dtype=np.int32)}
    row = packed_row([one, one], Dropping.of(), 0, 8)
    assert row["weights"].tolist() == [1, 1, 0, 1, 1, 0, 0, 0]


def test_batches_are_a_function_of_the_seed_and_go_on_from_their_state(source):
    first, iterator = _batches(source, 3)
    state = iterator.get_state()
    after = [next(iterator) for _ in range(2)]
    again, _ = _batches(source, 5)
    resumed, _ = _batches(source, 2, state=state)
    for one, other in [*zip(first + after, again, strict=True), *zip(after, resumed, strict=True)]:
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    other_seed, _ = _batches(source, 3, seed=1)
    assert any(
        (one["ids"] != other["ids"]).any() for one, other in zip(first, other_seed, strict=True)
    )


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_read_the_parts_of_one_batch_and_go_on_from_any_hosts_state(source, hosts):
    dropping = Dropping.of(fraction=0.5, redraw=True)
    whole, _ = _batches(source, 9, batch=8, dropping=dropping)
    one = _batches(source, 4, batch=8, dropping=dropping)[1].get_state()
    parts = []
    for host in range(hosts):
        rows = range(host * 8 // hosts, (host + 1) * 8 // hosts)
        mine, reader = _batches(source, 4, batch=8, dropping=dropping, rows=rows)
        assert json.loads(json.dumps(reader.get_state())) == one, (
            "a state does not tell how many hosts there were"
        )
        parts.append(
            mine + _batches(source, 5, batch=8, dropping=dropping, rows=rows, state=one)[0]
        )
    for step, batch in enumerate(whole):
        for name in batch:
            joined = np.concatenate([part[step][name] for part in parts])
            assert joined.dtype == batch[name].dtype
            np.testing.assert_array_equal(joined, batch[name])
    for rows in ([8], [0, 9], [-1], []):
        with pytest.raises(UsageError, match="the batch's 8"):
            batches(source, row_length=256, batch=8, dropping=dropping, seed=0, rows=rows)


def test_an_epoch_reads_every_example_once_and_an_end_may_be_set(source):
    read = list(batches(source, row_length=256, batch=1, dropping=Dropping.of(), seed=0, epochs=2))
    counts = Counter(
        batch["ids"][0][batch["segment_ids"][0] == segment].tobytes()
        for batch in read
        for segment in range(1, batch["segment_ids"].max() + 1)
    )
    assert sum(counts.values()) == 2 * len(source)
    assert counts == Counter(
        source[index]["ids"].tobytes() for index in range(len(source)) for _ in range(2)
    )


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batch_n_is_rows_n_times_b_to_n_plus_1_times_b_of_the_plan(source, batch):
    packing = Packing(example_lengths(source), 256, 0)
    for number, made in enumerate(_batches(source, 7, batch=batch)[0]):
        for place in range(batch):
            _, examples = packing.row(number * batch + place)
            ids = np.concatenate([source[example]["ids"] for example in examples.tolist()])
            assert (
                made["ids"][place][: len(ids)].tolist() == ids.tolist()
                and not made["ids"][place][len(ids) :].any()
            )


def test_what_a_row_loses_is_counted_in_tokens_units_and_examples():
    # Row 1: turns of two tokens and of one in the first example, and one turn in the second.
    # Row 2: one turn in each of two examples.
    draws = np.array(
        [[2, 0.1, 0.1, 0.2, 2, 0.1, 0.6, 2], [2, 2, 2, 0.1, 0.1, 0.1, 0.3, 2]], np.float32
    )
    segments = np.array([[1, 1, 1, 1, 1, 2, 2, 0], [1, 1, 2, 2, 3, 3, 3, 0]], np.int32)
    weights = np.where(draws < 2, np.float32(1), np.float32(0))
    weights[1, 3] = 0  # drawn, but never supervised
    made = dropped_weights({"draws": draws, "weights": weights, "segment_ids": segments}, 0.5)
    assert made["dropped"].tolist() == [[4, 3, 2], [3, 2, 1]] and made["dropped"].dtype == np.int32
    assert made["budget"].tolist() == [[5], [3]]
    assert made["weights"].tolist() == [[0, 0, 0, 0, 0, 0, 1, 0], [0] * 8]
    lighter = dropped_weights(
        {"draws": draws, "weights": weights * np.float32(0.5), "segment_ids": segments}, 0.5
    )
    assert lighter["dropped"].tolist() == made["dropped"].tolist(), "a weight need not be 1"
    exact = dropped_weights(
        {"draws": draws, "weights": weights, "segment_ids": segments}, float(np.float32(0.1))
    )
    assert not exact["dropped"].any(), "a fraction drops the draws below it"


def test_a_fraction_is_constant_unless_steps_are_given_and_then_goes_to_the_last():
    assert not Dropping.of().drops() and Dropping.of().fraction_at(10**6) == 0
    assert not Dropping.of(last_fraction=0.5).drops() and not Dropping.of(fraction_steps=10).drops()
    assert Dropping.of(fraction=0.5).drops() and Dropping.of(fraction=0.3).fraction_at(99) == 0.3
    falling = Dropping.of(fraction=0.5, fraction_steps=10)
    assert falling.drops() and [falling.fraction_at(step) for step in (0, 5, 10, 99)] == [
        0.5,
        0.25,
        0,
        0,
    ]
    rising = Dropping.of(last_fraction=0.4, fraction_steps=1)
    assert rising.drops() and [rising.fraction_at(step) for step in (0, 1)] == [0, 0.4]


def test_a_late_state_is_restored_at_once(source):
    (batch,), iterator = _batches(source, 1, state={"next_index": 10**12})
    assert batch["ids"].shape == (2, 256) and iterator.get_state() == {"next_index": 10**12 + 1}


def test_threads_change_nothing(source):
    for one, other in zip(
        _batches(source, 6, threads=0)[0], _batches(source, 6, threads=3)[0], strict=True
    ):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_lengths_are_kept_beside_the_dataset_and_read_again_where_they_are_gone(folder):
    source = _dataset(folder)
    (file,) = Path(source.dataset_info.data_dir).glob("lengths-*.npy")
    expected = [len(source[index]["ids"]) for index in range(len(source))]
    assert np.load(file).tolist() == expected
    for others in (3, 31):  # of another dataset
        np.save(file, np.arange(others))
        assert example_lengths(source).tolist() == expected == np.load(file).tolist()
    file.unlink()
    assert example_lengths(list(source)).tolist() == expected and not file.exists()
    assert example_lengths(source).tolist() == expected and file.exists()


def test_several_shards_are_one_source(folder, source):
    config = AgentConfig(
        name="shards",
        sources={"train": str(folder / "t.jsonl")},
        tokenizer=str(folder / "tokenizer"),
    )
    builder = prepare_dataset(config, folder / "tfds", shards=4)
    assert len(list(Path(builder.data_path).glob("*.array_record-*"))) == 4
    parts = builder.as_data_source(split="train")
    assert [parts[index]["ids"].tobytes() for index in range(30)] == [
        source[index]["ids"].tobytes() for index in range(30)
    ]


LAYOUTS = [
    {},
    {"past_thoughts": True},
    {"direct_share": 1.0},
    {"layout": "step"},
    {"layout": "step", "history": 1, "past_thoughts": True},
]


@pytest.fixture(scope="module")
def partly(folder):
    """A folder with episodes of five steps, of which the first, a middle one, ... are untrained."""
    played = []
    for index, left_out in enumerate([(), (1,), (0,), (0, 1, 3), (4,)]):
        whole = tiny.trajectory(name=f"p{index}", steps=5)
        steps = [
            replace(step, trained=number not in left_out) for number, step in enumerate(whole.steps)
        ]
        played.append(replace(whole, steps=tuple(steps)))
    other = folder / "partly"
    other.mkdir()
    write_trajectories(other / "t.jsonl", played)
    shutil.copytree(folder / "tokenizer", other / "tokenizer")
    return other


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_same_steps_are_drawn_whatever_the_layout(folder, partly, layout):
    """A step is drawn under its own number, also behind steps that are not trained on."""
    dropping = Dropping.of(seed=2, fraction=0.5)
    for where in (folder, partly):
        seen = Counter()
        for example in _dataset(where, **layout):
            name, roles = example["id"].decode(), example["roles"]
            draws = np.append(
                NEVER, example_features(example, dropping)["draws"][:-1]
            )  # of the tokens themselves
            starts = np.flatnonzero(
                (roles == Role.ACTION) & (np.append(0, roles[:-1]) != Role.ACTION)
            )
            assert len(starts) == len(example["steps"])
            for start, step in zip(starts, example["steps"].tolist(), strict=True):
                assert (draws[start] < 0.5) == drops_action(2, f"{name}#{step}", 0.5)
                seen[name, step] += 1
        assert (
            set(seen.values()) == {1}
            and len({drops_action(2, f"{name}#{step}", 0.5) for name, step in seen}) == 2
        )


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_an_example_mean_counts_a_response_whatever_the_layout(partly, layout):
    """A response counts once: in a tree, in a line with others of its episode, and by itself."""
    import jax.numpy as jnp

    from cotjax.objectives.supervised import normalized

    for batch in batches(
        _dataset(partly, **layout),
        row_length=700,
        batch=1,
        dropping=Dropping.of(),
        seed=0,
        epochs=1,
    ):
        batch = dropped_weights(batch, 0.0)
        roles, weights = batch["roles"][0], batch["weights"][0]
        ends = np.flatnonzero((roles == Role.END) & (weights > 0))
        losses = np.random.default_rng(0).random(weights.shape, np.float32)
        means, start = [], 0
        for end in ends + 1:
            here = weights[start:end]
            means.append((losses[start:end] * here).sum() / here.sum())
            start = end
        batch = {name: jnp.asarray(array) for name, array in batch.items()}
        total, count = normalized("example_mean", losses[None], batch)
        assert int(count) == len(ends)
        np.testing.assert_allclose(total, sum(means), rtol=1e-5)


@pytest.mark.parametrize("redraw", [False, True])
@pytest.mark.parametrize("unit", ["example", "turn", "token"])
def test_an_example_that_a_control_cannot_be_applied_to_is_named_before_anything_is_read(
    folder, unit, redraw
):
    """A direct response has no reasoning to drop as many tokens of as its action has."""
    dropping = Dropping.of(fraction=0.5, unit=unit, control="reasoning tokens", redraw=redraw)
    with pytest.raises(
        DataError,
        match=r"'t\d+(#0)?': \d+ action tokens, but only 0 tokens for the control 'reasoning",
    ):
        batches(
            _dataset(folder, direct_share=1.0), row_length=256, batch=2, dropping=dropping, seed=0
        )
    assert batches(_dataset(folder), row_length=256, batch=2, dropping=dropping, seed=0)
    # Where none is drawn, none has to have them.
    seldom = Dropping.of(fraction=1e-9, unit=unit, control="reasoning tokens")
    if redraw:  # each epoch draws anew, so each unit is drawn some time
        with pytest.raises(DataError, match="only 0 tokens"):
            batches(
                _dataset(folder, direct_share=1.0),
                row_length=256,
                batch=2,
                dropping=replace(seldom, redraw=True),
                seed=0,
            )
    taken, _ = _batches(_dataset(folder, direct_share=1.0), 5, dropping=seldom)
    assert all((dropped_weights(batch, 1e-9)["dropped"] == 0).all() for batch in taken)


def test_dropping_takes_the_action_tokens_of_the_drawn_steps_alone(source):
    dropping = Dropping.of(seed=5, fraction=0.4)
    dropped = 0
    for index in range(len(source)):
        example = source[index]
        full = target_weights(example["roles"], branches=example["branches"])
        reduced = _weights(example, dropping)
        for branch in range(1, example["branches"].max() + 1):
            targets_here = np.append(example["branches"][1:] == branch, False)
            roles = np.append(example["roles"][1:], 0)
            action = targets_here & (roles == Role.ACTION)
            drop = drops_action(5, f"{example['id'].decode()}#{branch - 1}", 0.4)
            dropped += drop
            assert (reduced[action] == (0 if drop else 1)).all()
            np.testing.assert_array_equal(
                reduced[targets_here & ~action], full[targets_here & ~action]
            )
    assert 0 < dropped < 75


@pytest.mark.parametrize("control", ["random tokens", "examples"])
def test_a_control_takes_only_from_the_roles_that_the_run_trains_on(source, control):
    dropping = Dropping.of(fraction=1.0, control=control, supervised=("REASONING", "ACTION_OPEN"))
    for index in range(len(source)):
        features = example_features(source[index], dropping)
        drawn = features["roles"][features["draws"] < NEVER]
        assert len(drawn) and set(drawn) <= {Role.REASONING, Role.ACTION_OPEN}


def test_by_example_all_steps_of_a_trajectory_drop_together(source):
    for index in range(len(source)):
        example = source[index]
        weights = _weights(example, Dropping.of(fraction=0.5, unit="example"))
        action = np.append(example["roles"][1:], 0) == Role.ACTION
        assert len(set(weights[action & (np.append(example["branches"][1:], 0) > 0)])) == 1


def test_a_redrawn_subset_changes_each_epoch_and_a_fixed_one_does_not(source):
    for redraw in (False, True):
        dropping = Dropping.of(fraction=0.5, unit="example", redraw=redraw)
        chosen = [
            [_weights(source[i], dropping, epoch).sum() for i in range(len(source))]
            for epoch in range(3)
        ]
        assert (chosen[0] == chosen[1] == chosen[2]) is not redraw
        # The pipeline counts the epochs itself: later batches hold what later epochs draw.
        first, later = (
            {
                (features["ids"].tobytes(), features["draws"].tobytes())
                for i in range(len(source))
                for epoch in epochs
                for features in [example_features(source[i], dropping, epoch)]
            }
            for epochs in ((0,), (0, 1, 2, 3))
        )
        taken, _ = _batches(source, 16, batch=2, dropping=dropping)
        seen = {
            (batch["ids"][row][here].tobytes(), batch["draws"][row][here].tobytes())
            for batch in taken
            for row in range(2)
            for segment in range(1, batch["segment_ids"][row].max() + 1)
            for here in [batch["segment_ids"][row] == segment]
        }
        assert seen <= later
        assert (seen <= first) is not redraw


@pytest.mark.parametrize(
    "broken",
    [
        {"unit": "word"},
        {"fraction": 1.5},
        {"supervised": ("THOUGHT",)},
        {"control": "nothing"},
        {"fraction_steps": -1},
        {"unit": "token", "control": "examples"},
    ],
    ids=lambda broken: "+".join(broken),
)
def test_masking_settings_are_checked(broken):
    with pytest.raises(MaskError):
        Dropping.of(**broken)


def test_a_row_too_short_for_an_example_is_refused_before_anything_is_read(source):
    with pytest.raises(DataError, match=r"example 't2' has \d+ tokens, a row has 100"):
        batches(source, row_length=100, batch=1, dropping=Dropping.of(), seed=0)


@pytest.mark.parametrize("zero", ["batch", "row_length"])
def test_a_batch_and_a_row_of_zero_are_refused_by_their_own_message(source, zero):
    sizes = {"batch": 2, "row_length": 256} | {zero: 0}
    with pytest.raises(UsageError, match=rf"{zero} \(0\).*must be at least 1"):
        batches(source, dropping=Dropping.of(), seed=0, **sizes)


def test_an_empty_dataset_is_refused_and_one_of_one_example_is_not(source):
    options = {"row_length": 256, "batch": 1, "dropping": Dropping.of(), "seed": 0}
    with pytest.raises(DataError, match="holds no examples"):
        batches([], **options)
    (batch,) = batches([source[0]], **options, epochs=1)
    assert batch["ids"][0, : len(source[0]["ids"])].tolist() == source[0]["ids"].tolist()


@pytest.mark.parametrize("rows", [None, [1], [0, 2]])
def test_with_epochs_a_process_reads_the_full_batches_of_their_rows(source, rows):
    packed = Packing(example_lengths(source), 256, 0).rows
    assert packed * 2 % 3, "the last batch is not full"
    options = {"row_length": 256, "batch": 3, "dropping": Dropping.of(), "seed": 0}
    read = list(batches(source, **options, rows=rows, epochs=2))
    assert len(read) == packed * 2 // 3
    assert all(len(batch["ids"]) == (3 if rows is None else len(rows)) for batch in read)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"fraction": 0.3, "seed": 4, "unit": "example", "control": "reasoning", "redraw": True},
        {"fraction": 0.1, "last_fraction": 0.5, "fraction_steps": 7, "action_close": True},
        {"end": True, "supervised": ("ACTION", "OBSERVATION")},
    ],
)
def test_plain_values_make_a_dropping_and_come_back_from_it(values):
    """Under the keys that a run's settings.json has had from the start."""
    dropping = Dropping.of(**values)
    assert Dropping.of(**dropping.values()) == dropping
    assert dropping.values().items() >= values.items()
    assert list(json.loads(json.dumps(dropping.values()))) == [
        "seed",
        "fraction",
        "last_fraction",
        "fraction_steps",
        "unit",
        "control",
        "redraw",
        "action_close",
        "end",
        "supervised",
    ]


def test_a_schedule_of_ones_own_has_no_plain_values():
    dropping = Dropping(lambda step: 0.5)
    assert dropping.drops() and dropping.fraction_at(3) == 0.5
    with pytest.raises(MaskError, match="has no plain values"):
        dropping.values()
