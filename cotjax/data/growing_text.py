"""The pieces of one growing text (`cotjax.formats.search`) -> ids with roles."""

from __future__ import annotations

import re

from cotjax.data.text_codec import TextCodec
from cotjax.errors import DataError, EnvError
from cotjax.formats import search
from cotjax.masking import Role

Segments = list[tuple[list[int], Role]]
# Texts that a tokenizer of growing texts should have as one token each; others may spell them.
TOKENS = (*search.SEARCH_TAGS, search.ANSWER_OPEN)
# Queries and answers are actions in tags of one kind; what they say has a role each.
ROLES = {
    search.REASONING: Role.REASONING,
    search.QUERY_OPEN: Role.ACTION_OPEN,
    search.QUERY: Role.ACTION,
    search.QUERY_CLOSE: Role.ACTION_CLOSE,
    search.OBSERVATION: Role.OBSERVATION,
    search.BOX_OPEN: Role.ACTION_OPEN,
    search.ANSWER: Role.ANSWER,
    search.BOX_CLOSE: Role.ACTION_CLOSE,
}
_MARK = re.compile("({}|{})".format("|".join(map(re.escape, search.SEARCH_TAGS)), r"\\boxed\s*\{"))


class GrowingText:
    """Encodes what a model writes in a growing text, and what is appended to it.

    A text is tokenised once, tag by tag and stretch by stretch. So results that a model writes
    itself after `<search_result>` have the same ids as a retriever's, if they are the same.

    `format`: the world's. Raises DataError where the tokenizer cannot encode a tag.
    """

    def __init__(self, codec: TextCodec, format: search.Growing):
        self._codec, self._format = codec, format
        for mark in search.MARKS:
            codec.encode(mark)

    def action_of(self, piece: search.Piece) -> str:
        """Return the action that the environment receives; "" where the text is over."""
        return self._format.action_of(piece)

    def piece_ids(self, thought: str | None, action: str) -> list[int]:
        """Return the ids of `piece`."""
        return [i for ids, _ in self.piece(thought, action) for i in ids]

    def observed_ids(self, observation: str) -> list[int]:
        """Return the ids of `observed`, of any text (see `lenient` of `encode_plain`)."""
        return [i for ids, _ in self.observed(observation, lenient=True) for i in ids]

    def piece(self, thought: str | None, action: str) -> Segments:
        """Return a step as the piece that a model writes; an answer with the end of the turn.

        Raises DataError for a step that cannot be written so, or that contains a tag.
        """
        try:
            piece = self._format.piece_of(thought, action)
        except EnvError as error:
            raise DataError(str(error)) from None
        for what, text in (("thought", thought), ("action", action)):
            if tag := search.tag_in(text or ""):
                raise DataError(f"the {what} contains {tag!r}, a tag; remove it from {text!r:.60}")
        segments = text_segments(self._codec, search.piece_text(piece))
        if piece.query is None:
            segments.append((self._codec.encode(self._codec.template.response_end), Role.END))
        return segments

    def observed(self, observation: str, *, lenient: bool = False) -> Segments:
        """Return what follows a search: the results and the line breaks."""
        codec = self._codec
        ids: list[int] = []
        opened, text, closed = search.divided(observation)
        for tag, content in ((opened, text), (closed, "")):
            ids += codec.encode(tag) if tag else []
            ids += codec.encode_plain(content, "the results", lenient=lenient) if content else []
        return [([*ids, *codec.encode(search.RESULT_GAP)], Role.OBSERVATION)]


def text_segments(codec: TextCodec, text: str) -> Segments:
    """Return the segments of a growing text, or of a part of one that begins in a thought.

    Raises DataError for what the tokenizer cannot encode.
    """
    segments: Segments = []
    for span in search.spans(text):
        for part in filter(None, _MARK.split(span.text)):
            marked = _MARK.fullmatch(part) or part.isspace()
            ids = codec.encode(part) if marked else codec.encode_plain(part, f"the {span.kind}")
            segments.append((ids, ROLES[span.kind]))
    return segments
