"""Growing texts played by rule: codecs, questions over three pages, and a policy with a script."""

import json
from dataclasses import dataclass, field

from cotjax.data.codec import Codec
from cotjax.data.growing_text import TOKENS
from cotjax.data.word_tokenizer import build_word_tokenizer
from cotjax.envs.base import Game
from cotjax.envs.pool.pool import EnvPool
from cotjax.envs.search_qa.env import FIRST, LIMIT, SearchQaEnv, result_text
from cotjax.envs.search_qa.growing import SearchPieces
from cotjax.envs.search_qa.library import Page
from cotjax.formats import CHATML, Prompt
from cotjax.formats.search import RESULT_CLOSE, RESULT_GAP, RESULT_OPEN, SEARCH_CLOSE
from helpers import tiny
from helpers.rollouts import Generation, Prompts

PROMPT = Prompt(task_text="Question: {task}", growing=SearchPieces())
PAGES = (
    Page("Bel Tor", "Bel Tor was born in Jor Ko."),
    Page("Jor Ko", "Jor Ko is a town of Ma Ti."),
    Page("Sa Mel", "Sa Mel was born in Gor Ti."),
)
QUESTIONS = {
    "one": ("What is the birthplace of Bel Tor?", "Jor Ko"),
    "two": ("What is the land of the birthplace of Bel Tor?", "Ma Ti"),
}
# What the policy writes, piece by piece.
SCRIPT = {
    "one": (
        "I need the birthplace of Bel Tor. <begin_search> Bel Tor born </end_search>",
        "It is Jor Ko. </think>\n\n\\boxed{Jor Ko}<|im_end|>",
    ),
    "two": (
        "I need the birthplace of Bel Tor. <begin_search> Bel Tor born </end_search>",
        "It is Jor Ko. I need its land. <begin_search> Jor Ko land </end_search>",
        "It is Ma Ti. </think>\n\n\\boxed{Ma Ti}<|im_end|>",
    ),
}
WORDS = (
    *(f"{page.title} {page.text}" for page in PAGES),
    *(text for pair in QUESTIONS.values() for text in pair),
    "result 1 2 3: I need its land. It is } Question: search answer no Invalid the query is empty.",
    FIRST,
    LIMIT,
)


def word_codec():
    """Return a codec with a token for each word and tag."""
    return Codec(build_word_tokenizer(WORDS, CHATML, TOKENS), CHATML, PROMPT)


def letter_codec():
    """Return a codec over bytes and merges, which spells tags and keeps line breaks."""
    return Codec(tiny.subword_codec()._tokenizer, CHATML, PROMPT)


class Pages:
    """A retriever: the pages whose title is in the query. It fails for the query "fail"."""

    def __init__(self, pages=PAGES):
        self._pages = pages

    def search(self, query, split, k):
        if query == "fail":
            raise ConnectionError("no server")
        return [page for page in self._pages if page.title in query][:k]


def questions(folder, names=tuple(QUESTIONS)):
    """Write the questions' file; return their games."""
    path = folder / "train.jsonl"
    lines = [
        {"id": name, "task_type": "one_hop", "question": text, "answers": [answer], "corpus": ""}
        for name, (text, answer) in QUESTIONS.items()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [Game(name, str(path), "train", "one_hop") for name in names]


def environments(slots=2, pages=PAGES, max_steps=30):
    """Return environments in this process."""
    return EnvPool(lambda: SearchQaEnv(max_steps, lambda game: Pages(pages)), slots, 0)


@dataclass
class ScriptPolicy(Prompts):
    """Writes its script, piece after piece, and results as `results` says from the query's text.

    `letters`: it writes letter by letter, as no tokenizer would encode a text.
    """

    codec: object
    script: dict = field(default_factory=lambda: SCRIPT)
    questions: dict = field(default_factory=lambda: {n: text for n, (text, _) in QUESTIONS.items()})
    slots: int = 2
    max_length: int = 4000
    letters: bool = False
    results: object = None
    stops: list = field(default_factory=list)
    prompts: dict = field(default_factory=dict)

    def sample(self, prefixes, *, max_new, seeds, temperature, stop=None, **how):
        self.stops.append(stop)
        answers = {}
        for slot, prefix in prefixes.items():
            said = self.codec.decode([*self.prompts[slot], *prefix])
            text = said.partition("assistant")[2]
            name = next(n for n, asked in self.questions.items() if _joined(asked) in _joined(said))
            if stop is not None:
                ids = self.results(text)
                closed = RESULT_CLOSE in self.codec.decode(ids)
            else:
                pieces = self.script[name]
                ids = self._ids(pieces[min(text.count(SEARCH_CLOSE), len(pieces) - 1)])
                closed = True
            answers[slot] = Generation(ids[:max_new], [-0.5] * len(ids[:max_new]), closed)
        return answers

    def _ids(self, text):
        if self.letters:
            return [id for letter in text for id in self.codec.encode(letter)]
        return self.codec.encode(text)


def _joined(text):
    return "".join(text.split())


def real_results(codec, pages=PAGES):
    """Return `results` of a policy that writes what a retriever would find."""

    def results(text):
        query = text.rpartition("<begin_search>")[2].partition("</end_search>")[0].strip()
        found = result_text(Pages(pages).search(query, "train", 3))
        ids = codec.growing.observed_ids(found)
        before, after = len(codec.encode(RESULT_OPEN)), len(codec.encode(RESULT_GAP))
        return ids[before : len(ids) - after]

    return results
