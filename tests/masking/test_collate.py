"""The collator against the real trainers, and the page that shows them."""

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.layouts import tokenizer

from cotjax.masking import (
    Dropping,
    LinearFraction,
    MaskCollator,
    MaskError,
    Role,
    labels,
    roles_from_messages,
    target_weights,
)

PAGE = Path(__file__).parents[2] / "docs" / "masking.md"
DROPPING = Dropping(fraction=0.5)


def features(count=5):
    made = []
    for number in range(count):
        thought = "a mug may be here. " * (1 + number % 3)
        messages = [
            {"role": "user", "content": f"you see a desk {number}."},
            {
                "role": "assistant",
                "content": f"<think>{thought}</think><action>go to desk {number}</action>",
            },
        ]
        ids, roles = roles_from_messages(messages, tokenizer("qwen3"))
        made.append({"input_ids": ids.tolist(), "roles": roles.tolist(), "id": f"e{number}"})
    return made


def expected_labels(feature, dropping=DROPPING):
    ids, roles = np.array(feature["input_ids"]), np.array(feature["roles"])
    return labels(ids, target_weights(roles, drop_tokens=dropping.tokens(roles, feature["id"])))


@pytest.mark.parametrize("side", ["right", "left"])
def test_each_row_has_its_own_labels_and_padding_has_none(side):
    made = features()
    batch = MaskCollator(0, dropping=DROPPING, padding_side=side, return_tensors="np")(made)
    assert len({row.sum() for row in batch["attention_mask"]}) > 1
    for row, feature in enumerate(made):
        here = batch["attention_mask"][row] == 1
        assert batch["input_ids"][row][here].tolist() == feature["input_ids"]
        np.testing.assert_array_equal(batch["labels"][row][here], expected_labels(feature))
        assert (batch["labels"][row][~here] == -100).all() and (
            batch["input_ids"][row][~here] == 0
        ).all()
        assert here[0 if side == "right" else -1]


def test_a_flattened_batch_holds_the_same_labels_and_positions_start_anew():
    made = features()
    batch = MaskCollator(0, dropping=DROPPING, flatten=True, return_tensors="np")(made)
    np.testing.assert_array_equal(
        batch["labels"][0], np.concatenate([expected_labels(feature) for feature in made])
    )
    np.testing.assert_array_equal(
        batch["position_ids"][0],
        np.concatenate([np.arange(len(feature["roles"])) for feature in made]),
    )
    assert "attention_mask" not in batch


def test_the_epoch_reaches_the_draw():
    made = features(40)
    collator = MaskCollator(0, dropping=Dropping(fraction=0.5, redraw=True), return_tensors="np")
    first = collator(made)["labels"]
    collator.epoch = 1
    assert (first != collator(made)["labels"]).any()


def test_the_step_reaches_the_schedule():
    made = features(3)
    schedule = LinearFraction(0.0, 1.0, 10)
    collator = MaskCollator(0, dropping=Dropping(schedule), return_tensors="np")
    for step in (0, 10):
        collator.step = step
        labels_of = collator(made)["labels"]
        for row, feature in enumerate(made):
            expected = expected_labels(feature, Dropping(schedule(step)))
            np.testing.assert_array_equal(labels_of[row, : len(expected)], expected)


def test_only_the_supervised_roles_have_labels():
    made = features(3)
    batch = MaskCollator(0, supervised=(Role.REASONING,), return_tensors="np")(made)
    for row, feature in enumerate(made):
        roles = np.array(feature["roles"])
        np.testing.assert_array_equal(
            batch["labels"][row, : len(roles)] != -100, roles == Role.REASONING
        )


def test_an_example_is_checked_for_the_roles_that_are_trained_on():
    """Observations alone train a model of the world; a response alone is a mistake."""
    collator = MaskCollator(0, supervised=(Role.OBSERVATION,), return_tensors="np")
    assert collator([{"input_ids": [4, 5, 6, 7], "roles": [1, 2, 2, 1]}])["labels"].tolist() == [
        [-100, 5, 6, -100]
    ]
    with pytest.raises(MaskError, match="'e0': no token is supervised"):
        collator(features(1))


