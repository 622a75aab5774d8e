"""Steps of GRPO of a comparison, done by TRL's GRPOTrainer on transformers and torch.

The trainer's `rollout_func` plays whole episodes with the trainer's own generation, from the same
prompts as cotjax. What it returns is what TRL trains on:

    steps      a row for each step: its prompt and its response. This is the loss that cotjax's tree
               has in one row an episode. TRL wants as many rows of each game, so an episode that
               is over early has rows of which nothing is trained on. Its advantages are over a
               group's rows, whose deviation has other degrees of freedom than its episodes'.
    episodes   one text an episode, with the thoughts of all turns behind each other. It has about
               as many tokens as the tree, but each step is trained behind thoughts that it was not
               drawn after, so it is another loss.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from cotjax.bench.facts import torch_device, torch_facts
from cotjax.bench.jobs import MAX_LENGTH, RLJob
from cotjax.bench.our_rl import RATE
from cotjax.bench.peers import answers_of, end_of, parsed_action
from cotjax.bench.tasks import RLStep, RLTask, Rollout
from cotjax.data.codec import Codec
from cotjax.envs.base import Game
from cotjax.errors import UsageError

_STEPS = 10_000  # more than are asked for
_ROWS_OF_STEPS = 4  # times as many rows in a micro-batch of steps as in one of episodes


@dataclass
class _Played:
    """An episode: `first` is its first prompt, `prompt` the one of its state; `row` follows `first`
    in the text that is trained on, `sampled` says which ids of it were drawn. `turns`: the prompt
    and the response of each step.
    """

    first: list[int]
    prompt: list[int]
    row: list[int] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)
    turns: list[tuple[list[int], list[int]]] = field(default_factory=list)
    acted: list[str] = field(default_factory=list)
    won: bool = False
    over: bool = False

    def append(self, ids: Sequence[int], drawn: int) -> None:
        self.row += ids
        self.sampled += [drawn] * len(ids)


class TrlRL(RLTask):
    """GRPOTrainer with its default loss, without vLLM. A thread trains, one step at a time."""

    def __init__(self, job: RLJob):
        self._job, self._device = job, torch_device()
        self._codec = Codec.load(job.model, job.template)
        if any(len(tag) != 1 for tag in self._codec.stop):
            raise UsageError("--peer trl needs a tokenizer with one id for each stop text")
        self._pool = job.pool()
        self._trainer = self._make_trainer()
        self._step, self._done = RLStep(), threading.Semaphore(0)
        self._go, self._error = threading.Semaphore(0), list[BaseException]()
        self._thread = threading.Thread(target=self._train, daemon=True)

    def _make_trainer(self) -> Any:
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        try:
            from datasets import Dataset
            from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
            from trl import GRPOTrainer
        except ImportError as error:
            raise UsageError(
                f"--peer trl needs {error.name}, which is not installed: pip install trl"
            ) from None
        job, side = self._job, self
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(job.model) / "tokenizer.json"))
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(self._codec.pad_id)
        stops = [tag[0] for tag in self._codec.stop]
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stops[0])
        model = AutoModelForCausalLM.from_pretrained(job.weights, attn_implementation="sdpa")
        model.generation_config.eos_token_id = stops

        class Gate(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                side._go.acquire()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                side._done.release()

        def rewards(completions: Sequence[Any], reward: Sequence[float], **_: Any) -> list[float]:
            return list(reward)

        positions = range(_STEPS * job.tasks)
        return GRPOTrainer(
            model=model,
            reward_funcs=rewards,
            args=self._settings(),
            train_dataset=Dataset.from_dict({"prompt": [str(place) for place in positions]}),
            processing_class=tokenizer,
            callbacks=[Gate()],
            rollout_func=self._rollout,
        )

    def _settings(self) -> Any:
        """Return the trainer's settings: rows and micro-batches, and no more than GRPO needs."""
        from trl import GRPOConfig

        job = self._job
        of_game = job.group * (job.steps if job.rows == "steps" else 1)
        rows = job.tasks * of_game
        # Of short rows more are as much work.
        batch = job.batch * (_ROWS_OF_STEPS if job.rows == "steps" else 1)
        batch = next(size for size in range(batch, 0, -1) if rows % size == 0)
        return GRPOConfig(
            output_dir=str(Path(job.weights).parent / "trl"),
            use_cpu=self._device.type == "cpu",
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=rows // batch,
            num_generations=of_game,
            max_completion_length=job.new,
            max_steps=_STEPS,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            beta=0.0,
            bf16=False,
            gradient_checkpointing=False,
            shuffle_dataset=False,
            save_strategy="no",
            report_to="none",
            logging_steps=_STEPS,
            disable_tqdm=True,
            seed=job.seed,
        )

    def _train(self) -> None:
        try:
            self._trainer.train()
        except BaseException as error:  # raised where the step was asked for
            self._error.append(error)
            self._done.release()

    def step(self) -> RLStep:
        if not self._thread.ident:
            self._thread.start()
        self._step, started = RLStep(), time.perf_counter()
        self._go.release()
        self._done.acquire()
        if self._error:
            raise self._error[0]
        self._step.seconds = time.perf_counter() - started
        return self._step

    def _rollout(self, prompts: list[str], _: Any) -> dict[str, Any]:
        """Play the games at these positions of the stream, one episode each."""
        started, job = time.perf_counter(), self._job
        games = {
            str(step * job.tasks + at): game
            for step in {int(text) // job.tasks for text in prompts}
            for at, game in enumerate(job.games_of(step))
        }
        each_row = job.steps if job.rows == "steps" else 1
        played = self._play([games[text] for text in prompts[::each_row]])
        found = self._step
        found.play_s = time.perf_counter() - started
        found.sampled = sum(sum(each.sampled) for each in played)
        found.steps = sum(len(each.acted) for each in played)
        found.reward = fmean(float(each.won) for each in played)
        rows = [row for each in played for row in self._rows(each)]
        found.trained = sum(len(prompt) + len(row) for prompt, row, drawn in rows if any(drawn))
        return {
            "prompt_ids": [prompt for prompt, _, _ in rows],
            "completion_ids": [row for _, row, _ in rows],
            "logprobs": None,
            "env_mask": [drawn for _, _, drawn in rows],
            "reward": [float(each.won) for each in played for _ in range(each_row)],
        }

    def _rows(self, played: _Played) -> list[tuple[list[int], list[int], list[int]]]:
        """Return the prompt, the text behind it and which of its ids were drawn, of each row."""
        if self._job.rows == "episodes":
            return [(played.first, played.row, played.sampled)]
        empty = (played.first, [self._codec.pad_id], [0])
        rows = [(prompt, ids, [1] * len(ids)) for prompt, ids in played.turns]
        return rows + [empty] * (self._job.steps - len(rows))

    def greedy(self) -> dict[str, list[str]]:
        config, games = self._trainer.generation_config, self._job.games_of(0)
        config.do_sample = False
        try:
            played = self._play(games)
        finally:
            config.do_sample = True
        return {game.id: each.acted for game, each in zip(games, played, strict=True)}

    def _play(self, games: Sequence[Game]) -> list[_Played]:
        """Play each game in a slot of its own; all that are not over generate as one batch."""
        codec, job = self._codec, self._job
        played: dict[int, _Played] = {}
        starting = dict(enumerate(games))
        began = answers_of(lambda: self._pool.reset(starting), Rollout())
        for slot, (task, seen) in began.items():
            prompt = codec.first_prompt(task, seen.text)
            played[slot] = _Played(prompt, prompt)
        for _ in range(job.steps):
            live = {slot: each for slot, each in played.items() if not each.over}
            if not live:
                break
            responses = self._generate([each.prompt for each in live.values()])
            parsed = {
                slot: parsed_action(codec, ids) for slot, ids in zip(live, responses, strict=True)
            }
            actions = {slot: action for slot, (action, _) in parsed.items()}
            answers = answers_of(partial(self._pool.step, actions), Rollout())
            for (slot, each), ids in zip(live.items(), responses, strict=True):
                action, kept = parsed[slot]
                each.turns.append((each.prompt, ids))
                each.append(ids, 1)
                each.acted.append(action)
                each.won = answers[slot].won
                turn = codec.next_prompt(action if kept is None else kept, answers[slot].text)
                each.prompt = each.prompt + turn
                limit = len(each.prompt) + job.new > MAX_LENGTH
                each.over = each.won or answers[slot].done or limit
                if not each.over:
                    # In the row the action is there already: what follows its close.
                    between = codec.encode(codec.template.response_end)
                    turn_ids = codec.next_turn(answers[slot].text, lenient=True)
                    each.append([*between, *(id for ids, _ in turn_ids for id in ids)], 0)
        return [played[slot] for slot in range(len(games))]

    def _generate(self, prompts: list[list[int]]) -> list[list[int]]:
        """Return what the trainer's own generation draws, up to and including its stop."""
        drawn, _ = self._trainer._generate_single_turn(prompts, None, {}, 1)
        return [ids[: end_of(ids, self._codec.stop)] for ids in drawn]

    def describe(self) -> dict[str, Any]:
        import trl

        facts = torch_facts(self._device)
        return facts | {"versions": f"trl {trl.__version__}, {facts['versions']}"}

    def close(self) -> None:
        self._pool.close()
