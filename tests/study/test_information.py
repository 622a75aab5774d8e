"""Nats, shares of loss and gradient, and what an intervention removes: by hand, and planted."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny, training

from cotjax.assets import BASE_FOLDER
from cotjax.config import default_config
from cotjax.data.codec import Codec
from cotjax.data.pipeline import example_features
from cotjax.data.tokens import trajectory_examples
from cotjax.data.trajectories import SCRIPTED_BEFORE, Step, Trajectory
from cotjax.diagnostics.information import FILE, read_information
from cotjax.masking import Dropping, Role
from cotjax.model.params import init_params
from cotjax.objectives.scores import totals_by_role
from cotjax.objectives.supervised import token_losses
from cotjax.study.information import Measure, measure_of
from cotjax.train.main import train
from cotjax.train.run import Run
from cotjax.weights.convert import load_params, read_config

ROLES = [Role.REASONING, Role.ACTION_OPEN, Role.ACTION, Role.ACTION_CLOSE, Role.END]


class Says:
    def __init__(self):
        self.lines, self.warnings = [], []

    def say(self, text):
        self.lines.append(text)

    def warn(self, text):
        self.warnings.append(text)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return training.make_source(tmp_path_factory.mktemp("data"))


def measured(source, folder, params=None, model=training.MODEL, says=None, **rest):
    """Return the row of a model's first parameters."""
    run = Run(
        training.settings(information_examples=12, **rest.pop("settings", {})),
        rest.pop("dropping", Dropping.of()),
        model,
        make_params=lambda mesh: None,
        seed=0,
        **rest,
    )
    params = init_params(model, jax.random.key(0), tiny.mesh()) if params is None else params
    measure = Measure("arm", "arm 'sft'", run, folder, says or Says())
    measure(0, params, tiny.mesh(), source)
    (row,) = read_information(folder)
    return row


def test_shares_of_loss_and_gradient_are_those_of_each_example_alone(source, tmp_path):
    """A sample of as many examples as there are; one micro-batch holds them all."""
    few = [source[index] for index in range(4)]
    row = measured(few, tmp_path)
    params = init_params(training.MODEL, jax.random.key(0))

    def losses(params, features):
        batch = {name: jnp.asarray(array)[None] for name, array in features.items()}
        losses_BT = token_losses(training.MODEL, params, batch) * batch["weights"]
        return totals_by_role(losses_BT, batch["roles"], len(Role))

    total, gradients = np.zeros(len(Role)), None
    alone = jax.jit(lambda *each: (losses(*each), jax.jacrev(losses)(*each)))
    for example in few:
        features = example_features(example, Dropping.of())
        features["segment_ids"] = np.ones_like(features["ids"])
        features.pop("draws")
        padded = {name: np.pad(x, (0, 128 - len(x))) for name, x in features.items()}
        found, own = jax.device_get(alone(params, padded))
        total += found
        gradients = own if gradients is None else jax.tree.map(np.add, gradients, own)
    flat = np.concatenate(
        [np.asarray(leaf).reshape(len(Role), -1) for leaf in jax.tree.leaves(gradients)], axis=1
    )
    whole = flat.sum(0)
    for role in ROLES:
        name = role.name
        assert row.loss_share[name] == pytest.approx(total[role] / total.sum(), rel=1e-4)
        share = flat[role] @ whole / (whole @ whole)
        assert row.gradient_share[name] == pytest.approx(share, rel=1e-3, abs=1e-5)
        norm = np.linalg.norm(flat[role]) / np.linalg.norm(whole)
        assert row.gradient_norm[name] == pytest.approx(norm, rel=1e-3)
    assert sum(row.loss_share.values()) == pytest.approx(1, abs=1e-5)
    assert sum(row.gradient_share.values()) == pytest.approx(1, abs=1e-5)
    assert row.examples == 4 and row.removed_share == 0


@pytest.mark.parametrize(
    "rest",
    [
        {"settings": {"batch": 2, "accumulate": 1}},
        {"normalizer": "fixed_budget"},
        {"normalizer": "example_mean"},
    ],
    ids=str,
)
def test_what_is_removed_follows_the_draws(source, tmp_path, rest):
    """Nothing at 0; at 1 exactly the action's share, or all, whatever the batch and objective."""

    def removed(**dropping):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        dropping = Dropping.of(**dropping)
        row = measured(source, tmp_path, dropping=dropping, **json.loads(json.dumps(rest)))
        return row.removed_share, row.loss_share

    share, of_roles = removed(fraction=0.0)
    assert share == 0
    assert removed(fraction=1.0) == (pytest.approx(of_roles["ACTION"], rel=1e-5), of_roles)
    ends = of_roles["ACTION"] + of_roles["ACTION_CLOSE"] + of_roles["END"]
    share, _ = removed(fraction=1.0, action_close=True, end=True)
    assert share == pytest.approx(ends, rel=1e-5)
    assert removed(fraction=1.0, control="examples")[0] == pytest.approx(1)
    share, _ = removed(fraction=1.0, control="reasoning")
    assert share == pytest.approx(of_roles["REASONING"], rel=1e-5)
    half = removed(fraction=0.5)[0]
    assert 0.2 < half / of_roles["ACTION"] < 0.8
    assert removed(fraction=0.0, last_fraction=1.0, fraction_steps=4)[0] == 0, "at step 0"


