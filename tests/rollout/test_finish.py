"""What an action leads to: the expert goes on from where another agent has come to."""

from dataclasses import replace

import pytest

from cotjax.data.trajectories import read_trajectories
from cotjax.envs.base import Game, Observation, Successor
from cotjax.envs.scienceworld.expert import Expert as PathExpert
from cotjax.envs.worlds import AgentSettings, World, load_world
from cotjax.errors import EnvError, UsageError
from cotjax.rollout.collect import Collecting, collect
from cotjax.rollout.finish import Ending, Fork, finished

ALFWORLD, SEARCH = load_world("alfworld"), load_world("search_qa")
HOUSEHOLD = {
    "valid_unseen": {
        "pick_clean_then_place_in_recep": 1,
        "pick_two_obj_and_place": 1,
        "look_at_obj_in_light": 1,
    }
}
QUESTIONS = {"train": {"one_hop": 1}, "test": {"two_hops": 2, "comparison": 1}}


def episodes(world, games, folder, **how):
    out = folder / "played.jsonl"
    collect(world, games, out, Collecting("expert", seed=0, max_steps=60, **how))
    return list(read_trajectories(out))


@pytest.fixture(scope="module")
def household(tmp_path_factory):
    """Made games, and the expert's episodes of them."""
    folder = tmp_path_factory.mktemp("household")
    games = ALFWORLD.make_games(folder / "games", HOUSEHOLD, 3)
    return {game.id: game for game in games}, episodes(ALFWORLD, games, folder)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    SEARCH.make_games(folder / "games", QUESTIONS, 0)
    games = SEARCH.games(folder / "games", "test")
    return {game.id: game for game in games}, episodes(SEARCH, games, folder)


def fork_at(games, episode, number, *taken):
    """The fork of an episode before its step of this number."""
    steps = episode.steps
    return Fork(
        games[episode.game],
        episode.task,
        tuple(step.action for step in steps[:number]),
        tuple(step.observation for step in steps[: number + 1]),
        taken,
    )


def endings(world, *forks, limit=60, workers=0):
    with finished(world, forks, limit, workers) as found:
        return list(found)


def follows_itself(world, games, episode):
    """Check that the expert, told of its own steps, goes on as it did."""
    env = world.make_env(len(episode.steps) + 1)()
    task, first = env.reset(games[episode.game])
    seen = [first, *(env.step(step.action) for step in episode.steps)]
    for number, step in enumerate(episode.steps):
        agent = world.agent("expert", 1, AgentSettings(game=games[episode.game]))
        agent.start(task, first)
        for before, after in zip(episode.steps[:number], seen[1:], strict=False):
            agent.follow(before.action, after)
        assert agent.act(seen[number]).action == step.action, number
    env.close()


def test_the_household_expert_goes_on_as_it_would_have(household):
    games, played = household
    assert len(played) == 3
    for episode in played:
        follows_itself(ALFWORLD, games, episode)


def test_the_solver_goes_on_as_it_would_have(questions):
    games, played = questions
    assert len(played) >= 2
    for episode in played:
        follows_itself(SEARCH, games, episode)


def test_bfcls_expert_goes_on_as_it_would_have(tmp_path):
    pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval mpmath")
    world = load_world("bfcl")
    games = {game.id: game for split in world.splits for game in world.games("", split)}
    chosen = [game for id_, game in games.items() if id_.endswith(("base_10", "base_39"))]
    (first, *_), played = chosen, episodes(world, chosen, tmp_path)
    assert len(played) == 2
    for episode in played:
        follows_itself(world, games, episode)
    episode = next(each for each in played if each.game == first.id)
    number = next(n for n, step in enumerate(episode.steps) if step.action != "done")
    right = episode.steps[number].action
    left = len(episode.steps) - number - 1
    # What is refused costs a step; what ends the turn too early cannot be mended.
    fork = fork_at(games, episode, number, right, "[no_such_function()]", "done")
    (found,) = endings(world, fork)
    assert found.endings == {
        right: Ending(left),
        "[no_such_function()]": Ending(left + 1),
        "done": Ending(None),
    }


def test_a_path_says_nothing_where_it_does_not_reach_the_goal():
    answer = Observation("You move.", None, False, False)
    expert = PathExpert(["go to hall", "open door", "go to kitchen"])
    assert isinstance(expert, Successor)
    expert.start("Your task is to go.", answer)
    for action in ("go to hall", "look around", "open door"):
        expert.follow(action, answer)
    assert expert.act(answer).action == "go to kitchen"
    with pytest.raises(EnvError, match="ended without the goal"):
        expert.act(answer)


