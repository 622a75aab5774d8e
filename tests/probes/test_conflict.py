"""D5 recovers the rate at which a policy follows traces, and says where there is none to follow."""

import re

import pytest
from helpers import tiny
from helpers.traces import Said, TextPolicy, checkpoint, estimates, write_states

from cotjax.diagnostics.conflict import CONTROLS, VARIANTS, ConflictRow, outcome_of
from cotjax.diagnostics.probe_rows import read_probe
from cotjax.errors import UsageError
from cotjax.probes import conflict
from cotjax.probes.conflict import ConflictProbe
from cotjax.probes.measuring import measure, probe_path
from cotjax.probes.probe import states_of

GAMES, STATES, PLACES = 48, 3, 8
NUMBERS = " ".join(map(str, range(GAMES * STATES * 2)))
WORDS = (
    *("Your task is to: put a plate in fridge. You see a plate 1. state case heat need saw it",),
    *(NUMBERS, "i know case that. then comes cabinet 1, so next i go to cabinet 2. look fly open",),
)  # fmt: skip
COMMANDS = (*(f"go to cabinet {n}" for n in range(1, PLACES)), "look")
GOLDEN = 0.6180339887
PLANTED = {"follow": 0.35, "keep": 0.35, "third": 0.2, "invalid": 0.1}


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return tiny.word_codec(tmp_path_factory.mktemp("words"), WORDS)


@pytest.fixture(scope="module")
def run(tmp_path_factory, codec):
    """Games of two task types. A thought begins with its own number, and ends in its action."""
    folder = tmp_path_factory.mktemp("run")
    for game in range(GAMES):
        states = []
        for turn in range(STATES):
            number = game * STATES + turn
            place = 1 + (number * 5 + game) % (PLACES - 1)
            # Every second prompt action is the CoT action.
            prompt = f"go to cabinet {place}" if number % 2 else "look"
            thought = (
                f"i know case {number}. i need that. then comes cabinet {place}, "
                f"so next i go to cabinet {place}."
            )
            states.append(
                Said(thought, f"go to cabinet {place}", prompt, COMMANDS, f"state {number}.")
            )
        kind = "pick" if game % 3 else "heat"
        write_states(folder, codec, f"g{game}", states, task_type=kind)
    return folder


def follower(rates, run, codec, *, hidden=True):
    """Return a policy that follows a trace at these rates, and else keeps the own action.

    `rates`: (follow, third, invalid). `hidden`: it also knows what a trace is about that does not
    say it, by its number; else it follows only what is said.
    """
    own = {}
    for state in states_of(checkpoint(run, codec, None).records("reference")):
        own[re.search(r"case (\d+)", state.turn.cot.thought)[1]] = state.turn.cot.action

    def rule(prompt, prefix):
        number = re.findall(r"state (\d+)", prompt)[-1]
        mine = own[number]
        case = re.search(r"case (\d+) \.|case (\d+)\.", prefix)
        said = re.search(r"go to cabinet (\d+)", prefix)
        told = None
        if said:
            told = f"go to cabinet {said[1]}"
        elif case and hidden:
            told = own[case[1] or case[2]]
        if told is None or told == mine:
            return f"{mine} </action>"
        luck = int(number) * GOLDEN % 1  # spread evenly, so that the rates are the planted ones
        follow, third, invalid = rates
        if luck < follow:
            return f"{told} </action>"
        if luck < follow + third:
            return "fly </action>"
        return "<think> fly" if luck < follow + third + invalid else f"{mine} </action>"

    return TextPolicy(codec, rule, slots=7)


def measured(at):
    probe = ConflictProbe()
    return list(probe.measure(probe.states(at), at))


def holds(estimate, rate):
    return estimate.low <= rate <= estimate.high


@pytest.fixture(scope="module")
def recovered(run, codec):
    """The rows of a policy that follows 35 %, takes a third action in 20 %, is invalid in 10 %."""
    at = checkpoint(run, codec, follower((0.35, 0.2, 0.1), run, codec))
    return measured(at)


