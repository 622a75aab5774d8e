"""The report of AutoCoA's stages, from episodes whose figures are known beforehand."""

import json
from pathlib import Path

import pytest
from helpers.studies import response

from cotjax.check.main import check
from cotjax.diagnostics.aligned import (
    ATTENTION,
    GRADIENT,
    UNIFORM,
    Aligned,
    Side,
    write_aligned,
)
from cotjax.diagnostics.searches import difference, judged
from cotjax.envs.search_qa.env import SearchQaEnv
from cotjax.envs.search_qa.figures import Perfect
from cotjax.envs.search_qa.library import read_lines
from cotjax.envs.worlds import AgentSettings, load_world
from cotjax.errors import DataError
from cotjax.report.autocoa import ABOUT, ALIGNED, PAPER, summarize
from cotjax.report.autocoa_figure import facets, write_figure
from cotjax.report.autocoa_page import make_report
from cotjax.rollout.record import Heading, Record, Timing, Turn, record_path, write_record

WORLD = load_world("search_qa")
HEADING = Heading(
    world="search_qa",
    arm="few",
    training_seed=None,
    checkpoint=4,
    checkpoint_hash="c",
    games_hash="g",
    domain="in_domain",
)


def played(game, agent, heading, at_once="answer: nobody", spoil=lambda text: text):
    """Return the record of a scripted agent, which a perfect retriever answers.

    `at_once`: the prompt action in the first state. `spoil`: what is shown of results.
    """
    env, agent = SearchQaEnv(30, Perfect), WORLD.agent(agent, 0, AgentSettings(game=game))
    task, seen = env.reset(game)
    agent.start(task, seen)
    turns = []
    while not seen.done:
        decision, before = agent.act(seen), spoil(seen.text)
        seen = env.step(decision.action)
        turns.append(
            Turn(
                observation=before,
                admissible_commands=None,
                prompt_ids=(1,),
                prompt_length=1,
                cot=response(decision.action, decision.thought, 3),
                prompt=response(at_once, None, 2),
                reference=None,
                executed=decision.action,
                accepted=seen.accepted,
                score=seen.score,
            )
        )
    return Record(
        **dict(heading),
        driver="cot",
        game={"id": game.id, "task_type": game.task_type, "split": game.split},
        seed=0,
        sample=0,
        task=task,
        success=seen.won,
        score=seen.score,
        ended="won" if seen.won else "step_limit",
        env_error=None,
        env_faults=(),
        elicitation={},
        steps=tuple(turns),
        final_observation=seen.text,
        timing=Timing(environment_s=0.0, waited_s=0.0, sampler_s=0.0, total_s=0.0),
    )


def write(folder, record):
    path = record_path(
        folder,
        arm=record.arm,
        checkpoint=record.checkpoint,
        driver=record.driver,
        game_id=record.game.id,
    )
    write_record(path, record)


