"""D5 on made household games with scripted thoughts, and on a model that decodes."""

import re

import jax
import pytest
from helpers import tiny
from helpers.traces import Said, TextPolicy, checkpoint, write_states

from cotjax.data.codec import Codec
from cotjax.data.trajectories import read_trajectories
from cotjax.data.word_tokenizer import build_word_tokenizer, save_tokenizer
from cotjax.diagnostics.conflict import VARIANTS
from cotjax.envs.alfworld import WORLD
from cotjax.envs.alfworld.maker.make import make_games
from cotjax.formats import R1, TEMPLATES
from cotjax.model.params import init_params
from cotjax.model.sharding import make_mesh
from cotjax.probes.conflict import ConflictProbe
from cotjax.probes.forcing import Asked, Forcing, forced_ids
from cotjax.probes.naming import mentions, names, things
from cotjax.probes.probe import states_of
from cotjax.rollout.collect import Collecting, collect
from cotjax.sample.sampler import Sampler

COUNTS = {"train": {"pick_and_place_simple": 3, "pick_heat_then_place_in_recep": 2}}


@pytest.fixture(scope="module")
def household(tmp_path_factory):
    """A codec, and kind of thoughts -> the rows of a policy that always looks around."""
    folder = tmp_path_factory.mktemp("household")
    games = make_games(folder / "games", COUNTS, seed=5)
    save_tokenizer(build_word_tokenizer(WORLD.words()), folder / "tokenizer")
    codec = Codec.load(folder / "tokenizer")
    rows, states = {}, {}
    for kind in ("named", "unnamed"):
        collect(WORLD, games, folder / f"{kind}.jsonl", Collecting("expert", 0, thoughts=kind))
        for trajectory in read_trajectories(folder / f"{kind}.jsonl"):
            said = [
                Said(step.thought, step.action, None, step.admissible_commands, step.observation)
                for step in trajectory.steps
            ]
            where = {"task": trajectory.task, "task_type": trajectory.task_type}
            write_states(folder / kind, codec, trajectory.game, said, **where)
        at = checkpoint(folder / kind, codec, TextPolicy(codec, lambda *_: "look </action>"))
        probe = ConflictProbe()
        states[kind] = {state.key: state for state in probe.states(at)}
        rows[kind] = list(probe.measure(list(states[kind].values()), at))
    return rows, states


def test_named_thoughts_conflict_in_most_states(household):
    rows, states = household
    fits = dict.fromkeys(VARIANTS, 0)
    for row in rows["named"]:
        state = states["named"][row.key]
        commands = state.turn.admissible_commands
        for variant, each in row.conflicts.items():
            fits[variant] += 1
            assert each.action in commands and each.action != row.own
            assert names(each.thought, each.action) == (variant in ("swap", "other")) or (
                variant == "cut_action"
            )
            if variant == "cut":
                assert not mentions(each.thought, each.action)
            if variant == "cut_action":
                # The scripted thoughts say the action last: "so next i go to cabinet 2."
                source = next(
                    other
                    for other in states["named"].values()
                    if (other.record.game.id, other.number) == (each.game, each.turn)
                ).turn.cot.thought
                rest = source[len(each.thought) :]
                assert source.startswith(each.thought) and len(re.split(r", |\. ", rest)) <= 2
            if variant == "swap":
                own, other = things(row.own), things(each.action)
                gone = [a.text for a, b in zip(own, other, strict=True) if a.text != b.text]
                assert len(gone) == 1 and not re.search(rf"\b{gone[0]}\b", each.thought)
                edits = len(re.findall(rf"\b{gone[0]}\b", state.turn.cot.thought))
                words = zip(each.thought.split(), state.turn.cot.thought.split(), strict=True)
                assert edits <= sum(a != b for a, b in words) <= 2 * edits
    # Where one thing alone can be taken or heated, no noun can be swapped.
    assert len(rows["named"]) > 25 and fits["swap"] > 0.5 * len(rows["named"])
    assert all(count > 0.7 * len(rows["named"]) for name, count in fits.items() if name != "swap")


