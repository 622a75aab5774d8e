"""Which facts a model knows by itself, so that it is known when it has to search.

Each question about a single fact is answered several times, right behind the prompt, without
reasoning or a search. A fact is known where enough of the answers are right.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from cotjax.data.codec import Codec
from cotjax.envs.lessons import Lessons, Recall
from cotjax.envs.worlds import World, load_world
from cotjax.errors import UsageError
from cotjax.rollout.contracts import Policy
from cotjax.rollout.elicitation import Elicitation
from cotjax.rollout.episode import response_seed
from cotjax.rollout.growing import ANSWER_NOW, read_piece
from cotjax.runtime.progress import Reporter
from cotjax.study.base import base_folder, make_start
from cotjax.study.evaluate import elicitation_of
from cotjax.study.players import playing_mesh, sampler_of
from cotjax.study.stages import FACTS, plans_of
from cotjax.study.training_data import load_codec
from cotjax.train.fingerprints import Fingerprints

TEMPERATURE, TOP_P = 0.7, 0.8  # of the answers, as the paper samples


def right_answers(
    policy: Policy,
    codec: Codec,
    world: World,
    elicitation: Elicitation,
    recalls: Sequence[Recall],
    samples: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Counter[str]:
    """Return how many of `samples` answers to each question are right, by its id."""
    assert codec.growing is not None, "the prompt is of turns"
    right: Counter[str] = Counter({recall.id: 0 for recall in recalls})
    how = dataclasses.replace(elicitation, temperature=TEMPERATURE, top_p=TOP_P, top_k=0)
    opened = codec.prefill(ANSWER_NOW)
    for start in range(0, len(recalls), policy.slots):
        asked = dict(enumerate(recalls[start : start + policy.slots]))
        policy.reset(range(policy.slots))
        policy.extend(
            {slot: codec.first_prompt(x.task, x.observation) for slot, x in asked.items()}
        )
        for number in range(samples):
            seeds = {s: response_seed(0, x.id, number, "closed book", 0) for s, x in asked.items()}
            made = policy.sample(
                dict.fromkeys(asked, opened),
                max_new=how.max_action_tokens,
                seeds=seeds,
                **how.how("cot"),
            )
            for slot, recall in asked.items():
                _, piece = read_piece(made[slot], codec, prefix=ANSWER_NOW, seed=seeds[slot])
                wanted = dataclasses.replace(piece, answer=recall.answer)
                is_right = piece.answer is not None and (
                    world.meaning(codec.growing.action_of(piece))
                    == world.meaning(codec.growing.action_of(wanted))
                )
                right[recall.id] += is_right
        report(start + len(asked), len(recalls))
    policy.reset(range(policy.slots))
    return right


def own_lessons(config: ConfigDict, run: Path, lessons: Lessons, reporter: Reporter) -> Lessons:
    """Return the lessons by what the base knows, which is asked once and kept with the questions.

    `run`: the run's folder.

    Raises:
      UsageError: the base has no weights yet, or a stage teaches facts.
    """
    settings, base = config.autocoa, base_folder(config)
    field = f"autocoa.closed_book is {settings.closed_book}"
    if base is None:
        raise UsageError(
            f"{field}, and model.base is 'random', which knows nothing: set it to 0, or give a base"
        )
    if taught := [name for name, plan in plans_of(config).items() if plan.lesson == FACTS]:
        raise UsageError(
            f"{field}, and stage {taught[0]!r} teaches facts: set it to 0, or remove that stage"
        )
    fingerprints = Fingerprints(run / "fingerprints.json")
    asked = {
        "base": fingerprints.of_base(base),
        "samples": settings.closed_book,
        "least_right": settings.least_right,
        "temperature": TEMPERATURE,
        "top_p": TOP_P,
    }
    if (kept := lessons.by_own_facts(asked)) is not None:
        return kept
    start = make_start(config, run, (), reporter)
    codec, mesh = load_codec(config, start.tokenizer), playing_mesh(config)
    recalls = lessons.recalls()
    slots = min(config.evaluate.slots, len(recalls))
    sampler = sampler_of(config.evaluate, start.model, codec, mesh, slots)
    sampler.load(start.params_of(config.seed)(mesh))
    with reporter.stage("own_facts", "Asking the base for single facts") as stage:
        right = right_answers(
            sampler,
            codec,
            load_world(config.world),
            elicitation_of(config, codec.template),
            recalls,
            settings.closed_book,
            lambda done, total: stage.update(done, total, "facts"),
        )
    known = {name for name, count in right.items() if count >= settings.least_right}
    reporter.say(f"  closed book: the base knows {len(known):,} of {len(recalls):,} facts")
    made = lessons.by_own_facts(asked, known)
    assert made is not None, "they were given"
    return made
