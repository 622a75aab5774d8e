"""The loop over the real Sampler: subwords, temperature above 0, slots that are refilled."""

import itertools

import jax
import numpy as np
import pytest
from helpers import tiny
from helpers.rollouts import Cabinets, Generation, RulePolicy, as_record, games, play_games

from cotjax.envs.base import Observation, Play
from cotjax.envs.pool.pool import EnvPool
from cotjax.errors import InternalError, NotFiniteError, UsageError
from cotjax.model.params import init_params
from cotjax.model.sharding import make_mesh
from cotjax.rollout.record import read_records, record_path, write_record
from cotjax.sample.sampler import Sampler


@pytest.fixture(scope="module")
def codec():
    # The tags are tokens, so that a model that writes at random closes an action now and then.
    return tiny.subword_codec("<action>", "</action>")


@pytest.fixture(scope="module")
def model(codec):
    config = tiny.model_config(vocab_size=codec.vocab_size + 20, layers=1)
    return config, jax.tree.map(lambda x: 2 * x, init_params(config, jax.random.key(1)))


def sampler(codec, model, slots, params=None, kind=Sampler, max_length=500):
    config, own = model
    policy = kind(
        config,
        make_mesh(devices=jax.devices()[:1]),
        slots=slots,
        max_length=max_length,
        stop=codec.stop_texts,
        pad_id=0,
        max_new=40,
        pieces=codec.pieces,
    )
    policy.load(own if params is None else params)
    return policy


class Uneven(Cabinets):
    """Game g<n> ends after n % 3 + 1 steps, so slots are freed one by one."""

    def step(self, actions):
        answers = super().step(actions)
        for slot in actions:
            game, steps = self.games[slot]
            answers[slot] = type(answers[slot])(
                answers[slot].text, ("look",), False, steps > int(game.id[1:]) % 3
            )
        return answers


def played(codec, policy, games, environments=None, driver="prompt", **how):
    """Play and return the episodes by (game, sample). At temperature 1."""
    settings = {"max_steps": 4, "temperature": 1.0, "max_new_tokens": 20, "max_action_tokens": 40}
    environments = environments or Uneven()
    episodes = play_games(
        codec, games, driver, policy=policy, environments=environments, **settings | how
    )
    return {(episode.game.id, episode.sample): episode for episode in episodes}


def plain(record):
    """Return what does not depend on time or rounding, as JSON."""
    response = {"logprob", "logprobs"}
    turns = {"__all__": {"cot": response, "prompt": response}}
    return record.model_dump_json(exclude={"timing": True, "steps": turns})


def test_an_episode_is_the_same_alone_and_among_others_whose_slots_are_refilled(codec, model):
    every = games(2, 0, 1, 5, 3, 4, 2, 8, 11)
    together = played(codec, sampler(codec, model, 3), every, kinds=("cot", "prompt"))
    one = sampler(codec, model, 1)
    for number, game in enumerate(every):
        ((key, record),) = played(
            codec, one, [Play(game, int(number == 6))], kinds=("cot", "prompt")
        ).items()
        assert plain(record) == plain(together[key]), key
    otherwise = 0
    for record in together.values():
        for before, after in itertools.pairwise(record.steps):
            ids = list(before.prompt.ids)
            if before.prompt.valid and ids[-1:] == codec.encode("</action>"):
                # Its ids go on, with the tag that was prefilled and the one that was sampled.
                assert list(after.prompt_ids[: len(ids) + 1]) == [*codec.action_prefix, *ids]
                otherwise += ids[:-1] != codec.encode_plain(before.executed, "it", lenient=True)
    assert otherwise > 0, (
        "some actions were whole, and spelled otherwise than their text is encoded"
    )


class Rooms:
    """Game g<n> ends after n % 3 + 1 steps; game g7 breaks at its second."""

    def reset(self, game):
        self.number, self.steps = int(game.id[1:]), 0
        return "put a plate in fridge", Observation("You see a fridge 1.", ("look",), False, False)

    def step(self, action):
        self.steps += 1
        if self.number == 7 and self.steps == 2:
            raise RuntimeError("the floor gives way")
        # Long enough for some prompts to outgrow their slot.
        return Observation(
            "You look around. " * self.number, ("look",), False, self.steps > self.number % 3
        )

    def close(self):
        pass


@pytest.fixture(scope="module")
def whole_and_half(codec, model):
    """A sampler of four slots and one of two."""
    return [sampler(codec, model, slots, max_length=250) for slots in (4, 2)]


@pytest.mark.parametrize(
    ("driver", "kinds", "workers"), [("prompt", (), 2), ("cot", ("cot", "prompt"), 0)]
)
def test_two_halves_have_the_records_of_one_batch(codec, whole_and_half, driver, kinds, workers):
    every = games(2, 0, 1, 5, 3, 7, 2, 8, 11, 4)
    how = {"kinds": kinds, "max_new_tokens": 10, "max_action_tokens": 10}
    all_slots, first = whole_and_half
    with EnvPool(Rooms, 4, workers) as pool:
        whole = played(codec, all_slots, every, pool, driver, **how)
    with EnvPool(Rooms, 2, workers) as pool, EnvPool(Rooms, 2, workers) as other:
        half = first.twin(), other
        divided = played(codec, first, every, pool, driver, second_half=half, **how)
    assert {"length", "env_error", "step_limit"} == {each.ended for each in whole.values()}
    assert len(whole) == 10 and whole.keys() == divided.keys()
    for key, record in whole.items():
        # The error of an environment names its slot.
        names = {"env_error": None}
        assert plain(record.model_copy(update=names)) == plain(
            divided[key].model_copy(update=names)
        )