def test_the_planted_rates_are_recovered(recovered):
    found = estimates("conflict", recovered)
    assert len(recovered) == GAMES * STATES
    for variant in VARIANTS:
        for outcome, planted in {
            "follow": 0.35,
            "keep": 0.35,
            "third": 0.2,
            "invalid": 0.1,
        }.items():
            estimate = found[f"conflict_{outcome}_{variant}"]
            assert holds(estimate, planted), (variant, outcome, estimate)
            assert 0 < estimate.high - estimate.low < 0.3
        assert holds(found[f"conflict_effect_{variant}"], 0.35)
        assert found[f"conflict_effect_{variant}"].sign == 1
        assert found[f"conflict_fits_{variant}"].value == 1.0
        assert found[f"conflict_follow_own_{variant}"].value == 0.0
        assert found[f"conflict_keep_own_{variant}"].value == 1.0
        # It keeps its action as often where that is its prompt action.
        for kind in ("anchored", "revised"):
            assert holds(found[f"conflict_keep_{variant}_{kind}"], 0.35)
            assert found[f"conflict_keep_{variant}_{kind}"].n == GAMES * STATES / 2
    assert found["conflict_keep_same_other"].value == 1.0
    assert found["conflict_keep_empty_cut"].value == 1.0


def test_what_is_forced_is_what_the_variant_says(recovered):
    for row in recovered:
        assert row.listed and not row.missing and row.conflicts.keys() == VARIANTS.keys()
        place = row.own.split()[-1]
        for variant, each in row.conflicts.items():
            assert each.action in COMMANDS and each.action != row.own
            there = each.action.split()[-1]
            assert (f"go to cabinet {there}" in each.thought) == (variant in ("swap", "other"))
            assert (f"cabinet {there}" in each.thought) == (variant != "cut")
            if variant == "swap":
                assert (each.game, each.turn) == (row.game, row.turn)
                assert f"cabinet {place}" not in each.thought
            else:
                assert (each.game, each.turn) != (row.game, row.turn)
            for control in CONTROLS[variant]:
                trial = row.trials[f"{control}_{variant}"]
                length = 0 if control == "empty" else row.trials[variant].tokens
                assert trial.tokens == length, (variant, control)


def test_traces_come_from_the_task_type_and_irrelevant_ones_from_another(run, codec):
    policy = follower((0.0, 0.0, 0.0), run, codec)
    at = checkpoint(run, codec, policy)
    planner = conflict.Planner(at)
    kinds = {f"g{game}": "pick" if game % 3 else "heat" for game in range(GAMES)}
    for state in ConflictProbe().states(at)[:40]:
        plan = planner.plan(state)
        assert kinds[plan.conflicts["other"].game] == kinds[state.record.game.id]
        case = re.search(r"case (\d+)", plan.thoughts["irrelevant_other"])[1]
        assert kinds[f"g{int(case) // STATES}"] != kinds[state.record.game.id]
        assert plan.thoughts["irrelevant_other"].split()[-1] != plan.own.split()[-1]
        same = re.search(r"case (\d+)", plan.thoughts["same_other"])[1]
        assert plan.thoughts["same_other"].endswith(f"{plan.own}.")
        assert kinds[f"g{int(same) // STATES}"] == kinds[state.record.game.id]
        shuffled, own = (plan.thoughts[f"{name}_other"].split() for name in ("shuffled", "own"))
        assert shuffled != own and sorted(shuffled) == sorted(own)


def test_what_is_decoded_begins_with_the_record_and_ends_in_the_thought(run, codec):
    policy = follower((0.35, 0.2, 0.1), run, codec)
    at = checkpoint(run, codec, policy)
    probe = ConflictProbe()
    state = probe.states(at)[5]
    (row,) = probe.measure([state], at)
    assert policy.prompts[0] == state.prompt_ids
    forced = {tuple(ids) for prefixes, _ in policy.sampled for ids in prefixes.values()}
    for each in row.conflicts.values():
        segments = codec.reasoned(each.thought, each.action)
        trained = [i for ids, _ in segments[:4] for i in ids]  # up to <action>
        assert tuple(trained) in forced
    assert all(most == at.config.evaluate.max_action_tokens for _, most in policy.sampled)
    # Equal thoughts are decoded once: the empty one, and the own thought where it is not cut.
    assert len(forced) == sum(len(prefixes) for prefixes, _ in policy.sampled) < len(row.trials)


# ---- wrong implementations


def test_the_two_actions_the_other_way_round_are_noticed(run, codec, monkeypatch):
    monkeypatch.setattr(conflict, "outcome_of", lambda action, a1, a2: outcome_of(action, a2, a1))
    at = checkpoint(run, codec, follower((0.15, 0.0, 0.0), run, codec))
    found = estimates("conflict", measured(at))
    for variant in VARIANTS:
        assert not holds(found[f"conflict_follow_{variant}"], 0.15)
        assert found[f"conflict_effect_{variant}"].sign == -1