def test_unnamed_thoughts_have_nothing_to_swap(household):
    rows, _ = household
    fits = dict.fromkeys(VARIANTS, 0)
    for row in rows["unnamed"]:
        for variant, each in row.conflicts.items():
            fits[variant] += 1
            assert not names(each.thought, each.action)
    assert fits["swap"] == fits["other"] == 0
    assert fits["cut"] > 0.8 * len(rows["unnamed"])


# ---- a model that decodes


@pytest.fixture(scope="module")
def decoded(tmp_path_factory):
    """A codec with tags of its own, a sampler, and the records of what that sampler said."""
    codec = tiny.subword_codec("<think>", "</think>", "<action>", "</action>")
    config = tiny.model_config(vocab_size=codec.vocab_size + 5, layers=1)
    sampler = Sampler(
        config,
        make_mesh(devices=jax.devices()[:1]),
        slots=2,
        max_length=300,
        stop=codec.stop_texts,
        pad_id=0,
        max_new=40,
        pieces=codec.pieces,
    )
    sampler.load(jax.tree.map(lambda x: 2 * x, init_params(config, jax.random.key(1))))
    folder = tmp_path_factory.mktemp("decoded")
    commands = tuple(f"open cabinet {n}" for n in range(1, 5))
    for game in range(3):
        states = [
            Said(f"i need it {game}. so i open cabinet {n}.", f"open cabinet {n}", None, commands)
            for n in (1 + game, 2)
        ]
        write_states(folder, codec, f"g{game}", states)
    return codec, sampler, folder


def test_a_forced_thought_gets_the_action_that_the_model_gives_after_it(decoded):
    """As if it had been decoded alone, from prompt and thought in one piece."""
    codec, sampler, folder = decoded
    at = checkpoint(folder, codec, sampler)
    at.config.evaluate.max_length, at.config.evaluate.max_action_tokens = 300, 12
    wanted = [
        (state, [Asked("i need it."), Asked(""), Asked(f"so i open cabinet {state.number}.")])
        for state in states_of(at.records("reference"))
    ]
    answers = {state.key: found for state, found in Forcing(at, "conflict").decode(wanted)}
    assert len(answers) == 6
    said = set()
    for state, asked in wanted:
        for each in asked:
            sampler.reset(range(2))
            sampler.extend({1: [*state.prompt_ids, *forced_ids(codec, each)]})
            alone = codec.decode(sampler.sample({1: []}, max_new=12)[1].ids)
            answer = answers[state.key][each]
            action = alone.partition("</action>")[0] if "</action>" in alone else None
            if answer.reason is None:
                assert answer.action == " ".join(action.split())
            said.add(alone)
    assert len(said) > 3, "the model says different things"


def test_the_same_rows_come_from_other_batches_and_after_a_restart(decoded):
    codec, sampler, folder = decoded
    at = checkpoint(folder, codec, sampler)
    at.config.evaluate.max_length, at.config.evaluate.temperature = 300, 1.0
    at.config.evaluate.max_action_tokens = 8
    probe = ConflictProbe()
    states = probe.states(at)
    together = {row.key: row for row in probe.measure(states, at)}
    apart = {row.key: row for state in states for row in probe.measure([state], at)}
    assert together == apart
    assert {len(row.trials) for row in together.values()} > {0} or together


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_forced_thought_is_written_as_in_training(name):
    """In every template, those whose responses begin inside a thought too."""
    begins = [template.begin for template in TEMPLATES.values() if template.begin]
    base = tiny.subword_codec("<think>", "</think>", "<action>", "</action>", *begins)
    codec = Codec(base._tokenizer, TEMPLATES[name])
    trained = codec.reasoned("i need it.", "look")
    assert forced_ids(codec, Asked("i need it.")) == [i for ids, _ in trained[:4] for i in ids]
    opened = forced_ids(codec, Asked("i need it <action>", closed=False))
    assert codec.decode(opened) == codec.template.think_open + "i need it <action>"
    assert codec.action_prefix[0] not in opened
    empty = codec.decode(forced_ids(codec, Asked("")))
    assert empty == (codec.template.direct_open or "<think></think>") + "<action>"
    assert codec.template != R1 or empty == "<think>\n\n</think>\n\n<action>"
