"""The collator against the real trainers, and the page that shows them."""

import re
from pathlib import Path

import numpy as np
import pytest
from layouts import tokenizer

from cotjax.masking import Dropping, MaskCollator, MaskError, labels, roles_from_messages, target_weights

PAGE = Path(__file__).parents[2] / "docs" / "masking.md"
DROPPING = Dropping(fraction=0.5)


def features(count=5):
    made = []
    for number in range(count):
        thought = "a mug may be here. " * (1 + number % 3)
        messages = [
            {"role": "user", "content": f"you see a desk {number}."},
            {"role": "assistant", "content": f"<think>{thought}</think><action>go to desk {number}</action>"},
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
        assert (batch["labels"][row][~here] == -100).all() and (batch["input_ids"][row][~here] == 0).all()
        assert here[0 if side == "right" else -1]


def test_a_flattened_batch_holds_the_same_labels_and_positions_start_anew():
    made = features()
    batch = MaskCollator(0, dropping=DROPPING, flatten=True, return_tensors="np")(made)
    np.testing.assert_array_equal(batch["labels"][0], np.concatenate([expected_labels(feature) for feature in made]))
    np.testing.assert_array_equal(batch["position_ids"][0], np.concatenate([np.arange(len(feature["roles"])) for feature in made]))
    assert "attention_mask" not in batch


def test_epoch_and_step_reach_the_draw():
    made = features(40)
    collator = MaskCollator(0, dropping=Dropping(fraction=0.5, redraw=True), return_tensors="np")
    first = collator(made)["labels"]
    collator.epoch = 1
    assert (first != collator(made)["labels"]).any()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda f: f.pop("roles"), "'e0' has no 'roles'"),
        (lambda f: f.pop("id"), "feature 0 of the batch has no 'id'"),
        (lambda f: f["roles"].pop(), "input_ids have shape"),
        (lambda f: f.update(input_ids=[1] * 500, roles=[1] * 500), "'e0' has 500 tokens, the limit is 200"),
        (lambda f: f.update(roles=[1] * len(f["roles"])), "no token is supervised"),
        (lambda f: f.update(roles=[3] * len(f["roles"])), "every token is supervised"),
    ],
    ids=["no roles", "no id", "shapes", "too long", "all zero", "all one"],
)
def test_what_is_wrong_with_a_feature_is_named(change, problem):
    made = features(1)
    change(made[0])
    with pytest.raises(MaskError, match=problem):
        MaskCollator(0, dropping=DROPPING, max_length=200, return_tensors="np")(made)


# ---- with torch, transformers' Trainer and TRL


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A tiny random Qwen3 with a tokenizer, as a user has one."""
    torch = pytest.importorskip("torch", reason="the trainers need torch")
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("page") / "my-model"
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=384, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, tie_word_embeddings=True, pad_token_id=6, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer("qwen3").save_pretrained(folder)
    return folder


def _loss(model, batch):
    import torch

    outputs = model(**{name: torch.from_numpy(array) for name, array in batch.items() if name != "labels"}, use_cache=False)
    wanted = torch.from_numpy(batch["labels"])[:, 1:]
    losses = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].transpose(1, 2), wanted, ignore_index=-100, reduction="sum")
    return losses / (wanted != -100).sum()


def test_packed_is_unpacked_in_a_transformers_model_in_loss_and_gradient(model_folder):
    from transformers import AutoModelForCausalLM

    results = []
    for flatten in (False, True):
        model = AutoModelForCausalLM.from_pretrained(model_folder, attn_implementation="eager")
        loss = _loss(model, MaskCollator(6, dropping=DROPPING, flatten=flatten, return_tensors="np")(features()))
        loss.backward()
        results.append((loss.item(), {name: p.grad.numpy() for name, p in model.named_parameters()}))
    (one, gradients), (other, others) = results
    assert one == pytest.approx(other, rel=1e-5)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, others[name], rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the trainers' own
def test_both_trainers_train_on_exactly_these_targets(model_folder, tmp_path):
    """One step of each, of plain gradient descent, moves the weights as the loss over these labels says."""
    torch = pytest.importorskip("torch")
    trl = pytest.importorskip("trl", reason="TRL is a test extra")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    made, collator = features(4), MaskCollator(6, dropping=DROPPING)
    by_hand = AutoModelForCausalLM.from_pretrained(model_folder)
    _loss(by_hand, MaskCollator(6, dropping=DROPPING, return_tensors="np")(made)).backward()
    options = {
        "output_dir": str(tmp_path), "max_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 0.1, "optim": "sgd",
        "lr_scheduler_type": "constant", "max_grad_norm": 1e9, "report_to": [], "save_strategy": "no", "use_cpu": True,
        "remove_unused_columns": False, "disable_tqdm": True,
    }  # fmt: skip
    trainers = {
        "transformers": lambda model: Trainer(model=model, args=TrainingArguments(**options), train_dataset=made, data_collator=collator),
        "trl": lambda model: trl.SFTTrainer(
            model=model,
            args=trl.SFTConfig(**options, dataset_kwargs={"skip_prepare_dataset": True}, bf16=False, gradient_checkpointing=False),
            train_dataset=Dataset.from_list(made), processing_class=AutoTokenizer.from_pretrained(model_folder), data_collator=collator,
        ),
    }  # fmt: skip
    for name, make in trainers.items():
        model = AutoModelForCausalLM.from_pretrained(model_folder)
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        make(model).train()
        for key, parameter in by_hand.named_parameters():
            moved = dict(model.named_parameters())[key].detach() - before[key]
            assert torch.allclose(moved, -0.1 * parameter.grad, rtol=1e-3, atol=1e-6), f"{name}: {key}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the trainers' own
def test_every_block_of_the_page_runs(model_folder, monkeypatch, capsys):
    pytest.importorskip("trl", reason="TRL is a test extra")
    monkeypatch.chdir(model_folder.parent)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 6
    names = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name}, block {number + 1}", "exec"), names)
    assert names["losses"][-1] < names["losses"][0] - 0.5
    assert 0 < names["dropping"].fraction < 1 and names["rows"]["drop"].any()