@pytest.mark.parametrize("wrong", [False, True])
def test_a_cut_that_leaves_the_action_in_is_noticed(run, codec, monkeypatch, wrong):
    """A policy that does what a thought says, and knows nothing of one that does not say it."""
    if wrong:
        monkeypatch.setattr(conflict, "before_things", lambda thought, action: thought)
    at = checkpoint(run, codec, follower((0.6, 0.0, 0.0), run, codec, hidden=False))
    found = estimates("conflict", measured(at))
    assert holds(found["conflict_follow_other"], 0.6)
    assert holds(found["conflict_follow_cut"], 0.6 if wrong else 0.0)
    assert holds(found["conflict_effect_cut"], 0.0) == (not wrong)


def test_a_prompt_anchored_policy_is_told_from_one_that_follows(run, codec):
    """It follows a trace only where its CoT action is not its prompt action."""
    base = follower((1.0, 0.0, 0.0), run, codec)
    prompts = {}
    for state in states_of(checkpoint(run, codec, None).records("reference")):
        prompts[re.search(r"state (\d+)", state.turn.observation)[1]] = state.turn

    def rule(prompt, prefix):
        turn = prompts[re.findall(r"state (\d+)", prompt)[-1]]
        anchored = turn.prompt.action == turn.cot.action
        return f"{turn.cot.action} </action>" if anchored else base.rule(prompt, prefix)

    found = estimates("conflict", measured(checkpoint(run, codec, TextPolicy(codec, rule))))
    assert found["conflict_keep_swap_anchored"].value == 1.0
    assert found["conflict_keep_swap_revised"].value == 0.0
    assert found["conflict_follow_swap"].value == 0.5


# ---- where there is no thought


def rows_of(tmp_path, codec, games, rule=lambda prompt, prefix: "look </action>", **settings):
    for number, (states, where) in enumerate(games):
        write_states(tmp_path, codec, f"g{number}", states, **where)
    at = checkpoint(tmp_path, codec, TextPolicy(codec, rule), **settings)
    return {(row.game, row.turn): row for row in measured(at)}


def test_states_without_a_thought_are_counted_and_not_in_the_denominator(tmp_path, codec):
    fine = "i know that. then comes cabinet 2, so next i go to cabinet 2."
    states = [
        Said(None, "look", admissible=COMMANDS),
        Said("i know that.", None, admissible=COMMANDS),
        Said("i know that.", "go to cabinet 1", admissible=COMMANDS),
        Said(fine, "go to cabinet 2", admissible=COMMANDS),
        Said(fine, "go to cabinet 2", admissible=("go to cabinet 2", "look")),
        Said("cabinet 3.", "go to cabinet 3", admissible=COMMANDS[:2]),
    ]
    rows = rows_of(tmp_path, codec, [(states, {})])
    reasons = [rows["g0", turn].missing for turn in range(6)]
    assert reasons[0] == dict.fromkeys(VARIANTS, "no_thought")
    assert reasons[1] == dict.fromkeys(VARIANTS, "invalid")
    # Its own thought names no object; the others have the action of another state.
    assert reasons[2] == {"swap": "not_named"}
    # The thought about cabinet 3 names it, and the other one has enough left: one of them is drawn.
    assert reasons[3].get("cut", reasons[3].get("other")) in ("too_short", "not_named")
    assert reasons[4] == dict.fromkeys(VARIANTS, "no_other_action")
    found = estimates("conflict", list(rows.values()))
    assert found["conflict_fits_swap"].value == pytest.approx(2 / 6)
    assert found["conflict_follow_swap"].n == 2
    assert found["conflict_third_swap"].value == 1.0


def test_an_unnamed_trace_counts_where_it_is_cut_and_nowhere_else(tmp_path, codec):
    """It led to its action, but nobody can see in it which that was."""
    states = [
        Said(f"i know that. i need it {n}.", f"go to cabinet {n + 1}", admissible=COMMANDS)
        for n in range(3)
    ]
    rows = rows_of(tmp_path, codec, [(states, {})])
    for row in rows.values():
        assert row.missing == {"swap": "not_named", "other": "not_named"}
        assert row.conflicts["cut"].thought == row.conflicts["cut_action"].thought
        assert row.conflicts["cut"].thought in {said.thought for said in states}