def test_steps_to_the_goal_are_those_of_the_expert(household):
    games, played = household
    for episode in played:
        steps = episode.steps
        last = len(steps) - 1
        take = next(n for n, step in enumerate(steps) if step.action.startswith("take"))
        forks = [
            fork_at(games, episode, last, steps[last].action, "look", "fly to the moon"),
            fork_at(games, episode, take, steps[take].action, "inventory"),
        ]
        at_goal, at_thing = (found.endings for found in endings(ALFWORLD, *forks))
        assert at_goal[steps[last].action] == Ending(0), "the action itself reaches the goal"
        assert at_goal["look"] == at_goal["fly to the moon"] == Ending(1)
        assert at_thing[steps[take].action] == Ending(last - take)
        assert at_thing["inventory"] == Ending(last - take + 1)
        away = next(
            command
            for command in steps[take].admissible_commands
            if command.startswith("go to") and "drawer" not in command
        )
        (walked,) = endings(ALFWORLD, fork_at(games, episode, take, away))
        assert walked.endings[away].steps >= last - take + 2, "there and back"


def test_the_limit_is_on_the_experts_steps(household):
    games, (episode, *_) = household
    right = episode.steps[0].action
    fork = fork_at(games, episode, 0, right, "look")
    left = len(episode.steps) - 1
    (found,) = endings(ALFWORLD, fork, limit=left)
    assert found.endings == {right: Ending(left), "look": Ending(None)}


def test_an_answer_ends_the_episode(questions):
    games, (episode, *_) = questions
    last = len(episode.steps) - 1
    right = episode.steps[last].action
    fork = fork_at(games, episode, last, right, "answer: nobody", "search: nothing of use")
    (found,) = endings(SEARCH, fork)
    assert found.endings == {
        right: Ending(0),
        "answer: nobody": Ending(None),
        "search: nothing of use": Ending(1),
    }


def test_a_search_in_the_solvers_own_words_is_not_done_again(questions):
    games, (episode, *_) = questions
    first = episode.steps[0].action
    (found,) = endings(SEARCH, fork_at(games, episode, 0, first, "search: nothing of use"))
    steps = [found.endings[action].steps for action in found.endings]
    assert steps == [len(episode.steps) - 1, len(episode.steps)]


def test_a_replay_that_differs_is_no_ending(household):
    games, (episode, *_) = household
    fork = fork_at(games, episode, 2, episode.steps[2].action)
    wrong = replace(fork, observations=(*fork.observations[:2], "A dragon is here."))
    changed, other = endings(ALFWORLD, wrong, fork)
    assert changed.endings == {} and "step 2: the replay differs" in changed.differs
    assert episode.game in changed.differs
    assert other.differs is None and other.endings, "the next fork is not concerned"
    over = replace(
        fork,
        actions=tuple(step.action for step in episode.steps),
        observations=tuple(step.observation for step in episode.steps),
    )
    (late,) = endings(ALFWORLD, over)
    assert "over before the state" in late.differs


def test_more_processes_find_the_same(household):
    games, played = household
    forks = [
        fork_at(games, episode, number, step.action, "look")
        for episode in played
        for number, step in enumerate(episode.steps)
    ]
    assert endings(ALFWORLD, *forks, workers=2) == endings(ALFWORLD, *forks)


class Stubborn(World):
    """A world whose expert cannot go on from elsewhere."""

    name, domains, agents = "stubborn", {"task": "in_domain"}, ("expert",)

    def games(self, root, split, left_out=None):
        return []

    def make_env(self, max_steps, games_kept=None):
        return Room

    def agent(self, name, seed, settings):
        return object()


class Room:
    def reset(self, game):
        return "leave", Observation("A room.", None, False, False)

    def step(self, action):
        return Observation("A room.", None, False, False)

    def close(self):
        pass


def test_an_expert_that_cannot_go_on_is_refused_in_words():
    fork = Fork(Game("g", "", "train", "task"), "leave", (), ("A room.",), ("look",))
    with pytest.raises(UsageError, match="expert of world 'stubborn' cannot go on"):
        endings(Stubborn(), fork)
