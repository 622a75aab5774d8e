"""The other side of `cotjax bench rollout`: the loop that one writes around transformers' `generate`.

Every turn all live episodes go through `model.generate` as one left-padded batch, from their first token on, once for the CoT action
and once, with `<action>` prefilled, for the prompt action. Then the environments step, and slots whose episode is over take the next
game. Prompts, tokens and how a response is read are cotjax's own, so that greedy episodes can be compared action by action.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cotjax import formats
from cotjax.bench.facts import torch_device, torch_facts
from cotjax.bench.rollout_worker import MAX_LENGTH, Job, Rollout
from cotjax.data.codec import Codec
from cotjax.envs.base import Game
from cotjax.errors import EnvError
from cotjax.rollout.tokens import action_ids


@dataclass
class _Episode:
    game: Game
    prompt: list[int]
    acted: list[str]


class TransformersSide:
    """AutoModelForCausalLM with scaled_dot_product_attention and a static cache, not under torch.compile."""

    def __init__(self, job: Job):
        self._device = torch_device()
        import torch
        from transformers import AutoModelForCausalLM

        self._job, self._codec = job, Codec.load(job.model, job.template)
        model = AutoModelForCausalLM.from_pretrained(
            job.weights, attn_implementation="sdpa", dtype=torch.float32
        )
        self._model = model.to(self._device).eval()
        self._max_length = min(MAX_LENGTH, model.config.max_position_embeddings)
        self._stopping = stopping(self._codec.stop, self._device)
        self._pool = job.pool()

    def round(self) -> dict[str, Any]:
        """All games, with both actions at every state."""
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
        return {"both": asdict(rollout)}

    def _fill(self, live: dict[int, _Episode], waiting: list[Game], rollout: Rollout) -> None:
        free = [slot for slot in range(self._job.slots) if slot not in live][: len(waiting)]
        starting = {slot: waiting.pop() for slot in free}
        for slot, answer in self._ask(self._pool.reset, starting, rollout).items():
            task, observation = answer
            live[slot] = _Episode(
                starting[slot], self._codec.first_prompt(task, observation.text), []
            )

    def _turn(self, live: dict[int, _Episode], rollout: Rollout) -> None:
        elicitation, started_at = self._job.elicitation, time.perf_counter()
        prompts = [episode.prompt for episode in live.values()]
        responses = self._generate(prompts, elicitation.max_new_tokens)
        prefix = self._codec.encode(elicitation.prompt_prefix)
        beside = self._generate(
            [prompt + prefix for prompt in prompts], elicitation.max_action_tokens
        )
        rollout.sampler_s += time.perf_counter() - started_at
        rollout.new_tokens += sum(map(len, responses)) + sum(map(len, beside))
        acted = {slot: self._read(ids) for slot, ids in zip(live, responses, strict=True)}
        answers = self._ask(
            self._pool.step, {slot: action for slot, (action, _) in acted.items()}, rollout
        )
        for (slot, (action, sampled)), ids in zip(acted.items(), responses, strict=True):
            episode, answer = live[slot], answers[slot]
            episode.acted.append(action or self._codec.decode(ids))
            rollout.won += answer.won
            if answer.won or answer.done:
                self._end(live, slot, rollout)
            else:
                episode.prompt = episode.prompt + self._codec.next_prompt(
                    action if sampled is None else sampled, answer.text
                )

    def _ask(self, method, requests: dict[int, Any], rollout: Rollout) -> dict[int, Any]:
        """What the environments answer; nothing is decoded meanwhile."""
        started_at = time.perf_counter()
        answers = method(requests) if requests else {}
        took = time.perf_counter() - started_at
        rollout.environment_s += took
        rollout.waited_s += took
        for answer in answers.values():
            if isinstance(answer, EnvError):
                raise answer
        return answers

    def _end(self, live: dict[int, _Episode], slot: int, rollout: Rollout) -> None:
        episode = live.pop(slot)
        rollout.acted[episode.game.id] = episode.acted

    def _read(self, ids: list[int]) -> tuple[str, list[int] | None]:
        """The action of a CoT response, and its ids where they go on as they are."""
        stopped = end_of(ids, self._codec.stop) is not None
        response = formats.parse_response(self._codec.decode(ids), prefilled=False, stopped=stopped)
        if response.action is None or not self._codec.encodable(response.action):
            return "", None
        return response.action, action_ids(self._codec, ids, response.action, opened="")

    def _generate(self, prompts: list[list[int]], most: int) -> list[list[int]]:
        """Each prompt's new ids, up to and with what stopped it."""
        import torch
        from transformers import StaticCache

        length = max(map(len, prompts))
        ids_BT = torch.full((len(prompts), length), self._codec.pad_id)
        mask_BT = torch.zeros_like(ids_BT)
        for row, prompt in enumerate(prompts):
            ids_BT[row, length - len(prompt) :] = torch.tensor(prompt)
            mask_BT[row, length - len(prompt) :] = 1
        with torch.inference_mode():
            made_BT = self._model.generate(
                input_ids=ids_BT.to(self._device),
                attention_mask=mask_BT.to(self._device),
                max_new_tokens=most,
                do_sample=False,
                # As cache_implementation="static" has it, but of this batch's length: that one keeps the longest there has ever been.
                past_key_values=StaticCache(config=self._model.config, max_cache_len=length + most),
                disable_compile=True,
                pad_token_id=self._codec.pad_id,
                **self._stopping,
            )
        return [made[: end_of(made, self._codec.stop)] for made in made_BT[:, length:].tolist()]

    def describe(self) -> dict[str, Any]:
        """What it runs on."""
        return torch_facts(self._device)

    def close(self) -> None:
        self._pool.close()


def end_of(ids: Sequence[int], stop: Sequence[Sequence[int]]) -> int | None:
    """Where the first stop sequence ends; None where there is none."""
    ends = (
        end
        for end in range(1, len(ids) + 1)
        if any(tuple(ids[:end][-len(tag) :]) == tuple(tag) for tag in stop)
    )
    return next(ends, None)


def stopping(stop: Sequence[Sequence[int]], device: Any) -> dict[str, Any]:
    """What `generate` is to stop at: ids where the stop sequences are single ones, else a look at each row's last ids."""
    if all(len(tag) == 1 for tag in stop):
        return {"eos_token_id": [tag[0] for tag in stop]}
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    tags = [torch.tensor(tag, device=device) for tag in stop]

    class AtSequence(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.stack([(input_ids[:, -len(tag) :] == tag).all(-1) for tag in tags]).any(0)

    return {"stopping_criteria": StoppingCriteriaList([AtSequence()])}