def test_a_thought_with_a_tag_is_not_forced_and_one_with_a_mark_stays_text(tmp_path):
    codec = tiny.subword_codec("<think>", "</think>", "<action>", "</action>", "<|im_end|>")
    end = codec.encode("<|im_end|>")
    assert len(end) == 1
    commands = ("go to cabinet 1", "go to cabinet 2")
    states = [
        Said("i go to cabinet 1 <think> now.", "go to cabinet 1", admissible=commands),
        Said("i know <|im_end|> it. go to cabinet 2.", "go to cabinet 2", admissible=commands),
        Said("it is far, so i go to cabinet 1.", "go to cabinet 1", admissible=commands),
    ]
    rows = rows_of(tmp_path, codec, [(states, {})])
    assert rows["g0", 0].missing == dict.fromkeys(VARIANTS, "tag")
    assert rows["g0", 2].conflicts["other"].thought == states[1].thought
    at = checkpoint(tmp_path, codec, policy := TextPolicy(codec, lambda *_: "look</action>"))
    list(ConflictProbe().measure(ConflictProbe().states(at), at))
    prefixes = [ids for sampled, _ in policy.sampled for ids in sampled.values()]
    assert any("<|im_end|>" in codec.decode(ids) for ids in prefixes)
    for ids in prefixes:
        assert end[0] not in ids
        for tag in ("<think>", "</think>", "<action>"):
            assert ids.count(codec.encode(tag)[0]) == 1


def test_where_no_actions_are_listed_traces_of_the_own_game_are_taken(tmp_path, codec):
    def said(number):
        return Said(f"i know case {number}. i need cabinet {number}.", f"open cabinet {number}")

    games = [([said(1), said(2)], {}), ([said(3), said(4)], {}), ([said(5)], {})]
    rows = rows_of(tmp_path, codec, games)
    assert not any(row.listed for row in rows.values())
    assert rows["g0", 0].conflicts["other"].action == "open cabinet 2"
    assert rows["g0", 0].conflicts["swap"].thought == "i know case 1. i need cabinet 2."
    # A game with one action takes those of its task type.
    assert rows["g2", 0].conflicts["other"].game in ("g0", "g1")


def test_what_does_not_fit_is_said(tmp_path, codec):
    long = "i know that. " * 30 + "so next i go to cabinet 2."
    states = [
        Said(long, "go to cabinet 2", admissible=COMMANDS),
        Said("i know that. so i go to cabinet 1.", "go to cabinet 1", admissible=COMMANDS),
    ]
    write_states(tmp_path, codec, "g0", states)
    policy = TextPolicy(codec, lambda *_: "look </action>", max_length=120)
    rows = measured(checkpoint(tmp_path, codec, policy))
    missing = {row.turn: row.missing for row in rows}
    assert missing[0]["swap"] == missing[1]["other"] == "too_long"
    assert "other" not in missing[0]
    assert rows[0].trials.keys() & {"swap", "own_swap"} == set() or rows[0].turn == 1


# ---- the file and the settings


def test_an_interrupted_measurement_ends_in_the_same_bytes(run, codec):
    def at():
        return checkpoint(run, codec, follower((0.35, 0.2, 0.1), run, codec), states=20)

    probe = ConflictProbe()
    assert measure(probe, at(), run, "games") == 20
    path = probe_path(run, "conflict", "sft", 10)
    whole = path.read_bytes()
    _, rows = read_probe(path, ConflictRow)
    path.with_suffix(".part").write_bytes(b"".join(whole.splitlines(keepends=True)[:8]))
    path.unlink()
    measure(probe, at(), run, "games")
    assert path.read_bytes() == whole and len(rows) == 20


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"conflict__variants": ("swap", "sideways")}, "unknown variant 'sideways'"),
        ({"conflict__variants": ()}, "variants is empty"),
        ({"conflict__least_words": 0}, "least_words is 0"),
    ],
)
def test_settings_out_of_range_are_refused(run, codec, settings, said):
    config = checkpoint(run, codec, None, **settings).config
    with pytest.raises(UsageError, match=said):
        ConflictProbe().check(config)


def test_a_study_without_cot_responses_is_refused(run, codec):
    config = checkpoint(run, codec, None).config
    ConflictProbe().check(config)
    config.evaluate.elicitations = ("prompt",)
    with pytest.raises(UsageError, match="needs CoT responses"):
        ConflictProbe().check(config)
