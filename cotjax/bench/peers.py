"""The tasks of a comparison, done by the baseline: transformers' models on torch.

Torch is imported by the constructors, since it need not be installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cotjax import formats
from cotjax.bench.facts import torch_device, torch_facts, torch_peak_bytes
from cotjax.bench.jobs import (
    B1,
    B2,
    EPSILON,
    LEARNING_RATE,
    MAX_LENGTH,
    WEIGHT_DECAY,
    RolloutJob,
    SampleJob,
    TrainJob,
)
from cotjax.bench.tasks import Rollout, RolloutTask, SampleTask, TrainTask
from cotjax.data.codec import Codec
from cotjax.envs.base import Game
from cotjax.errors import EnvError
from cotjax.rollout.tokens import action_ids

_Answer = TypeVar("_Answer")


def _load(weights: str, dtype: str, device: Any) -> Any:
    """Return the AutoModelForCausalLM of a folder, with torch's scaled_dot_product_attention."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        weights, attn_implementation="sdpa", dtype=getattr(torch, dtype)
    )
    return model.to(device)


class TransformersTrain(TrainTask):
    """Updates with fused AdamW, under torch.compile where the job says so."""

    def __init__(self, job: TrainJob):
        self._device = torch_device()
        import torch

        model = _load(job.weights, job.model["param_dtype"], self._device).train()
        model.config.use_cache = False
        # cotjax does not decay vectors (norm scales, biases) either.
        matrices = [param for param in model.parameters() if param.ndim > 1]
        vectors = [param for param in model.parameters() if param.ndim == 1]
        groups = [
            {"params": matrices, "weight_decay": WEIGHT_DECAY},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(
            groups, lr=LEARNING_RATE, betas=(B1, B2), eps=EPSILON, fused=True
        )
        self._model = torch.compile(model) if job.side == "compile" else model
        ids = torch.from_numpy(job.ids()).long().to(self._device)
        self._micro_batches = [ids[start :: job.accumulate] for start in range(job.accumulate)]

    def step(self) -> float:
        total = 0.0
        for ids in self._micro_batches:
            loss = self._model(input_ids=ids, labels=ids).loss / len(self._micro_batches)
            loss.backward()
            total += loss.detach()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize()
        return float(total)

    def describe(self) -> dict[str, Any]:
        return torch_facts(self._device)

    def peak_bytes(self) -> int:
        return torch_peak_bytes(self._device)


class TransformersSample(SampleTask):
    """`generate` with the cache that the job names; everything else is the default."""

    def __init__(self, job: SampleJob):
        self._device = torch_device()
        import torch

        self._torch = torch
        self._model = _load(job.weights, job.model["compute_dtype"], self._device).eval()
        self._ids = torch.from_numpy(job.ids()).long().to(self._device)
        self._cache = {"cache_implementation": "static"} if job.side == "static" else {}
        self.new = job.new

    def generate(self, new: int) -> list[list[int]]:
        with self._torch.inference_mode():
            ids_BT = self._model.generate(
                self._ids,
                attention_mask=self._torch.ones_like(self._ids),
                max_new_tokens=new,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                **self._cache,
            )
        return ids_BT[:, self._ids.shape[1] :].tolist()

    def describe(self) -> dict[str, Any]:
        return torch_facts(self._device)

    def peak_bytes(self) -> int:
        return torch_peak_bytes(self._device)


@dataclass
class _Episode:
    game: Game
    prompt: list[int]
    acted: list[str]


class TransformersRollout(RolloutTask):
    """The usual loop around `generate`, with a static cache and without torch.compile.

    Every turn generates for all live episodes as one left-padded batch, from their first tokens:
    once for the CoT action and once, with `<action>` prefilled, for the prompt action. Then the
    environments step, and free slots take the next game. Prompts, tokens and the parsing of
    responses are cotjax's own, so greedy episodes can be compared action by action.
    """

    def __init__(self, job: RolloutJob):
        self._device = torch_device()
        self._job, self._codec = job, Codec.load(job.model, job.template)
        self._model = _load(job.weights, "float32", self._device).eval()
        self._max_length = min(MAX_LENGTH, self._model.config.max_position_embeddings)
        self._stopping = stopping(self._codec.stop, self._device)
        self._pool = job.pool()

    def play(self) -> dict[str, Rollout]:
        rollout, started_at = Rollout(), time.perf_counter()
        waiting = self._job.played()[::-1]
        live: dict[int, _Episode] = {}
        while waiting or live:
            self._fill(live, waiting, rollout)
            for slot, episode in list(live.items()):
                if len(episode.prompt) + self._job.new + 8 > self._max_length:
                    self._end(live, slot, rollout)
            if live:
                self._turn(live, rollout)
        rollout.seconds = time.perf_counter() - started_at
        return {"both": rollout}

    def _fill(self, live: dict[int, _Episode], waiting: list[Game], rollout: Rollout) -> None:
        free = [slot for slot in range(self._job.slots) if slot not in live][: len(waiting)]
        starting = {slot: waiting.pop() for slot in free}
        if not starting:
            return
        for slot, answer in answers_of(lambda: self._pool.reset(starting), rollout).items():
            task, observation = answer
            prompt = self._codec.first_prompt(task, observation.text)
            live[slot] = _Episode(starting[slot], prompt, [])

    def _turn(self, live: dict[int, _Episode], rollout: Rollout) -> None:
        elicitation, started_at = self._job.elicitation, time.perf_counter()
        prompts = [episode.prompt for episode in live.values()]
        responses = self._generate(prompts, elicitation.max_new_tokens)
        prefix = self._codec.encode(elicitation.prompt_prefix)
        prompt_actions = self._generate(
            [prompt + prefix for prompt in prompts], elicitation.max_action_tokens
        )
        rollout.sampler_s += time.perf_counter() - started_at
        rollout.new_tokens += sum(map(len, responses)) + sum(map(len, prompt_actions))
        parsed = {
            slot: parsed_action(self._codec, ids) for slot, ids in zip(live, responses, strict=True)
        }
        actions = {slot: action for slot, (action, _) in parsed.items()}
        answers = answers_of(lambda: self._pool.step(actions), rollout)
        for (slot, (action, sampled)), ids in zip(parsed.items(), responses, strict=True):
            episode, answer = live[slot], answers[slot]
            episode.acted.append(action or self._codec.decode(ids))
            rollout.won += answer.won
            if answer.won or answer.done:
                self._end(live, slot, rollout)
            else:
                episode.prompt = episode.prompt + self._codec.next_prompt(
                    action if sampled is None else sampled, answer.text
                )

    def _end(self, live: dict[int, _Episode], slot: int, rollout: Rollout) -> None:
        episode = live.pop(slot)
        rollout.acted[episode.game.id] = episode.acted

    def _generate(self, prompts: list[list[int]], max_new: int) -> list[list[int]]:
        """Return the new ids of each prompt, up to and including its stop sequence."""
        import torch
        from transformers import StaticCache

        length = max(map(len, prompts))
        ids_BT = torch.full((len(prompts), length), self._codec.pad_id)
        mask_BT = torch.zeros_like(ids_BT)
        for row, prompt in enumerate(prompts):
            ids_BT[row, length - len(prompt) :] = torch.tensor(prompt)
            mask_BT[row, length - len(prompt) :] = 1
        # cache_implementation="static" would keep the longest cache of all batches so far.
        cache = StaticCache(config=self._model.config, max_cache_len=length + max_new)
        with torch.inference_mode():
            new_BT = self._model.generate(
                input_ids=ids_BT.to(self._device),
                attention_mask=mask_BT.to(self._device),
                max_new_tokens=max_new,
                do_sample=False,
                past_key_values=cache,
                disable_compile=True,
                pad_token_id=self._codec.pad_id,
                **self._stopping,
            )[:, length:]
        return [ids[: end_of(ids, self._codec.stop)] for ids in new_BT.tolist()]

    def describe(self) -> dict[str, Any]:
        return torch_facts(self._device)

    def close(self) -> None:
        self._pool.close()


def answers_of(
    ask: Callable[[], dict[int, _Answer | EnvError]], rollout: Rollout
) -> dict[int, _Answer]:
    """Return the environments' answers, and count their time: nothing is decoded meanwhile.

    Raises EnvError where an environment has failed.
    """
    started_at = time.perf_counter()
    answers: dict[int, _Answer] = {}
    for slot, answer in ask().items():
        if isinstance(answer, EnvError):
            raise answer
        answers[slot] = answer
    seconds = time.perf_counter() - started_at
    rollout.environment_s += seconds
    rollout.waited_s += seconds
    return answers


def parsed_action(codec: Codec, ids: list[int]) -> tuple[str, list[int] | None]:
    """Return a CoT response's action, "" for an invalid one, and its sampled ids where the next
    prompt keeps them.
    """
    stopped = end_of(ids, codec.stop) is not None
    response = formats.parse_response(codec.decode(ids), prefilled=False, stopped=stopped)
    if response.action is None or not codec.encodable(response.action):
        return "", None
    return response.action, action_ids(codec, ids, response.action, opened="")


def end_of(ids: Sequence[int], stop: Sequence[Sequence[int]]) -> int | None:
    """Return the index behind the first stop sequence; None without one."""
    ends = (
        end
        for end in range(1, len(ids) + 1)
        if any(tuple(ids[:end][-len(tag) :]) == tuple(tag) for tag in stop)
    )
    return next(ends, None)


def stopping(stop: Sequence[Sequence[int]], device: Any) -> dict[str, Any]:
    """Return the arguments that make `generate` stop at these sequences.

    Sequences of one id each become end-of-text ids; others need a criterion.
    """
    if all(len(tag) == 1 for tag in stop):
        return {"eos_token_id": [tag[0] for tag in stop]}
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    tags = [torch.tensor(tag, device=device) for tag in stop]

    class AtSequence(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.stack([(input_ids[:, -len(tag) :] == tag).all(-1) for tag in tags]).any(0)

    return {"stopping_criteria": StoppingCriteriaList([AtSequence()])}
