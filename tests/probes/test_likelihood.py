"""How likely actions are after the prompt, and after the model's own reasoning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import kitchen
from helpers.probing import checkpoint_of
from helpers.rollouts import RulePolicy
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax

from cotjax.diagnostics.likelihood import LikelihoodRow, divergence, posterior
from cotjax.diagnostics.probe_rows import read_probe
from cotjax.formats import normalize_action
from cotjax.model import decoder
from cotjax.probes.likelihood import LikelihoodProbe
from cotjax.probes.measuring import measure, probe_path
from cotjax.probes.probe import states_of
from cotjax.report.summarize import summarize
from cotjax.rollout.record import read_records
from cotjax.study.games import GameSets
from cotjax.study.probing import probe_checkpoints

OFFLINE = ("cot_constrained", "prompt_constrained")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The rows of all expert states by their key, and these states."""
    folder = tmp_path_factory.mktemp("measured")
    config = kitchen.config_of(offline=OFFLINE, episodes_at=(0,), elicitations=("prompt",))
    kitchen.play_in(folder, config)
    at = kitchen.checkpoint_in(folder, config, slots=2)
    measure(LikelihoodProbe(), at, folder, "games")
    _, rows = read_probe(probe_path(folder, "likelihood", "base", 0), LikelihoodRow)
    records = [each for each in read_records(folder / "records") if each.driver == "reference"]
    return {row.key: row for row in rows}, states_of(records), (folder, config)


@jax.jit
def _logprobs(ids_1T):
    """Return the log-probabilities of the next id, [T, V], of the tiny model."""
    config, params = kitchen.model()
    ones = jnp.ones_like(ids_1T)
    places = jnp.arange(ids_1T.shape[1])[None]
    hidden = decoder.hidden_states(config, params, ids_1T, places, ones, 0 * ones)
    return jax.nn.log_softmax(decoder.logits(config, params, hidden))[0]


def test_scores_are_those_of_the_whole_model(measured):
    """The sum over an action's tokens and `</action>`, of one forward pass over all ids."""
    rows, states, _ = measured
    codec = kitchen.codec()
    assert len(rows) == len(states) == 9
    for state in states:
        row, turn = rows[state.key], state.turn
        action = [*codec.encode_plain(turn.reference, "it"), *codec.stop[0]]
        assert row.tokens == len(action)
        for found, before in (
            (row.reference, codec.action_prefix),
            (row.reference_after_cot, turn.cot_constrained.prefix_ids),
        ):
            start = len(state.prompt_ids) + len(before)
            ids_1T = np.zeros((1, 500), np.int32)  # padding behind is not seen
            ids_1T[0, : start + len(action)] = [*state.prompt_ids, *before, *action]
            logprobs_TV = np.asarray(_logprobs(ids_1T))
            expected = sum(logprobs_TV[start + at - 1, id_] for at, id_ in enumerate(action))
            assert found == pytest.approx(expected, abs=1e-3)


def test_posteriors_are_those_of_the_constrained_choices(measured):
    rows, states, _ = measured
    differs = 0
    for state in states:
        row, turn = rows[state.key], state.turn
        after_prompt, after_cot = (
            softmax(choice.logprobs) for choice in (turn.prompt_constrained, turn.cot_constrained)
        )
        at = turn.admissible_commands.index(turn.reference)
        assert row.posterior == pytest.approx(after_prompt[at], abs=1e-4)
        assert row.posterior_after_cot == pytest.approx(after_cot[at], abs=1e-4)
        apart = jensenshannon(after_prompt, after_cot) ** 2
        assert row.divergence == pytest.approx(apart, abs=1e-4)
        differs += abs(row.reference - row.reference_after_cot) > 1e-3
        scores = dict(zip(turn.admissible_commands, turn.prompt_constrained.logprobs, strict=True))
        assert row.reference == pytest.approx(scores[turn.reference], abs=1e-4)
        for response, found in ((turn.cot, row.cot), (turn.prompt, row.prompt)):
            assert (found is None) == (not response.valid)
            if response.valid and normalize_action(response.action) in scores:
                assert found == pytest.approx(scores[response.action], abs=1e-4)
    assert differs > 4


def test_rows_depend_on_neither_slots_nor_order(measured, tmp_path):
    rows, _, (folder, config) = measured
    at = kitchen.checkpoint_in(folder, config, slots=3)
    again = list(LikelihoodProbe().measure(LikelihoodProbe().states(at)[::-1], at))
    for row in again:
        first = rows[row.key]
        for name in LikelihoodRow.model_fields:
            one, other = getattr(first, name), getattr(row, name)
            assert one == (pytest.approx(other, abs=1e-4) if isinstance(other, float) else other)


def test_the_stage_measures_the_base_and_the_summary_has_its_metrics(measured):
    """As `cotjax probe --only floor,likelihood` does, then `cotjax report`."""
    rows, _, (folder, config) = measured
    config.probes.states = 6
    probe_checkpoints(
        config,
        model=kitchen.model()[0],
        codec=kitchen.codec(),
        games=GameSets((), {"in_domain": kitchen.GAMES}, "games"),
        arms={},
        run=folder,
        base=kitchen.weights(),
        names=("floor", "likelihood"),
        stage=lambda *done: None,
    )
    _, fewer = read_probe(probe_path(folder, "likelihood", "base", 0), LikelihoodRow)
    assert len(fewer) == 6 and {row.key for row in fewer} < rows.keys()
    (point,) = summarize(folder).points
    # The random model gives no valid CoT response to compare.
    for metric in {*LikelihoodRow.metrics, "d2_floor_not_comparable"} - {"d2_nats"}:
        assert point.metrics[metric].measured, metric
    gap = point.metrics["d1_posterior_gap"]
    assert gap.low <= gap.value <= gap.high and gap.games == len({row.game for row in fewer})
    expected = np.mean([row.posterior_after_cot - row.posterior for row in fewer])
    assert gap.value == pytest.approx(expected, abs=1e-5)


