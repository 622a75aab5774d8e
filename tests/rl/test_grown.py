"""Growing texts in reinforcement learning: results teach nothing, whoever wrote them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.growing import (
    PAGES,
    SCRIPT,
    ScriptPolicy,
    environments,
    letter_codec,
    questions,
    real_results,
    word_codec,
)
from helpers.rollouts import as_record, play_games

from cotjax.config import default_config
from cotjax.data.grown import grown_examples
from cotjax.data.rollouts import policy_rows
from cotjax.envs.search_qa.library import Page
from cotjax.envs.worlds import load_world
from cotjax.errors import DataError, UsageError
from cotjax.masking import Dropping, Role
from cotjax.objectives.policy import Policy, policy_pairs
from cotjax.rl.batches import advantages_of, step_batches
from cotjax.rl.checks import check_rl
from cotjax.rl.groups import Stream
from cotjax.rl.play import Actors, play_step
from cotjax.rl.records import name_of, turns_of
from cotjax.rollout.elicitation import Elicitation

TWICE = tuple(Page(page.title, f"{page.text} {page.text}") for page in PAGES)
SIMULATED = pytest.mark.parametrize("simulated", [False, True], ids=["real", "simulated"])


def _records(codec, folder, *, simulated=False, pages=PAGES, letters=False):
    results = real_results(codec, pages) if simulated else None
    policy = ScriptPolicy(codec, results=results, letters=letters)
    how = {"max_new_tokens": 400, "max_result_tokens": 900, "max_steps": 20}
    with environments(pages=pages) as pool:
        played = play_games(
            codec,
            questions(folder),
            policy=policy,
            environments=pool,
            kinds=(),
            simulated=simulated,
            **how,
        )
    return sorted(map(as_record, played), key=name_of)


def _examples(codec, record, length=3000):
    turns = turns_of(record, codec)
    return grown_examples(
        codec, name_of(record), turns, [1.0 + n for n in range(len(turns))], length
    )


def _batch(codec, records, row_length=3000):
    plays = {name_of(record): _examples(codec, record) for record in records}
    return policy_rows(
        plays,
        {name_of(record): len(record.steps) for record in records},
        row_length=row_length,
        multiple=1,
        dropping=Dropping.of(),
        update=0,
    ).batch


@SIMULATED
def test_a_text_is_one_sequence_whose_sampled_ids_alone_are_trained_on(tmp_path, simulated):
    codec = letter_codec()
    for record in _records(codec, tmp_path, simulated=simulated, letters=True):
        (example,) = _examples(codec, record)
        *_, last = record.steps
        whole = [id for turn in record.steps for id in turn.prompt_ids] + list(last.cot.ids)
        assert example.ids.tolist() == whole and not example.branches.any()
        sampled = [id for turn in record.steps for id in turn.cot.ids]
        assert example.ids[example.sampled > 0].tolist() == sampled
        shown = [
            id for turn in record.steps[1:] for id in codec.growing.observed_ids(turn.observation)
        ]
        own = example.roles == Role.OBSERVATION
        assert example.ids[own].tolist() == shown
        assert codec.decode(shown).endswith("</search_result>\n\n"), "line breaks included"
        assert not example.sampled[own].any() and not example.advantages[own].any()
        acted = []
        for number, turn in enumerate(record.steps):
            here = (example.advantages == number + 1) & (example.sampled > 0)
            assert here.sum() == len(turn.cot.ids)
            own = here & np.isin(example.roles, (Role.ACTION, Role.ANSWER))
            acted.append(codec.decode(example.ids[own].tolist()).strip())
        assert acted == [turn.executed.partition(": ")[2] for turn in record.steps]
        ends, opened, closed = (
            codec.decode(example.ids[example.roles == role].tolist())
            for role in (Role.END, Role.ACTION_OPEN, Role.ACTION_CLOSE)
        )
        searches = len(record.steps) - 1
        assert ends == "<|im_end|>" and opened == "<begin_search>" * searches + "\\boxed{"
        assert closed == "</end_search>" * searches + "}"


def _sums(batch, log_probs, entropies):
    """Return numerators and denominators of the loss and of every metric."""
    pairs = policy_pairs(Policy(kl=0.3), log_probs, entropies, batch)
    return {name: each[0] for name, each in pairs.items()}, {
        n: each[1] for n, each in pairs.items()
    }


def _filled(batch, seed, junk):
    """Return log-probabilities, by the order of sampled ids; elsewhere `junk`."""
    rng, trained = np.random.default_rng(seed), batch["kl_weights"] > 0
    found = np.full(trained.shape, junk, np.float32)
    found[trained] = -rng.uniform(0.1, 2.0, trained.sum())
    return found


@SIMULATED
def test_results_have_no_gradient_by_any_term_and_count_in_no_denominator(tmp_path, simulated):
    codec = word_codec()
    found = []
    for pages, junk in ((PAGES, -3.0), (TWICE, -7.0)):
        batch = _batch(codec, _records(codec, tmp_path, simulated=simulated, pages=pages))
        batch["reference"] = _filled(batch, 1, junk)
        values = _filled(batch, 2, junk), -_filled(batch, 3, junk)

        def total(log_probs, entropies, batch=batch):
            return sum(each.sum() for each in _sums(batch, log_probs, entropies)[0].values())

        gradients = jax.grad(total, argnums=(0, 1))(*map(jnp.asarray, values))
        of_results = batch["roles"] == Role.OBSERVATION
        assert of_results.any()
        for gradient in map(np.asarray, gradients):
            assert not gradient[batch["kl_weights"] == 0].any() and not gradient[of_results].any()
            assert (gradient[batch["kl_weights"] > 0] != 0).mean() > 0.9
        found.append((of_results.sum(), *_sums(batch, *values)))
    (few, sums, weights), (many, others, other_weights) = found
    assert many > 1.5 * few
    for name in sums:
        np.testing.assert_allclose(sums[name], others[name], rtol=1e-5, err_msg=name)
        np.testing.assert_array_equal(weights[name], other_weights[name], err_msg=name)


def test_a_piece_that_does_not_fit_is_left_out_and_a_broken_prompt_is_named(tmp_path):
    codec = word_codec()
    one, two = _records(codec, tmp_path)
    (whole,) = _examples(codec, two)
    (shorter,) = _examples(codec, two, len(whole.ids) - 1)
    assert whole.steps.tolist() == [0, 1, 2] and shorter.steps.tolist() == [0, 1]
    assert (
        shorter.sampled[-1] == 1 and shorter.ids.tolist() == whole.ids[: len(shorter.ids)].tolist()
    )
    assert _examples(codec, one, 5) == []
    broken = two.model_copy(update={"steps": (two.steps[0], two.steps[2])})
    with pytest.raises(DataError, match="two#0, step 1: the prompt does not go on"):
        _examples(codec, broken)


def test_an_invalid_piece_has_no_action_to_drop(tmp_path):
    codec = word_codec()
    record = _records(codec, tmp_path)[1]
    first = record.steps[0]
    bad = first.model_copy(update={"cot": first.cot.model_copy(update={"valid": False})})
    (example,) = _examples(codec, record.model_copy(update={"steps": (bad, *record.steps[1:])}))
    own = example.advantages == 1
    assert set(example.roles[own].tolist()) == {Role.REASONING}
    assert Role.ANSWER in example.roles


def test_a_schedule_says_in_which_steps_the_policy_writes_its_results(tmp_path):
    codec = word_codec()
    settings = default_config("search_qa").rl
    settings.update({"tasks": 2, "group": 2, "flat": "keep", "refills": 0, "simulated_steps": 1})
    made_up = codec.encode("result 1: Bel Tor: Bel Tor was born in Ma Ti. </search_result>")
    elicitation = Elicitation(temperature=1.0, max_new_tokens=64, max_result_tokens=64)
    seen = {}
    with environments() as pool:
        policy = ScriptPolicy(codec, results=lambda text: made_up)
        actors = Actors(None, [pool], codec, elicitation, ("cot",))
        for step in (1, 2):
            stream = Stream(questions(tmp_path), 0)
            rollouts, _ = play_step(
                actors, [(policy, pool)], stream, settings, step=step, begin=0, seed=0, policy="p"
            )
            assert len(rollouts.episodes) == 4
            shown = {each.steps[1].observation for each in rollouts.episodes}
            told = {each.elicitation.get("simulated", False) for each in rollouts.episodes}
            seen[step] = told, {"born in Ma Ti" in text for text in shown}
            run = SimpleNamespace(
                rl=settings, settings=default_config("search_qa").train, dropping=Dropping.of()
            )
            advantages = advantages_of(rollouts, settings)
            ((batch,),) = (
                update.batches for update in step_batches(run, rollouts, advantages.values, codec)
            )
            sampled = sum(len(turn.cot.ids) for each in rollouts.episodes for turn in each.steps)
            assert (batch["weights"] > 0).sum() == sampled == batch["budget"].sum()
    assert seen == {1: ({True}, {True}), 2: ({False}, {False})}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"rl.simulated_steps": 3}, "data.layout to 'growing'"),
        ({"rl.simulated_steps": -1}, "rl.simulated_steps is -1"),
        (
            {"data.layout": "growing", "evaluate.max_result_tokens": 4096},
            "evaluate.max_result_tokens is 4096; it must be less than evaluate.max_length",
        ),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(changes, words):
    config = default_config("search_qa")
    config.update_from_flattened_dict(changes)
    with pytest.raises(UsageError, match=words):
        check_rl(config)


def test_the_published_reward_is_the_worlds_of_the_last_action(tmp_path):
    codec, world = word_codec(), load_world("search_qa")
    settings = default_config("search_qa").rl
    settings.update({"tasks": 2, "group": 2, "flat": "keep", "refills": 0, "reward": "autocoa"})
    script = SCRIPT | {"two": (*SCRIPT["two"][:2], "It is </think>\n\n\\boxed{Ti Ma}<|im_end|>")}
    games = questions(tmp_path)
    with environments() as pool:
        policy = ScriptPolicy(codec, script)
        elicitation = Elicitation(temperature=1.0, max_new_tokens=64)
        actors = Actors(None, [pool], codec, elicitation, ("cot",), world.published_reward)
        stream = Stream(games, 0)
        rollouts, _ = play_step(
            actors, [(policy, pool)], stream, settings, step=1, begin=0, seed=0, policy="p"
        )
    rewards = {
        each.game.id: play.reward
        for each, play in zip(rollouts.episodes, rollouts.plays, strict=True)
    }
    # "Ti Ma" is not "Ma Ti", and holds all of its words.
    assert rewards == {"one": 1.0, "two": 1.0}
    assert {each.game.id: each.success for each in rollouts.episodes} == {"one": True, "two": False}
    (game, *_) = games
    assert world.published_reward(game, "answer: Jor Ko of Ma") == 0.0
    assert world.published_reward(game, "search: Jor Ko") == 0.0