@pytest.mark.parametrize("flatten", [False, True], ids=["padded", "flat"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_an_example_that_begins_with_its_response_has_no_label_for_its_first_token(side, flatten):
    features = [
        {"input_ids": [7, 8, 9, 5], "roles": [1, 1, 3, 5]},
        {"input_ids": [4, 6, 3], "roles": [3, 5, 1]},
    ]
    batch = MaskCollator(0, padding_side=side, flatten=flatten, return_tensors="np")(features)
    found = batch["labels"].reshape(-1)
    assert sorted(found[found != -100].tolist()) == [5, 6, 9], "4 follows nothing"


@pytest.mark.parametrize("flatten", [False, True], ids=["padded", "flat"])
@pytest.mark.parametrize(
    ("roles", "problem"),
    [([3, 3, 5], "every token is supervised"), ([1, 1, 1], "no token is supervised")],
)
def test_each_example_is_checked_whatever_it_is_batched_with(flatten, roles, problem):
    good, bad = features(1)[0], {"input_ids": [1, 2, 3], "roles": roles, "id": "bad"}
    for batch in ([good, bad], [bad, good], [bad, bad]):
        with pytest.raises(MaskError, match=f"example 'bad': {problem}"):
            MaskCollator(0, dropping=DROPPING, flatten=flatten, return_tensors="np")(batch)


def test_a_batch_of_which_a_control_drops_all_is_made():
    made = features(2)
    batch = MaskCollator(0, dropping=Dropping(1.0, control="examples"), return_tensors="np")(made)
    assert (batch["labels"] == -100).all()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("flatten", [False, True], ids=["padded", "flat"])
def test_rows_are_padded_to_a_multiple(side, flatten):
    made = features(3)
    options = {"padding_side": side, "flatten": flatten, "return_tensors": "np"}
    plain, padded = (
        MaskCollator(6, pad_to_multiple_of=multiple, **options)(made) for multiple in (None, 64)
    )
    length, new = plain["input_ids"].shape[1], padded["input_ids"].shape[1]
    assert new % 64 == 0 and length <= new < length + 64 and new != length
    here = slice(0, length) if side == "right" else slice(new - length, None)
    for name, array in plain.items():
        np.testing.assert_array_equal(padded[name][:, here], array)
    rest = np.ones(new, bool)
    rest[here] = False
    assert (padded["labels"][:, rest] == -100).all() and (padded["input_ids"][:, rest] == 6).all()
    if flatten:
        np.testing.assert_array_equal(padded["position_ids"][0, rest], np.arange(new - length))
    else:
        assert not padded["attention_mask"][:, rest].any()


def test_held_out_examples_lose_no_label():
    made = features(4)
    collator = MaskCollator(0, dropping=Dropping(1.0), return_tensors="np")
    whole = MaskCollator(0, return_tensors="np")(made)["labels"]
    dropped = collator(made)["labels"]
    np.testing.assert_array_equal(collator.evaluation()(made)["labels"], whole)
    np.testing.assert_array_equal(
        collator([feature | {"drop": False} for feature in made])["labels"], whole
    )
    assert (dropped != whole).any() and (collator(made)["labels"] == dropped).all()


def test_a_batch_of_held_out_examples_alone_is_none_of_training():
    made = features(2)
    held = [feature | {"drop": False} for feature in made]
    collator = MaskCollator(0, dropping=DROPPING, return_tensors="np")
    collator.begin_epoch(0, 5)
    counted = []
    for batch in (held, [held[0], made[1]], held, made):
        collator(batch)
        counted.append((collator.batches, collator.step))
    assert counted == [(0, 5), (1, 5), (1, 5), (2, 6)]


def test_an_example_of_just_the_longest_length_is_taken():
    made = features(1)
    length = len(made[0]["roles"])
    assert MaskCollator(0, max_length=length, return_tensors="np")(made)["labels"].shape == (
        1,
        length,
    )
    with pytest.raises(MaskError, match=f"'e0' has {length} tokens, the limit is {length - 1}"):
        MaskCollator(0, max_length=length - 1, return_tensors="np")(made)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda f: f.pop("roles"), "'e0' has no 'roles'"),
        (lambda f: f.pop("id"), "feature 0 of the batch has no 'id'"),
        (lambda f: f["roles"].pop(), "input_ids have shape"),
        (
            lambda f: f.update(input_ids=[1] * 500, roles=[1] * 500),
            "'e0' has 500 tokens, the limit is 200",
        ),
        (lambda f: f.update(roles=[1] * len(f["roles"])), "no token is supervised"),
        (lambda f: f.update(roles=[3] * len(f["roles"])), "every token is supervised"),
        (lambda f: f.update(roles=[300] * len(f["roles"])), r"'e0': roles must be in 0\.\.8"),
        (lambda f: f.update(roles=["x"] * len(f["roles"])), "'e0': roles must be integers"),
        (
            lambda f: f.update(input_ids=[10**30] * len(f["roles"])),
            "'e0': input_ids must be integers",
        ),
        (lambda f: f.update(input_ids=[-1] * len(f["roles"])), "'e0': input_ids must be in 0"),
        (lambda f: f.update(input_ids=[0.5] * len(f["roles"])), "'e0': input_ids must be integers"),
        (lambda f: f.update(input_ids=[], roles=[]), "'e0': there are no tokens"),
    ],
    ids=[
        "no roles",
        "no id",
        "shapes",
        "too long",
        "all zero",
        "all one",
        "no role",
        "texts",
        "huge",
        "negative",
        "fractions",
        "empty",
    ],
)
def test_what_is_wrong_with_a_feature_is_named(change, problem):
    made = features(1)
    change(made[0])
    with pytest.raises(MaskError, match=problem):
        MaskCollator(0, dropping=DROPPING, max_length=200, return_tensors="np")(made)


