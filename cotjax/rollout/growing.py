"""One growing text: how its pieces are read, how it goes on, and who writes the results.

    prompt <think> | piece 1 … </end_search> | results | piece 2 … \\boxed{…} <end> |
                   | as it was sampled       | appended, an observation, whoever wrote it

The next prompt is all sampled ids and the ids of the results. A piece that does not end in a search
is the last one. An invalid search is refused by the environment, whose answer is appended.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cotjax.envs.base import Observation
from cotjax.errors import NotFiniteError
from cotjax.formats import search
from cotjax.rollout.contracts import Codec, Generation, GrowingText, Policy
from cotjax.rollout.elicitation import Elicitation
from cotjax.rollout.episode import Chosen, RunningEpisode, response_of
from cotjax.rollout.record import Response
from cotjax.rollout.tokens import text_to_stop

# What opens the answer without further reasoning: the prompt action of a growing text.
ANSWER_NOW = f"{search.THINK_CLOSE}{search.RESULT_GAP}{search.ANSWER_OPEN}"


def read_piece(
    generation: Generation, codec: Codec, *, prefix: str, seed: int
) -> tuple[Response, search.Piece]:
    """Parse a piece; return what is recorded of it, and the piece. `prefix`: the text before it."""
    growing = codec.growing
    assert growing is not None, "the prompt is of turns"
    text = codec.decode(generation.ids)
    read = text_to_stop(codec, generation.ids, text)
    piece = search.parse_piece(prefix + read, stopped=generation.stopped)
    response = response_of(
        generation,
        text,
        seed=seed,
        thought=piece.thought,
        action=growing.action_of(piece) if piece.reason is None else None,
        reason=piece.reason,
        problem=piece.problem,
    )
    return response, piece


def without_results(response: Response) -> Response:
    """Return a response as invalid: the results that the policy wrote after it do not end."""
    reason = "unclosed_result"
    problem = search.SEARCH_PROBLEMS[reason]
    more = {"valid": False, "reason": reason, "problem": problem, "action": None}
    return response.model_copy(update=more)


@dataclass(frozen=True)
class Results:
    """What is appended after a search.

    Attributes:
      ids: all of them, line breaks included.
      closed: they end with `</search_result>`.
    """

    ids: list[int]
    closed: bool = True


class SimulatedSearch:
    """A search that the policy answers itself, from what it has written so far.

    The results are decoded after the piece and `<search_result>`, in the policy's own slots, whose
    prompts stay as they are. They are observations, as a retriever's are.
    """

    def __init__(self, policy: Policy, codec: Codec, elicitation: Elicitation):
        self._policy, self._codec, self._elicitation = policy, codec, elicitation
        self._open = codec.encode(search.RESULT_OPEN)
        self._stop = (search.RESULT_CLOSE, codec.stop_texts[-1])

    def results(
        self, live: Mapping[int, RunningEpisode], pieces: Mapping[int, Sequence[int]]
    ) -> dict[int, tuple[Results, str]]:
        """Return the results, and their text as an environment shows it, after each slot's piece.

        Raises NotFiniteError, naming the game and the step.
        """
        if not pieces:
            return {}
        started_at = time.perf_counter()
        try:
            generations = self._policy.sample(
                {slot: [*ids, *self._open] for slot, ids in pieces.items()},
                max_new=self._elicitation.max_result_tokens,
                seeds={slot: live[slot].draw_seed("result") for slot in pieces},
                stop=self._stop,
                **self._elicitation.how("cot"),
            )
        except NotFiniteError as error:
            raise NotFiniteError(f"{live[error.slot].where}: {error}", error.slot) from None
        seconds = (time.perf_counter() - started_at) / len(pieces)
        found = {}
        for slot, generation in generations.items():
            live[slot].sampler_s += seconds
            ids = [*self._open, *generation.ids]
            text = self._codec.decode(ids)
            end = text.find(search.RESULT_CLOSE)
            ids += self._codec.encode(search.RESULT_GAP) if end >= 0 else []
            shown = text[: end + len(search.RESULT_CLOSE)] if end >= 0 else text
            found[slot] = Results(ids, closed=end >= 0), shown.strip()
        return found


def answered(
    live: Mapping[int, RunningEpisode],
    chosen: Mapping[int, Chosen],
    answers: Mapping[int, Observation],
    growing: GrowingText,
    simulated: SimulatedSearch | None,
) -> tuple[dict[int, Observation], dict[int, Results]]:
    """Return what each text goes on with, as observations and as ids.

    Args:
      answers: slot -> the environment's answer, of episodes that go on.
      simulated: in place of the retriever; what the environment refused is its own answer still.
    """
    asked = [slot for slot, answer in answers.items() if answer.accepted] if simulated else []
    written = simulated.results(live, {s: chosen[s].ids or [] for s in asked}) if simulated else {}
    texts = dict(answers)
    results: dict[int, Results] = {}
    for slot, answer in answers.items():
        if slot in written:
            results[slot], text = written[slot]
            texts[slot] = replace(answer, text=text)
        else:
            results[slot] = Results(growing.observed_ids(answer.text))
    return texts, results
