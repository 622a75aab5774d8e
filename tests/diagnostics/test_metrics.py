"""D1, D2, D3 and revision, counted from records whose counts are known by hand."""

import json

import pytest

from cotjax.diagnostics import statistics
from cotjax.diagnostics.episodes import count_records
from cotjax.diagnostics.metrics import METRICS, contrast, contrast_p, points
from cotjax.errors import DataError
from cotjax.rollout.record import read_record


def point_of(run, arm="sft", checkpoint=10, domain="in_domain"):
    return points(count_records(run / "records"))[arm, checkpoint, domain]


def value(point, metric):
    estimate = point.estimate(metric)
    return None if estimate.value is None else pytest.approx(estimate.value)


def test_expert_states(tmp_path, episode):
    steps = [
        # Both right, after whitespace is normalised.
        ("open  fridge 1", "open fridge 1", "open fridge 1"),
        # Only the CoT action right; only the prompt action right.
        ("open fridge 1", "look", "open fridge 1"),
        ("look", "open fridge 1", "open fridge 1"),
        # Both wrong: different, the same.
        ("look", "go", "open fridge 1"),
        ("look", "look", "open fridge 1"),
        # Not comparable: a response is invalid.
        (None, None, "open fridge 1"),
        ("open fridge 1", None, "open fridge 1"),
    ]
    episode(tmp_path, "g", steps, driver="reference")
    point = point_of(tmp_path)
    assert point.estimate("d1_cot").n == 7
    assert point.estimate("d1_cot").games == 1
    assert {m: value(point, m) for m in ("d1_cot", "d1_prompt", "d2", "revision")} == {
        "d1_cot": 3 / 7,
        "d1_prompt": 2 / 7,
        "d2": 2 / 5,
        "revision": 3 / 5,
    }
    kinds = ("helpful", "harmful", "neutral", "not_comparable")
    assert {m: value(point, f"revision_{m}") for m in kinds} == {
        "helpful": 1 / 5,
        "harmful": 1 / 5,
        "neutral": 1 / 5,
        "not_comparable": 2 / 7,
    }
    assert value(point, "d3_cot") is None  # nothing was played


def with_choices(path, choices, instructed=None):
    """Add to each turn ((by total, by mean) of CoT, the same of prompt) and instructed actions."""
    record = json.loads(path.read_text())
    commands = ["look", "open fridge 1"]
    for turn, both in zip(record["steps"], choices, strict=True):
        turn["admissible_commands"] = commands
        for kind, (total, mean) in zip(
            ("cot_constrained", "prompt_constrained"), both, strict=True
        ):
            turn[kind] = {
                "action": total,
                "by_total": total,
                "by_mean": mean,
                "logprobs": [-1.0, -2.0],
                "tokens": [2, 4],
                "prefix_ids": [1],
                "ids": [2],
            }
        turn["instructed"] = turn["prompt"] | (instructed or {})
    path.write_text(json.dumps(record))
    return path


def test_constrained_and_instructed_actions_on_expert_states(tmp_path, episode):
    steps = [("open fridge 1", None, "open fridge 1")] * 4
    path = episode(tmp_path, "g", steps, driver="reference")
    right, wrong = ("open fridge 1", "look"), ("look", "open fridge 1")
    choices = [(right, wrong), (right, right), (wrong, wrong), ((None, None), (None, None))]
    with_choices(path, choices, {"action": "fly", "valid": True, "thought": "i fly."})
    point = point_of(tmp_path)
    expected = {
        "d1_cot": 1.0,
        "d1_prompt": 0.0,
        "d1_instructed": 0.0,
        "d1_cot_constrained": 2 / 4,
        "d1_prompt_constrained": 1 / 4,
        "d1_gap_constrained": 1 / 4,
        "d1_cot_constrained_mean": 1 / 4,
        "d1_prompt_constrained_mean": 2 / 4,
        "d2_constrained": 2 / 4,  # no action equals nothing
        "valid_cot_states": 1.0,
        "valid_prompt_states": 0.0,
        "valid_instructed_states": 1.0,
        "admissible_cot_states": 1.0,
        "admissible_prompt_states": 0.0,
        "admissible_instructed_states": 0.0,
        "reasoned_instructed_states": 1.0,
        "d3_prompt_constrained": None,
    }
    assert {metric: value(point, metric) for metric in expected} == expected