def test_no_features_and_what_is_no_feature_and_settings_that_cannot_be():
    collator = MaskCollator(0, return_tensors="np")
    with pytest.raises(MaskError, match="no features"):
        collator([])
    with pytest.raises(MaskError, match="feature 0 of the batch must be a mapping"):
        collator(["x"])
    with pytest.raises(MaskError, match="return_tensors"):
        collator(features(1), return_tensors="tf")
    for wrong in (
        {"pad_id": None},
        {"pad_id": -1},
        {"pad_to_multiple_of": 0},
        {"padding_side": "top"},
        {"supervised": (Role.PAD,)},
    ):
        with pytest.raises(MaskError):
            MaskCollator(**{"pad_id": 0} | wrong)


# ---- with torch, transformers' Trainer and TRL


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A tiny random Qwen3 with a tokenizer, as a user has one."""
    torch = pytest.importorskip("torch", reason="the trainers need torch")
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("page") / "my-model"
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        pad_token_id=6,
        eos_token_id=1,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer("qwen3").save_pretrained(folder)
    return folder


def _loss(model, batch):
    import torch

    outputs = model(
        **{name: torch.from_numpy(array) for name, array in batch.items() if name != "labels"},
        use_cache=False,
    )
    wanted = torch.from_numpy(batch["labels"])[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        outputs.logits[:, :-1].transpose(1, 2), wanted, ignore_index=-100, reduction="sum"
    )
    return losses / (wanted != -100).sum()


def test_packed_is_unpacked_in_a_transformers_model_in_loss_and_gradient(model_folder):
    from transformers import AutoModelForCausalLM

    results = []
    for flatten in (False, True):
        model = AutoModelForCausalLM.from_pretrained(model_folder, attn_implementation="eager")
        loss = _loss(
            model,
            MaskCollator(6, dropping=DROPPING, flatten=flatten, return_tensors="np")(features()),
        )
        loss.backward()
        results.append(
            (loss.item(), {name: p.grad.numpy() for name, p in model.named_parameters()})
        )
    (one, gradients), (other, others) = results
    assert one == pytest.approx(other, rel=1e-5)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, others[name], rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the trainers' own
def test_both_trainers_train_on_exactly_these_targets(model_folder, tmp_path):
    """One step of gradient descent moves the weights as the loss over these labels says."""
    torch = pytest.importorskip("torch")
    trl = pytest.importorskip("trl", reason="TRL is a test extra")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    made, collator = features(4), MaskCollator(6, dropping=DROPPING)
    by_hand = AutoModelForCausalLM.from_pretrained(model_folder)
    _loss(by_hand, MaskCollator(6, dropping=DROPPING, return_tensors="np")(made)).backward()
    options = {
        "output_dir": str(tmp_path),
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1e9,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }
    trainers = {
        "transformers": lambda model: Trainer(
            model=model,
            args=TrainingArguments(**options),
            train_dataset=made,
            data_collator=collator,
        ),
        "trl": lambda model: trl.SFTTrainer(
            model=model,
            args=trl.SFTConfig(
                **options,
                dataset_kwargs={"skip_prepare_dataset": True},
                bf16=False,
                gradient_checkpointing=False,
            ),
            train_dataset=Dataset.from_list(made),
            processing_class=AutoTokenizer.from_pretrained(model_folder),
            data_collator=collator,
        ),
    }
    for name, make in trainers.items():
        model = AutoModelForCausalLM.from_pretrained(model_folder)
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        make(model).train()
        for key, parameter in by_hand.named_parameters():
            moved = dict(model.named_parameters())[key].detach() - before[key]
            assert torch.allclose(moved, -0.1 * parameter.grad, rtol=1e-3, atol=1e-6), (
                f"{name}: {key}"
            )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the trainers' own
def test_every_block_of_the_page_runs(model_folder, monkeypatch, capsys):
    pytest.importorskip("trl", reason="TRL is a test extra")
    monkeypatch.chdir(model_folder.parent)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 10
    names = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name}, block {number + 1}", "exec"), names)
    assert names["losses"][-1] < names["losses"][0] - 0.5
    assert (
        names["actions"].endswith("Yes, it is sunny.")
        and names["sample"].reason == "a second action begins"
    )
    assert names["scheduled"].step >= 2, "the last of three updates, or a batch made ahead"
    assert 0 < names["dropping"].fraction < 1 and names["rows"]["drop"].any()
    _check_grpo(names, monkeypatch)


def _check_grpo(names, monkeypatch):
    """The page's trainer has trained, and drops the actions of a fraction of samples."""
    import torch
    from trl import GRPOTrainer

    from cotjax.masking import drops_action

    trainer, encode = names["trainer"], names["tokenizer"]
    assert trainer.state.global_step == 1
    prompt = encode("you see a desk 1.")["input_ids"]
    parts = [encode(text)["input_ids"] for text in ("<think>so</think><action>", "go", "</action>")]
    response = [token for part in parts for token in part]
    sampled = {
        "prompt_ids": torch.tensor([prompt] * 20),
        "completion_ids": torch.tensor([[*response, 0]] * 20),
        "advantages": torch.arange(1.0, 21.0),
    }
    masks = {
        "prompt_mask": torch.ones(20, len(prompt)),
        "completion_mask": torch.tensor([[1] * len(response) + [0]] * 20),
    }
    method = "_generate_and_score_completions"
    monkeypatch.setattr(GRPOTrainer, method, lambda self, inputs: sampled | masks)
    by_token = getattr(trainer, method)(None)["advantages"] / sampled["advantages"][:, None]
    dropped = []
    for row, weights in enumerate(by_token.tolist()):
        dropped.append(drops_action(0, f"step 1, sample {row}", names["dropping"].fraction))
        action = len(parts[0]), len(parts[0]) + len(parts[1])
        expected = np.ones(len(response) + 1)
        expected[-1] = 0
        expected[slice(*action)] = 0 if dropped[-1] else 1
        np.testing.assert_allclose(weights, expected, atol=1e-6)
    assert 0 < sum(dropped) < 20