def arm(name, stage, step, minus=None, paper=""):
    about = {"name": name, "label": f"arm {name}", "stage": stage, "step": step}
    return about | {"minus": minus, "paper": paper}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two arms: one guesses what it does not know, the other searches for it."""
    folder = tmp_path_factory.mktemp("run")
    games = WORLD.make_games(folder / "games", {"test": {"one_hop": 12, "two_hops": 6}}, 0)
    after = HEADING.model_copy(update={"arm": "rl", "checkpoint": 8})
    for game in games:
        answer = played(game, "recaller", after).steps[-1].executed
        write(folder / "records", played(game, "guesser", HEADING, at_once="answer: nobody"))
        write(folder / "records", played(game, "recaller", after, at_once=answer))
        # A world model that answers every search with nothing.
        write(folder / "simulated", played(game, "guesser", after, spoil=lambda text: text[:9]))
    stage = {
        "label": "",
        "lesson": "play",
        "start": None,
        "supervised": [],
        "steps": 8,
        "simulated_steps": 4,
        "learning_rate": 1e-3,
        "checkpoint": "0123456789abcdef",
        "closed_book": None,
    }
    about = {
        "title": "a <run>",
        "world": "search_qa",
        "games": "games",
        "games_hash": "g",
        "sources": ["records", "simulated"],
        "samples": 0,
        "arms": [arm("few", "few", 4), arm("rl2", "rl", 8, "few", "RL-2")],
        "stages": [{"name": "rl", **stage}],
    }
    (folder / ABOUT).write_text(json.dumps(about))
    return folder, games


def known_share(games):
    """Share of the questions whose facts are all known."""
    lines = [line for _, line in read_lines(Path(games[0].path))]
    return sum(all(fact[2] for fact in line["facts"]) for line in lines) / len(lines)


def test_the_figures_are_those_of_the_policies(run):
    folder, games = run
    summary = summarize(folder)
    few, rl = (summary.row(name, "records").figures for name in ("few", "rl2"))
    known = known_share(games)
    assert few["exact"].value == pytest.approx(known, abs=1e-9) and rl["exact"].value == 1
    assert few["searches"].value == 0 and rl["searches"].value == rl["oracle"].value
    assert rl["precision"].value == rl["recall"].value == 1 and few["recall"].value == 0
    (change,) = summary.changes
    assert (change.arm, change.minus) == ("rl2", "few")
    assert change.figures["exact"].value == pytest.approx(1 - known)
    assert change.figures["searches"].value == pytest.approx(rl["searches"].value)
    assert change.figures["exact"].games == len(games)
    assert summary.sim_to_real["rl2"].value == pytest.approx(known - 1)
    assert set(summary.groups("hops")) >= {"1", "2"}
    one = summary.row("rl2", "records", "task_type", "one_hop").figures["searches"].value
    assert one < summary.row("rl2", "records", "task_type", "two_hops").figures["searches"].value


def test_answers_at_once_are_held_against_answers_at_the_end(run):
    summary = summarize(run[0])
    controls = {(c.arm, c.hops, c.known): c.figures for c in summary.at_once}
    for (name, _, known), own in controls.items():
        assert own["prompt"].value == own["same"].value == (1 if name == "rl2" else 0)
        assert own["cot"].value == (1 if name == "rl2" or known else 0)
    assert controls["few", "one hop", True]["gap"].value == 1


def test_the_page_and_the_text_say_what_the_records_say(run, capsys):
    folder, _ = run
    text = make_report(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "a &lt;run&gt;" in page and "<run>" not in page
    for heading in ("What each stage did", "Beside the paper", "By hops and by split"):
        assert heading in page and heading in text
    exact, judge = PAPER["RL-2"]
    assert f"{exact:.1f}" in page and f"{judge:.1f}" in page and "4 simulated, 4 real" in page
    assert make_report(folder) == text and "http" not in page
    # Recomputed by other code, and found out where a number is changed.
    assert check(folder, print)
    assert "none differ" in capsys.readouterr().out
    file = folder / "searches.json"
    values = json.loads(file.read_text())
    values["changes"][0]["figures"]["exact"]["value"] += 0.01
    file.write_text(json.dumps(values))
    assert not check(folder, print)
    assert "DIFFERS rl2 minus few, exact" in capsys.readouterr().out


def test_records_of_other_questions_are_refused(run, tmp_path):
    folder, _ = run
    about = json.loads((folder / ABOUT).read_text()) | {"games_hash": "other"}
    (tmp_path / ABOUT).write_text(json.dumps(about))
    for source in about["sources"]:
        (tmp_path / source).symlink_to(folder / source)
    with pytest.raises(DataError, match="was played among other questions; delete the folder"):
        summarize(tmp_path)


def test_a_difference_is_on_the_questions_of_both(run):
    _, games = run
    by_id = {(game.split, game.id): game for game in games}
    ours = judged([played(game, "recaller", HEADING) for game in games[:6]], WORLD, by_id)
    theirs = judged([played(game, "guesser", HEADING) for game in games[3:9]], WORLD, by_id)
    found = difference(ours, theirs, "searches")
    assert found.games == 3
    assert found.value == pytest.approx(sum(each.counts.searches for each in ours[3:]) / 3)


def test_the_figure_has_every_arm_and_the_same_bytes(run, tmp_path):
    summary = summarize(run[0])
    shown = facets(summary)
    assert [each.title for each in shown] == [
        "Exact match, %",
        "Searches an episode",
        "Triggering, %",
    ]
    # The first arm never searches, so nothing is said of its precision; the second is right.
    assert "arm few: precision –, recall 0 [0" in shown[2].alt
    assert "arm rl2: exact match 100 [" in shown[0].alt
    assert shown[1].label == "Searches an episode: ● made, │ the oracle's"
    for each in shown:
        assert (
            each.svg.startswith("<svg") and "currentColor" in each.svg and "#0067a3" not in each.svg
        )
    paths = [write_figure(summary, tmp_path / name) for name in ("one", "two")]
    for ours, theirs in zip(*paths, strict=True):
        assert ours.read_bytes() == theirs.read_bytes() and ours.stat().st_size < 120_000
    assert [path.suffix for path in paths[0]] == [".png", ".svg"]
    make_report(run[0])
    page = (run[0] / "report.html").read_text(encoding="utf-8")
    assert page.count('<figure role="img"') == page.count("<svg") == 3


def test_what_is_done_in_the_experts_states_is_shown(run):
    folder, _ = run
    side = Side("answer: Ma Ti", same=True, kind=True, good=True)
    wrong = Side("", same=False, kind=False, good=False)
    shares = {key: {"task": 0.75, "reasoning": 0.25} for key in (ATTENTION, GRADIENT, UNIFORM)}
    states = [
        Aligned(f"g{n}", 0, n % 2 == 0, "answer: Ma Ti", side, wrong, False, shares)
        for n in range(8)
    ]
    write_aligned(folder / ALIGNED / "few-4.jsonl", "c", states)
    summary = summarize(folder)
    assert [(each.arm, each.searches) for each in summary.aligned] == [
        ("few", True),
        ("few", False),
    ]
    for each in summary.aligned:
        assert each.figures["d1_gap"].value == each.figures["d4_gap"].value == 1
    text = make_report(folder)
    assert "In the expert's states (D1, D2, D4, D6, D7)" in text and "searches" in text
    assert "75.0 [" in (folder / "report.html").read_text(encoding="utf-8")
    (folder / ALIGNED / "few-4.jsonl").unlink()


def test_runs_of_several_seeds_are_one_report(run, tmp_path, capsys):
    folder, games = run
    for seed in (0, 1):
        (tmp_path / "seeds" / str(seed)).mkdir(parents=True)
        for source in ("records", "simulated"):
            # Under the second seed the arm that searches is one that guesses.
            before = folder / source
            if seed and source == "records":
                after = HEADING.model_copy(update={"arm": "rl", "checkpoint": 8})
                before = tmp_path / "guessed"
                for game in games:
                    write(before, played(game, "guesser", HEADING))
                    write(before, played(game, "guesser", after))
            (tmp_path / "seeds" / str(seed) / source).symlink_to(before)
    (tmp_path / "games").symlink_to(folder / "games")
    about = json.loads((folder / ABOUT).read_text()) | {"seeds": [0, 1]}
    (tmp_path / ABOUT).write_text(json.dumps(about))
    known, summary = known_share(games), summarize(tmp_path)
    few, rl = (summary.row(name, "records").figures["exact"] for name in ("few", "rl2"))
    assert few.value == pytest.approx(known) and rl.value == pytest.approx((1 + known) / 2)
    assert (rl.seeds, rl.games, rl.n) == (2, len(games), 2 * len(games))
    # Seeds that differ say less than a seed alone.
    alone = summarize(folder).row("rl2", "records").figures["exact"]
    assert rl.high - rl.low > alone.high - alone.low
    assert summary.changes[0].figures["exact"].value == pytest.approx((1 - known) / 2)
    make_report(tmp_path)
    assert check(tmp_path, print) and "none differ" in capsys.readouterr().out
