"""The step and the epoch that a real Trainer's batches are collated for."""

import pytest
from helpers.layouts import tokenizer

from cotjax.masking import Dropping, LinearFraction, MaskCollator, MaskError, mask_callback

torch = pytest.importorskip("torch", reason="the trainer needs torch")


class Recording(MaskCollator):
    """Write the epoch and step of each batch into the labels, for the trainer's step to see."""

    def __call__(self, features):
        batch = super().__call__(features)
        batch["labels"][:] = 1000 * self.epoch + self.step
        return batch


def example(number, **more):
    return {"input_ids": [7, 8, 9, 5], "roles": [1, 3, 4, 5], "id": f"e{number}", **more}


@pytest.mark.filterwarnings("ignore")  # the trainer's own
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "flag", [{}, {"drop": False}], ids=["plain held-out examples", "marked ones"]
)
def test_each_batch_is_collated_for_the_update_that_it_is_trained_in(tmp_path, workers, flag):
    from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainingArguments

    config = Qwen3Config(
        vocab_size=len(tokenizer("qwen3")),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
    )
    seen = []

    class Watched(Trainer):
        def training_step(self, model, inputs, *more):
            seen.append(
                (int(inputs["labels"].min()), 1000 * int(self.state.epoch) + self.state.global_step)
            )
            inputs["labels"] = inputs["input_ids"].clone()
            return super().training_step(model, inputs, *more)

        def prediction_step(self, model, inputs, *more, **options):
            inputs["labels"] = inputs["input_ids"].clone()
            return super().prediction_step(model, inputs, *more, **options)

    def trainer(steps):
        collator = Recording(0, dropping=Dropping(LinearFraction(0.0, 1.0, 100), redraw=True))
        options = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=steps,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            report_to=[],
            save_strategy="steps",
            save_steps=4,
            eval_strategy="steps",
            eval_steps=1,
            use_cpu=True,
            remove_unused_columns=False,
            disable_tqdm=True,
            dataloader_num_workers=workers,
        )
        return Watched(
            model=Qwen3ForCausalLM(config),
            args=options,
            train_dataset=[example(n) for n in range(10)],
            eval_dataset=[example(n, **flag) for n in range(20)],
            data_collator=collator,
            callbacks=[mask_callback(collator)],
        )

    trainer(4).train()  # 5 batches an epoch: the third update of each has one alone
    trainer(8).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert len(seen) == 7 + 7 and {step for _, step in seen} == {
        0,
        1,
        2,
        1003,
        1004,
        1005,
        2006,
        2007,
    }
    assert all(collated == trained for collated, trained in seen), seen


@pytest.mark.filterwarnings("ignore")
def test_workers_that_stay_are_refused():
    from transformers import TrainingArguments

    callback = mask_callback(MaskCollator(0))
    wrong = TrainingArguments(
        dataloader_num_workers=2, dataloader_persistent_workers=True, use_cpu=True
    )
    with pytest.raises(MaskError, match="dataloader_persistent_workers=False"):
        callback.on_train_begin(wrong, None, None)