def test_a_twin_has_slots_of_its_own_and_nothing_else(codec, whole_and_half):
    _, first = whole_and_half
    first.reset(range(2))
    first.extend({0: codec.encode("look"), 1: codec.encode("open")})
    drawn = first.sample({0: [1], 1: [1]}, max_new=5)
    compilations, twin = first.compilations, first.twin()
    assert twin._runner.params is first._runner.params and not twin.lengths.any()
    twin.extend({1: codec.encode("look"), 0: codec.encode("open")})
    assert twin.sample({0: [1], 1: [1]}, max_new=5) == {0: drawn[1], 1: drawn[0]}
    assert first.sample({0: [1], 1: [1]}, max_new=5) == drawn
    assert first.compilations == twin.compilations == compilations


def test_logits_of_the_second_half_that_are_not_finite_are_named(codec, model, whole_and_half):
    _, first = whole_and_half
    second = first.twin()
    second.load(jax.tree.map(lambda x: x * np.nan, model[1]))
    with pytest.raises(NotFiniteError, match="g2, step 1: slot 0: the model's logits"):
        played(
            codec,
            first,
            games(0, 2, 1, 5),
            second_half=(second, Uneven()),
        )


def test_a_slot_that_keeps_an_id_of_the_game_before_is_noticed(codec, model):
    class Keeps(Sampler):
        def reset(self, slots):
            kept = {slot: self._ids[slot][:1] for slot in slots}
            super().reset(kept)
            for slot, ids in kept.items():
                self._ids[slot] = ids

    with pytest.raises(InternalError, match=r"g2, step 1: the policy's cache holds .* ids"):
        played(codec, sampler(codec, model, 1, kind=Keeps), games(1, 2))


def test_samples_of_a_game_differ_and_have_records_of_their_own(codec, model, tmp_path):
    policy = sampler(codec, model, 2)
    records = played(codec, policy, games(2, 2, 2, 1))
    assert sorted(records) == [("g1", 0), ("g2", 0), ("g2", 1), ("g2", 2)]
    texts = {tuple(step.prompt.text for step in records["g2", sample].steps) for sample in range(3)}
    assert len(texts) == 3
    for (game, sample), record in records.items():
        write_record(
            record_path(
                tmp_path, arm="sft", checkpoint=1, driver="prompt", game_id=game, sample=sample
            ),
            as_record(record),
        )
    found = {(record.game.id, record.sample): record for record in read_records(tmp_path)}
    assert found.keys() == records.keys()
    first = record_path(tmp_path, arm="sft", checkpoint=1, driver="prompt", game_id="g2")
    assert first.exists() and "sample" not in first.name, (
        "the first sample's record has the path of a game's only one"
    )
    again = played(codec, policy, [Play(*games(2), 2)])
    assert plain(again["g2", 2]) == plain(records["g2", 2])
    with pytest.raises(UsageError, match="same sample number"):
        played(codec, policy, [Play(*games(2), 1)] * 2)


@pytest.mark.parametrize("driver", ["cot", "prompt"])
def test_every_response_has_a_seed_of_its_own(codec, driver):
    """By the study's seed, the game, its sample, the turn, and the kind of action."""

    class Mumbles(RulePolicy):
        def sample(self, prefixes, **how):
            return {slot: Generation(self.codec.encode("look"), [-1.0]) for slot in prefixes}

    seeds, responses = set(), 0
    for study in (0, 1, 2):
        for record in played(
            codec,
            Mumbles(codec, max_length=9000),
            games(2, 2, 5),
            Cabinets(),
            driver,
            seed=study,
            kinds=("cot", "prompt"),
        ).values():
            for step in record.steps:
                seeds |= {getattr(step, kind).seed for kind in ("cot", "prompt")}
                responses += 2
    assert len(seeds) == responses == 3 * 3 * 4 * 2
    assert all(0 <= seed < 2**64 for seed in seeds) and max(seeds) > 2**62, "all 64 bits"


def test_admissible_is_what_the_environment_says_and_not_what_could_be_parsed(codec):
    class Flies(RulePolicy):
        def sample(self, prefixes, **how):
            texts = {
                slot: "fly</action>" if prefix else "<action>look</action>"
                for slot, prefix in prefixes.items()
            }
            return {slot: Generation(self.codec.encode(text), None) for slot, text in texts.items()}

    (record,) = played(
        codec, Flies(codec, slots=1, max_length=9000), games(2), Cabinets(), "cot"
    ).values()
    for step in record.steps:
        assert (step.cot.action, step.cot.valid, step.cot.admissible) == (
            "look",
            True,
            True,
        )
        assert (
            step.prompt.action,
            step.prompt.valid,
            step.prompt.admissible,
        ) == ("fly", True, False)


def test_logits_that_are_not_finite_stop_with_the_game_and_the_step(codec, model):
    spoilt = jax.tree.map(lambda x: x * np.nan, model[1])
    with pytest.raises(
        NotFiniteError, match="g2, step 1: slot 0: the model's logits are not finite"
    ):
        played(codec, sampler(codec, model, 1, spoilt), games(2))

    class Broken(RulePolicy):
        def sample(self, prefixes, **how):
            worth = float("nan") if self.codec.decode(self.prompts[0]).count("user") > 1 else 0.0
            return {
                slot: Generation(self.codec.encode("look</action>"), [worth]) for slot in prefixes
            }

    with pytest.raises(NotFiniteError, match="g2, step 2: a log-probability is not finite"):
        played(codec, Broken(codec, slots=1, max_length=9000), games(2), Cabinets())