class Knows(RulePolicy):
    """It finds "open cabinet …" more likely after its reasoning: by 0.2 nats a token."""

    def score_branches(self, prefixes, branches):
        self.scored.append((prefixes, branches))
        return {
            slot: [self._score(ids, prefixes[slot]) for ids in several]
            for slot, several in branches.items()
        }

    def _score(self, ids, prefix):
        text = self.codec.decode(ids)
        each = -0.4 if "open" in text else -0.6
        reasoned = "plate" in self.codec.decode(prefix)
        return [each + 0.2 * (reasoned and "open" in text)] * len(ids)


def test_the_gap_is_what_the_reasoning_adds(tmp_path):
    """By hand: the rule policy reasons, opens the next cabinet by CoT, and looks by prompt."""
    codec = kitchen.codec()
    config = kitchen.config_of()
    policy = Knows(codec, slots=3, max_length=500)
    kitchen.play_in(tmp_path, config, player=kitchen.Plays(policy))
    at = checkpoint_of(tmp_path, policy, codec, step=0, config=config)
    rows = list(LikelihoodProbe().measure(LikelihoodProbe().states(at), at))
    assert len(rows) == 9
    for row in rows:
        counts, look = row.counts(), len(codec.encode_plain("look", "it")) + 1
        assert counts["d1_nats_prompt"] == pytest.approx(0.4 * row.tokens)
        assert counts["d1_token_nats_prompt"] == pytest.approx(0.4)
        assert counts["d1_token_nats_cot"] == pytest.approx(0.2)
        for saved in ("d1_nats_cot", "d1_nats_gap"):
            assert counts[saved] == pytest.approx(0.2 * row.tokens)
        assert counts["d2_nats"] == pytest.approx(row.cot + 0.6 * look)
        before, after = (softmax([-nats * row.tokens, -0.6 * look])[0] for nats in (0.4, 0.2))
        assert counts["d1_posterior_prompt"] == pytest.approx(before, abs=1e-5)
        assert counts["d1_posterior_cot"] == pytest.approx(after, abs=1e-5)
        assert counts["d1_posterior_gap"] == pytest.approx(after - before, abs=1e-5)
        assert counts["d2_divergence"] > 0


def test_where_no_actions_are_listed_there_is_no_posterior(tmp_path):
    codec, config = kitchen.codec(), kitchen.config_of()
    policy = Knows(codec, slots=3, max_length=500)
    kitchen.play_in(tmp_path, config, player=kitchen.Plays(policy), expert=kitchen.unlisted())
    at = checkpoint_of(tmp_path, policy, codec, step=0, config=config)
    for row in LikelihoodProbe().measure(LikelihoodProbe().states(at), at):
        assert row.counts().keys() == {
            *("d1_nats_prompt", "d1_nats_cot", "d1_nats_gap", "d2_nats"),
            *("d1_token_nats_prompt", "d1_token_nats_cot"),
        }


def test_an_action_that_does_not_fit_behind_its_reasoning_is_left_out(tmp_path):
    codec, config = kitchen.codec(), kitchen.config_of()
    policy = Knows(codec, slots=3, max_length=500)
    kitchen.play_in(tmp_path, config, player=kitchen.Plays(policy))
    at = checkpoint_of(tmp_path, policy, codec, step=0, config=config)
    (first, *_) = LikelihoodProbe().states(at)
    policy.max_length = first.turn.prompt_length + len(codec.action_prefix) + 20
    (row,) = LikelihoodProbe().measure([first], at)
    assert row.reference is not None and row.reference_after_cot is None
    assert row.posterior is not None and row.divergence is None
    assert not {"d1_nats_cot", "d1_nats_gap", "d1_posterior_cot"} & row.counts().keys()


def test_a_hopeless_action_counts_up_to_a_limit_and_the_gap_is_of_what_counts():
    place = {"driver": "reference", "game": "g", "domain": "ood", "sample": 0, "turn": 0}
    row = LikelihoodRow(
        **place,
        tokens=5,
        reference=-300.0,
        reference_after_cot=-4.0,
        cot=-90.0,
        prompt=-1.0,
        posterior=None,
        posterior_after_cot=None,
        divergence=None,
    )
    assert row.counts() == {
        "d1_nats_prompt": 10,
        "d1_token_nats_prompt": 5,
        "d1_nats_cot": 4,
        "d1_token_nats_cot": 0.8,
        "d1_nats_gap": 6,
        "d2_nats": -10,
    }
    for name, value in row.counts().items():
        assert LikelihoodRow.metrics[name].low <= value <= LikelihoodRow.metrics[name].upper


def test_a_posterior_is_a_softmax_that_never_overflows():
    assert posterior([-1000.0, -1001.0]) == pytest.approx(softmax([0.0, -1.0]))
    far, near = posterior([0.0, -2000.0]), posterior([-2000.0, 0.0])
    assert divergence(far, near) == pytest.approx(np.log(2))
    assert divergence(near, near) == 0.0