# ---- planted data: the thought names the action, or it does not


def episode(number, named):
    """Return an episode in the base's words; its prompts do not tell which drawer is next."""
    drawers = np.random.default_rng(number).integers(1, 10, 4)
    steps = tuple(
        Step(
            observation="you are in the middle of a room. you see a drawer 1, and a drawer 2."
            if not index
            else "nothing happens.",
            thought=f"i need a mug. next i open drawer {drawer}." if named else "i need a mug.",
            action=f"open drawer {drawer}",
            provenance=SCRIPTED_BEFORE,
            admissible_commands=None,
        )
        for index, drawer in enumerate(drawers)
    )
    return Trajectory(
        id=f"e{number}",
        environment="planted",
        split="train",
        task="put a mug in drawer.",
        task_type="pick",
        game=f"g{number}",
        steps=steps,
        success=True,
        reward=1.0,
        seed=0,
        agent="expert",
    )


@pytest.fixture(scope="module")
def planted():
    """Return by name the examples that the base is measured on."""
    codec = Codec.load(BASE_FOLDER)

    def examples(named, form="cot"):
        return [
            vars(one) | {"id": one.id.encode()}
            for number in range(8)
            for one in trajectory_examples(codec, episode(number, named), form, 768)
        ]

    return {
        "named": examples(True),
        "unnamed": examples(False),
        "direct": examples(True, "direct"),
    }


@pytest.fixture(scope="module")
def base():
    return read_config(BASE_FOLDER), load_params(BASE_FOLDER, tiny.mesh())


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_a_thought_that_names_the_action_leaves_nothing_to_learn(planted, base, tmp_path):
    model, params = base
    rows, warned = {}, {}
    for name, examples in planted.items():
        (tmp_path / name).mkdir()
        says = Says()
        rows[name] = measured(
            examples,
            tmp_path / name,
            params,
            model,
            says,
            dropping=Dropping.of(fraction=0.3),
            settings={"row_length": 512, "batch": 2},
        )
        warned[name] = says.warnings
    named, unnamed, direct = rows["named"], rows["unnamed"], rows["direct"]
    # The base copies: one of nine drawers is ln 9 = 2.2 nats, unless the thought says which.
    assert named.action_given_thought.action < 0.1
    assert named.action_given_prompt.action > 1.5
    assert named.loss_share["ACTION"] < 0.01 and abs(named.gradient_share["ACTION"]) < 0.05
    assert named.removed_share < 0.01
    assert warned["named"] == [
        f"arm 'arm': this arm cannot differ from arm 'sft': its masking removes "
        f"{100 * named.removed_share:.2g} % of the loss"
    ]
    assert unnamed.action_given_thought.action > 1.5
    assert unnamed.loss_share["ACTION"] > 0.05 and unnamed.removed_share > 0.01
    assert warned["unnamed"] == []
    # Without thoughts there is no action given one; the prompts of all three are the same.
    assert direct.action_given_thought is None
    for row in (unnamed, direct):
        assert row.action_given_prompt.action == pytest.approx(
            named.action_given_prompt.action, rel=1e-4
        )
    tokens = named.action_given_prompt
    assert tokens.action == pytest.approx(3 * tokens.token, rel=1e-4), "open drawer 3"


# ---- in a training run


def trained(folder, source, stop=None, **changes):
    says = Says()
    run = Run(
        training.settings(steps=6, save_every=3, information_examples=6, **changes),
        Dropping.of(fraction=0.5),
        training.MODEL,
        training.init_params,
        3,
    )

    def report(step, steps, row):
        if step == stop:
            raise KeyboardInterrupt

    train(
        run,
        folder=folder,
        source=source,
        mesh_shape=training.ONE,
        listener=training.Hears(report),
        measure=Measure("reduced", "arm 'sft'", run, folder, says),
    )
    return says


@pytest.mark.parametrize("held", [{}, {"eval_every": 3, "eval_share": 0.3}], ids=["", "held out"])
def test_a_run_that_is_killed_and_resumed_leaves_the_same_bytes(source, tmp_path, held):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    says = trained(whole, source, **held)
    assert [row.checkpoint for row in read_information(whole)] == [0, 3, 6]
    assert len(says.lines) == 3 and says.lines[0].startswith("  step 0: nats of an action given")
    with pytest.raises(KeyboardInterrupt):
        trained(killed, source, stop=4, **held)
    assert [row.checkpoint for row in read_information(killed)] == [0, 3]
    # Lost: the checkpoint of step 3, though it was measured.
    shutil.rmtree(killed / "checkpoints" / "3")
    trained(killed, source, **held)
    assert (whole / FILE).read_bytes() == (killed / FILE).read_bytes()
    checkpoints = [training.params_at(folder / "checkpoints", 6) for folder in (whole, killed)]
    jax.tree.map(np.testing.assert_array_equal, *checkpoints)


def test_the_twin_is_the_arm_without_the_intervention(tmp_path):
    config = default_config()
    run = Run(config.train, Dropping.of(), training.MODEL, training.init_params, 0)

    def twin(arm):
        return measure_of(config, arm, run, tmp_path, Says())._twin

    assert twin("reduced") == "arm 'sft'"
    with config.unlocked():
        del config.arms["sft"]
    assert twin("reduced") == "the same arm without it"
    config.train.information_examples = 0
    assert measure_of(config, "reduced", run, tmp_path, Says()) is None