def test_a_kind_that_was_not_decoded_is_not_measured(tmp_path, episode):
    path = episode(tmp_path, "g", [("look", "look", "look")], driver="reference")
    record = json.loads(path.read_text())
    record["steps"][0]["cot"] = None
    path.write_text(json.dumps(record))
    point = point_of(tmp_path)
    assert value(point, "d1_prompt") == 1.0
    for metric in ("d1_cot", "d2", "revision", "d1_gap", "d1_prompt_constrained", "d2_constrained"):
        assert point.estimate(metric).value is None, metric


def test_episodes_of_other_drivers(tmp_path, episode):
    for i in range(4):
        for driver, wins in (("cot_constrained", 3), ("prompt_constrained", 1), ("instructed", 2)):
            path = episode(
                tmp_path, f"g{i}", [("look", "look")] * 2, driver="cot", success=i < wins
            )
            record = json.loads(path.read_text()) | {"driver": driver}
            record["steps"][0]["accepted"] = False
            path.unlink()
            target = path.parents[1] / driver / path.name
            target.parent.mkdir(exist_ok=True)
            target.write_text(json.dumps(record))
            with_choices(target, [(("look", "look"),) * 2] * 2)
    point = point_of(tmp_path)
    expected = {
        "d3_cot_constrained": 3 / 4,
        "d3_prompt_constrained": 1 / 4,
        "gap_constrained": 2 / 4,
        "d3_instructed": 2 / 4,
        "valid_instructed": 1.0,
        "admissible_instructed": 1.0,
        "reasoned_instructed": 0.0,
        "new_tokens_instructed": 4,
        "steps_cot_constrained": 2,
        "steps_prompt_constrained": 2,
        "steps_instructed": 2,
        "not_accepted_cot_constrained": 1 / 2,
        "not_accepted_prompt_constrained": 1 / 2,
        "not_accepted_instructed": 1 / 2,
        "d3_cot": None,
        "valid_cot": None,
        "d2_cot_driven": None,
    }
    assert {metric: value(point, metric) for metric in expected} == expected
    assert set(point.cells) <= METRICS.keys()


def test_an_action_in_an_invalid_response_does_not_count(tmp_path, episode):
    path = episode(tmp_path, "g", [("look", "look", "look")], driver="reference")
    record = json.loads(path.read_text())
    record["steps"][0]["cot"]["valid"] = False
    path.write_text(json.dumps(record))
    point = point_of(tmp_path)
    assert (
        value(point, "d1_cot"),
        value(point, "d1_prompt"),
        value(point, "revision_harmful"),
        value(point, "revision_not_comparable"),
    ) == (0, 1, None, 1)


def test_helpful_minus_harmful_is_the_gap_of_d1(study):
    for point in points(count_records(study / "records")).values():
        helpful, harmful = (
            point.estimate("revision_helpful").value,
            point.estimate("revision_harmful").value,
        )
        assert point.estimate("d1_gap").value == pytest.approx(helpful - harmful)
        assert point.estimate("d2").value == pytest.approx(1 - point.estimate("revision").value)


def test_played_episodes(tmp_path, episode):
    for i in range(10):
        episode(
            tmp_path,
            f"g{i}",
            [("look", "look"), ("nothing", "look"), ("fly", "fly"), (None, "look")],
            success=i < 6,
            thought="I go." if i else None,
        )
        episode(tmp_path, f"g{i}", [("", "look"), ("", "nothing")], driver="prompt", success=i < 3)
    point = point_of(tmp_path)
    expected = {
        "d3_cot": 0.6,
        "d3_prompt": 0.3,
        "gap": 0.3,
        "d2_cot_driven": 2 / 3,
        "revision_cot_driven": 1 / 3,
        "revision_not_comparable_cot_driven": 1 / 4,
        "reasoned_cot": 0.9,
        "valid_cot": 3 / 4,
        "valid_prompt": 1.0,
        "admissible_cot": 2 / 4,
        "not_accepted_cot": 1 / 3,
        "not_accepted_prompt": 1 / 2,
        "steps_cot": 4,
        "steps_prompt": 2,
        "new_tokens_cot": 20,
        "new_tokens_prompt": 4,
    }
    assert {metric: value(point, metric) for metric in expected} == expected
    assert contrast_p([(1, point, "gap")]) == pytest.approx(2 * 0.5**3)
    assert point.estimate("gap").games == 10
    assert value(point, "d1_cot") is None  # no expert states


