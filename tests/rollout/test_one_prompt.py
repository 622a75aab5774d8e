"""The prompt of a state in training is its prompt in a rollout, id for id, on ALFWorld's games."""

import itertools

import pytest
from helpers.layouts import tokenizer as chat_tokenizer
from helpers.rollouts import RulePolicy, play_games
from tokenizers import Tokenizer

from cotjax.data.codec import Codec
from cotjax.data.prompt_examples import draw_examples
from cotjax.data.selection import Selection
from cotjax.data.tokens import Layout, trajectory_examples
from cotjax.data.trajectories import read_trajectories
from cotjax.envs.pool.pool import EnvPool
from cotjax.envs.worlds import load_world
from cotjax.errors import UsageError
from cotjax.formats import TEMPLATES, Prompt
from cotjax.masking import Role
from cotjax.rollout.collect import Collecting, collect
from cotjax.rollout.replay import ReplayEnvironments

WORLD = load_world("alfworld")


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """Made games, and the file of the expert's trajectories on them."""
    root = tmp_path_factory.mktemp("games")
    kinds = ("pick_and_place_simple", "pick_heat_then_place_in_recep")
    games = WORLD.make_games(root, {"train": dict.fromkeys(kinds, 1)}, seed=1)
    path = root / "expert.jsonl"
    assert collect(WORLD, games, path, Collecting("expert", seed=0)).kept == 2
    return games, path


@pytest.mark.parametrize("template", ["chatml", "llama3", "qwen3"])
@pytest.mark.parametrize("admissible", ["none", "all", "sampled"])
@pytest.mark.parametrize("beside", ["", "instruction", "examples"])
def test_a_state_has_one_prompt_in_training_and_in_playing(played, template, admissible, beside):
    games, path = played
    expert = {each.game: each for each in read_trajectories(path)}
    games = [game for game in games if game.id in expert]
    drawn = draw_examples(path, Selection(), 1 if beside == "examples" else 0, seed=0)
    prompt = Prompt(
        "be brief." if beside else "",
        WORLD.instruction if beside else "",
        admissible,
        admissible_count=4,
        examples=drawn.examples,
    )
    tokenizer = chat_tokenizer("llama3" if template == "llama3" else "chatml")
    codec = Codec(
        Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), TEMPLATES[template], prompt
    )
    references = {game: [step.action for step in each.steps] for game, each in expert.items()}
    policy = RulePolicy(codec, slots=2, max_length=1 << 20)
    how = {"policy": policy, "max_steps": 30, "references": references}
    with EnvPool(WORLD.make_env(30), 2, 0) as pool:
        live = play_games(codec, games, "reference", environments=pool, **how)
    replayed = play_games(codec, games, "reference", environments=ReplayEnvironments(expert), **how)
    # `both` ways of reaching a state have the same ids: the expert's text, from a live environment
    # and from its trajectory.
    for episodes in (live, replayed):
        for episode in episodes:
            _check(codec, expert[episode.game.id], [turn.prompt_ids for turn in episode.steps])


def _check(codec, trajectory, pieces):
    prompts = [list(ids) for ids in itertools.accumulate(pieces, lambda a, b: (*a, *b))]
    assert len(prompts) == len(trajectory.steps)
    for form, layout in itertools.product(("cot", "direct"), (Layout(), Layout("step"))):
        examples = list(trajectory_examples(codec, trajectory, form, 1 << 20, layout))
        for number, prompt in enumerate(prompts):
            example = examples[number] if layout.name == "step" else examples[0]
            trunk = example.ids[example.branches == 0]
            assert trunk[: len(prompt)].tolist() == prompt
            before = example.roles[example.branches == 0][: len(prompt)]
            if form == "cot":
                assert set(before.tolist()) <= {Role.PROMPT, Role.OBSERVATION}


def test_a_world_that_lists_no_actions_is_refused_where_the_prompt_lists_them(played):
    games, path = played
    expert = {each.game: each for each in read_trajectories(path)}
    tokenizer = Tokenizer.from_str(chat_tokenizer("chatml").backend_tokenizer.to_str())
    codec = Codec(tokenizer, TEMPLATES["chatml"], Prompt(admissible="all"))

    class Silent(ReplayEnvironments):
        def _observation(self, slot):
            from dataclasses import replace

            return replace(super()._observation(slot), admissible_commands=None)

    with pytest.raises(UsageError, match="the world does not list its admissible actions"):
        play_games(codec, [games[0]], "cot", environments=Silent(expert))
