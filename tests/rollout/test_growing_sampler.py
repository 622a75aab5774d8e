"""A real sampler writes the results of its searches, from its own slots and to their tag."""

from collections import Counter

import jax
from helpers import tiny
from helpers.growing import ScriptPolicy, environments, questions, word_codec
from helpers.rollouts import play_games

from cotjax.envs.base import Play
from cotjax.formats.search import RESULT_CLOSE, RESULT_OPEN
from cotjax.model.params import init_params
from cotjax.sample.sampler import Sampler


class Scripted(Sampler):
    """Writes its script where no other stop is given; the results are its weights'."""

    def sample(self, prefixes, *, stop=None, **how):
        if stop is not None:
            self.drawn.append(super().sample(prefixes, stop=stop, **how))
            return self.drawn[-1]
        script = ScriptPolicy(self.codec, prompts={slot: self.prompt(slot) for slot in prefixes})
        return script.sample(prefixes, **how)


def test_results_end_at_their_tag_and_the_next_piece_follows_them(tmp_path):
    codec = word_codec()
    config = tiny.model_config(vocab_size=codec.vocab_size, layers=1, max_length=1024)
    sampler = Scripted(
        config,
        tiny.mesh(),
        slots=4,
        max_length=800,
        stop=codec.stop_texts,
        pad_id=codec.pad_id,
        max_new=200,
        pieces=codec.pieces,
    )
    sampler.codec, sampler.drawn = codec, []
    sampler.load(init_params(config, jax.random.key(0)))
    games = questions(tmp_path, ("one",))
    with environments(slots=4) as pool:
        episodes = play_games(
            codec,
            [Play(games[0], sample) for sample in range(8)],
            policy=sampler,
            environments=pool,
            kinds=(),
            simulated=True,
            max_new_tokens=40,
            max_result_tokens=200,
            temperature=8.0,
        )
    close, end = codec.encode(RESULT_CLOSE), list(codec.end_ids)
    ends = Counter()
    drawn = [each.ids for many in sampler.drawn for each in many.values()]
    for episode in episodes:
        first = episode.steps[0]
        ends[first.cot.reason] += 1
        if first.cot.valid:
            results = list(episode.steps[1].prompt_ids[len(first.cot.ids) :])
            assert results[:1] == codec.encode(RESULT_OPEN) and results[-1:] == close
            assert results.count(close[0]) == 1 and end[0] not in results
            assert results[1:] in drawn, "as they were sampled"
            assert episode.success
        else:
            assert not episode.success and len(episode.steps) == 1
    # At this temperature all tokens are about as likely, the end of the turn as the tag.
    assert {*ends} == {None, "unclosed_result"}