def test_an_invalid_response_has_no_admissible_action_whatever_its_record_says(tmp_path, episode):
    path = episode(tmp_path, "g", [("look", "look"), (None, "look")])
    record = json.loads(path.read_text())
    record["steps"][1]["cot"]["admissible"] = True
    path.write_text(json.dumps(record))
    assert value(point_of(tmp_path), "admissible_cot") == 1 / 2


def test_means_have_the_limits_of_the_elicitation_as_their_ends(tmp_path, episode):
    """A state on each limit is in the interval, even where all games agree."""
    for i in range(6):
        episode(tmp_path, f"g{i}", [("look", "look")] * 3)
    point = point_of(tmp_path)
    for metric, average, states, limit in (("steps_cot", 3, 1, 30), ("new_tokens_cot", 20, 3, 64)):
        expected = statistics.mean([average * states] * 6, [states] * 6, limit)
        assert point.estimate(metric) == expected
        assert limit > expected.high > average


def test_actions_of_states_without_a_list_of_commands_are_in_no_share_of_admissible_ones(
    tmp_path, episode
):
    path = episode(tmp_path, "g", [("look", "look"), ("look", "look"), ("fly", "fly")])
    record = json.loads(path.read_text())
    record["steps"][0]["cot"]["admissible"] = None
    path.write_text(json.dumps(record))
    point = point_of(tmp_path)
    assert (point.estimate("admissible_cot").n, point.estimate("valid_cot").n) == (2, 3)
    assert value(point, "admissible_cot") == 1 / 2


def test_a_choice_needs_a_score_for_each_action(tmp_path, episode):
    path = episode(tmp_path, "g", [("look", "look", "look")], driver="reference")
    with_choices(path, [(("look", "look"),) * 2])
    record = json.loads(path.read_text())
    record["steps"][0]["cot_constrained"]["tokens"] = [2]
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"steps\[0\]\.cot_constrained does not have one score for"):
        read_record(path)


def test_an_experts_episode_needs_both_actions_and_the_experts(tmp_path, episode):
    path = episode(tmp_path, "g", [("look", "look", "look")] * 2, driver="reference")
    record = json.loads(path.read_text())
    for name in ("cot", "prompt", "reference"):
        steps = [record["steps"][0], record["steps"][1] | {name: None}]
        path.write_text(json.dumps(record | {"steps": steps}))
        with pytest.raises(DataError, match=rf"steps\[1\]\.{name} is null"):
            read_record(path)


def test_an_episode_that_the_environment_broke_counts_nowhere(tmp_path, episode):
    episode(tmp_path, "a", success=True)
    episode(tmp_path, "b", success=False)
    episode(tmp_path, "c", [("look", "go")] * 4, success=False, ended="env_error")
    episode(tmp_path, "a", driver="prompt", success=True)
    episode(tmp_path, "b", driver="prompt", success=False, ended="env_error")
    episode(tmp_path, "c", driver="prompt", success=False)
    point = point_of(tmp_path)
    assert (value(point, "d3_cot"), point.estimate("d3_cot").n) == (0.5, 2)
    assert (value(point, "d2_cot_driven"), point.estimate("d2_cot_driven").n) == (1.0, 2)
    assert point.ended["cot"]["env_error"] == point.ended["prompt"]["env_error"] == 1
    assert (point.estimate("gap").value, point.estimate("gap").games) == (
        0.0,
        1,
    )  # only game a was played both ways


def test_outgrowing_the_context_is_a_failure(tmp_path, episode):
    episode(tmp_path, "a", success=False, ended="length")
    assert value(point_of(tmp_path), "d3_cot") == 0.0


