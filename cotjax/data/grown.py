"""Played growing texts -> rows of a policy batch, from ids alone (compare `cotjax.data.rollouts`).

    prompt … <think> | sampled ids 1 | results 1   | sampled ids 2 | …
    PROMPT             trained on      OBSERVATION   trained on

A text is one sequence without branches. The results have no weight, whoever wrote them: not in the
policy's loss, its KL term or its entropy, and they count in no denominator.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cotjax.data.growing_text import ROLES
from cotjax.data.rollouts import PlayedExample, PlayedTurn, check_played, roles_by_token
from cotjax.data.text_codec import TextCodec
from cotjax.errors import DataError
from cotjax.formats import search
from cotjax.masking import Role


def grown_examples(
    codec: TextCodec,
    name: str,
    turns: Sequence[PlayedTurn],
    advantages: Sequence[float],
    max_length: int,
) -> list[PlayedExample]:
    """Return the example of a text, up to the last piece that ends within `max_length` tokens.

    There is none where no piece does. Arguments and errors are those of
    `cotjax.data.rollouts.played_examples`; also DataError for a prompt that does not go on with
    what was sampled.
    """
    check_played(name, turns, advantages)
    ids: list[int] = []
    roles: list[int] = []
    # Of each token: its log-probability, whether it was sampled, and its advantage.
    values: list[tuple[float, float, float]] = []
    steps: list[int] = []
    kept, earlier = 0, PlayedTurn((), (), (), (), True)
    for number, (turn, advantage) in enumerate(zip(turns, advantages, strict=True)):
        count = len(earlier.ids)
        if turn.prompt[:count] != earlier.ids:
            raise DataError(
                f"{name}, step {number}: the prompt does not go on with what was sampled"
            )
        shown = [*turn.prompt[count:], *turn.prefix]
        ids += [*shown, *turn.ids]
        roles += [int(Role.OBSERVATION if number else Role.PROMPT)] * len(shown)
        roles += _piece_roles(codec, turn).tolist()
        values += [(0.0, 0.0, 0.0)] * len(shown)
        values += [(log_prob, 1.0, advantage) for log_prob in turn.log_probs]
        earlier = turn
        if len(ids) > max_length:
            break
        if turn.ids:
            steps.append(number)
            kept = len(ids)
    if not kept:
        return []
    log_probs, sampled, own = np.asarray(values[:kept], np.float32).T.copy()
    return [
        PlayedExample(
            id=name,
            first_step=0,
            steps=np.asarray(steps, np.int32),
            ids=np.asarray(ids[:kept], np.int32),
            roles=np.asarray(roles[:kept], np.int32),
            branches=np.zeros(kept, np.int32),
            positions=np.arange(kept, dtype=np.int32),
            log_probs=log_probs,
            sampled=sampled,
            advantages=own,
        )
    ]


def _piece_roles(codec: TextCodec, turn: PlayedTurn) -> np.ndarray:
    """Return the role of each sampled id of a piece, by its position in the text.

    All of an invalid piece is reasoning, so there is no action to drop.
    """
    if not turn.valid:
        return np.full(len(turn.ids), Role.REASONING, np.int8)
    return piece_roles(codec, turn.ids)


def piece_roles(codec: TextCodec, ids: Sequence[int]) -> np.ndarray:
    """Return the role of each id of a well-formed piece, int8, by its position in the text."""
    pieces = codec.pieces
    texts = [(pieces[id] or "") if id < len(pieces) else "" for id in ids]
    written, end = "".join(texts), codec.template.response_end
    text = written.rstrip().removesuffix(end) if end else written
    of_characters = np.full(len(written), Role.END, np.int8)
    at = 0
    for span in search.spans(text):
        of_characters[at : at + len(span.text)] = ROLES[span.kind]
        at += len(span.text)
    return roles_by_token(texts, of_characters)
