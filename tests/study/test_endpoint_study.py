"""`cotjax evaluate --endpoint`: the loop, records and report of any model, played elsewhere."""

import json

import pytest
from helpers.endpoints import serving

from cotjax.cli.main import main
from cotjax.envs.alfworld.maker.make import make_games
from cotjax.rollout.record import read_records

TASK = "pick_and_place_simple"


@pytest.fixture(scope="module")
def games(tmp_path_factory):
    folder = tmp_path_factory.mktemp("games")
    make_games(folder, {"valid_unseen": {TASK: 3}}, 0)
    return folder


def explorer(messages, begun):
    """Goes to the places that it was told of, one after another; a prompt action looks."""
    if "Copy this line" in messages[0]["content"]:
        return messages[0]["content"].partition(": ")[2][len(begun) :]
    if begun:
        return " look </action>"
    turn = sum(message["role"] == "assistant" for message in messages)
    seen = messages[0]["content"].partition("you see ")[2].partition(".")[0]
    places = [place.strip().removeprefix("and ")[2:] for place in seen.split(",")]
    return f"<think> {places[turn % len(places)]} is next. </think><action> go to " + (
        f"{places[turn % len(places)]} </action>"
    )


def evaluate(endpoint, games, run, *more):
    where = "--games", str(games), "--out", str(run)
    short = "--config.evaluate.max_steps=4", "--config.workers=0", "--config.task_types.ood=()"
    model = "--endpoint", endpoint.url, "--model", "org/m 1"
    return main(["evaluate", *model, *where, *short, *more])


def test_an_endpoint_s_model_is_played_recorded_and_reported(games, tmp_path, capsys):
    run = tmp_path / "run"
    with serving(answer=explorer) as endpoint:
        assert evaluate(endpoint, games, run) == 0
        asked = len(endpoint.requests)
        records = {
            (each.driver, each.game.id): each.model_dump(exclude={"timing"})
            for each in read_records(run / "records")
        }
        assert len(records) == 9 and {driver for driver, _ in records} == {
            "cot",
            "prompt",
            "reference",
        }
        for record in records.values():
            for step in record["steps"]:
                for kind in ("cot", "prompt"):
                    response = step[kind]
                    assert response is None or response["valid"]
                    assert response is None or response["new_tokens"] == 7
        played = [step["executed"] for step in records["cot", min(records)[1]]["steps"]]
        assert all(action.startswith("go to ") for action in played)
        summary = json.loads((run / "summary.json").read_text())
        (valid,) = {point["metrics"]["valid_prompt_states"]["value"] for point in summary["points"]}
        assert valid == 1.0
        about = json.loads((run / "run.json").read_text())
        assert about["model"] == {
            "base": f"org/m 1 at {endpoint.url}",
            "continues_responses": True,
        }
        assert "[user]\nYour task is to" in about["prompt"]["text"]
        page = (run / "report.html").read_text()
        assert f"org/m 1 at {endpoint.url}" in page
        # Played again after its records are lost, it asks for nothing: all answers are kept.
        for file in (run / "records").rglob("*.json"):
            file.unlink()
        assert evaluate(endpoint, games, run) == 0
        assert len(endpoint.requests) == asked
        again = {
            (each.driver, each.game.id): each.model_dump(exclude={"timing"})
            for each in read_records(run / "records")
        }
    assert again == records


def test_prompt_actions_that_are_not_available_are_said_to_be(games, tmp_path, capsys):
    run = tmp_path / "run"
    with serving(answer=explorer, continues="") as endpoint:
        assert evaluate(endpoint, games, run) == 0
        assert "prompt actions are not available" in capsys.readouterr().out
        assert {each.driver for each in read_records(run / "records")} == {"cot", "reference"}
        assert "does not go on with a response" in (run / "report.html").read_text()
        assert evaluate(endpoint, games, tmp_path / "other", "--kinds", "prompt") == 2
    assert "play 'cot' or 'instructed'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--kinds", "cot_constrained"], "leave 'cot_constrained' out"),
        (["--config.evaluate.top_k=5"], "evaluate.top_k is 5"),
        (["--config.prompt.system=template"], "chat template is not known here"),
        (["--split", "nowhere"], "no split 'nowhere'"),
    ],
)
def test_what_an_endpoint_cannot_do_is_refused_before_it_is_asked(
    games, tmp_path, capsys, more, words
):
    with serving() as endpoint:
        assert evaluate(endpoint, games, tmp_path / "run", *more) == 2
        assert endpoint.requests == []
    assert words in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_another_model_in_the_same_folder_is_refused_and_probes_are_said_to_be_left_out(
    games, tmp_path, capsys
):
    run = tmp_path / "run"
    kinds = ("--kinds", "cot")
    with serving(answer=explorer) as endpoint:
        assert evaluate(endpoint, games, run, *kinds, "--config.probes.names=attention") == 0
        assert "probes.names (attention) has no effect" in (run / "log.txt").read_text()
        assert evaluate(endpoint, games, run, *kinds, "--model", "m2") == 2
    assert "holds another run" in capsys.readouterr().err