def test_a_change_pairs_the_games(tmp_path, episode):
    for i in range(20):
        episode(tmp_path, f"g{i}", checkpoint=0, success=i < 5)
        episode(tmp_path, f"g{i}", checkpoint=10, success=i < 15)
    episode(tmp_path, "only at the end", checkpoint=10, success=True)
    found = points(count_records(tmp_path / "records"))
    signed = [
        (1, found["sft", 10, "in_domain"], "d3_cot"),
        (-1, found["sft", 0, "in_domain"], "d3_cot"),
    ]
    change = contrast(signed)
    assert (change.value, change.games) == (0.5, 20)
    assert change.low > 0.2
    assert contrast_p(signed) == pytest.approx(2 * 0.5**10)


def test_seeds_of_a_game_are_one_game(tmp_path, episode):
    for seed in range(3):
        episode(tmp_path, "g", success=seed == 0, seed=seed)
    estimate = point_of(tmp_path).estimate("d3_cot")
    assert (estimate.value, estimate.n, estimate.games) == (pytest.approx(1 / 3), 3, 1)


def test_samples_of_a_game_are_one_game_and_are_paired_by_their_number(tmp_path, episode):
    """The second sample of game g broke under one driver, so it counts for neither."""
    for driver, wins in (
        ("cot", {"g": [True, False, True], "h": [True]}),
        ("prompt", {"g": [False, True, False], "h": [True]}),
    ):
        for game, won in wins.items():
            for sample, success in enumerate(won):
                broke = (driver, game, sample) == ("prompt", "g", 1)
                episode(
                    tmp_path,
                    game,
                    driver=driver,
                    success=success and not broke,
                    ended="env_error" if broke else None,
                    sample=sample,
                )
    point = point_of(tmp_path)
    assert (point.estimate("d3_cot").games, point.estimate("d3_cot").n) == (2, 4)
    gap = point.estimate("gap")
    assert (gap.games, gap.n, gap.value) == (
        2,
        3,
        pytest.approx(2 / 3),
    )  # samples 0 and 2 of g: 2 of 2 against 0; h: 1 against 1


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(DataError, match=r"records: no such folder.*cotjax evaluate"):
        count_records(tmp_path / "records")
    (tmp_path / "records").mkdir()
    with pytest.raises(DataError, match=r"records: holds no episode record.*cotjax evaluate"):
        count_records(tmp_path / "records")


def test_a_record_cut_short_is_named(tmp_path, episode):
    path = episode(tmp_path, "g")
    path.write_text(path.read_text()[:200])
    with pytest.raises(DataError) as caught:
        count_records(tmp_path / "records")
    assert str(path) in str(caught.value)
    assert "evaluate again" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.pop("success"), "lacks the field success"),
        (lambda r: r.update(seed="0"), "seed is '0'"),
        (lambda r: r.update(seed=True), "seed is True"),
        (lambda r: r.update(driver="human"), "driver is 'human'"),
        (lambda r: r.update(ended="bored"), "ended is 'bored'"),
        (lambda r: r.pop("arm"), "lacks the field arm"),
        (lambda r: r["game"].pop("id"), "lacks the field game.id"),
        (lambda r: r["steps"][0].pop("executed"), "lacks the field steps[0].executed"),
        (lambda r: r["steps"][0].update(cot=None), "steps[0].cot is null"),
        (lambda r: r["steps"][0]["prompt"].pop("valid"), "lacks the field steps[0].prompt.valid"),
        (lambda r: r["steps"][0]["cot"]["ids"].append("1"), "steps[0].cot.ids[20] is '1'"),
        (
            lambda r: r["steps"][0]["cot"].update(logprob=float("nan")),
            "steps[0].cot.logprob is nan",
        ),
        (lambda r: r.update(steps=[3]), "steps[0] is 3"),
        (lambda r: r.update(schema_version=99), "schema_version is 99"),
    ],
)
def test_a_broken_record_says_where(tmp_path, episode, change, said):
    path = episode(tmp_path, "g")
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(DataError) as caught:
        read_record(path)
    assert said in str(caught.value) and path.name in str(caught.value)


def test_the_same_episode_twice_is_an_error(tmp_path, episode):
    path = episode(tmp_path, "g")
    path.with_name("copy.json").write_text(path.read_text())
    with pytest.raises(DataError, match="same game, sample and seed"):
        count_records(tmp_path / "records")
