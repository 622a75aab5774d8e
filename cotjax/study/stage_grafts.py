"""Measures D5 on growing texts at the checkpoints of stages (`cotjax.diagnostics.grafts`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cotjax.data.codec import Codec
from cotjax.diagnostics.grafts import Graft, grafted, outcome, read_grafts, write_grafts
from cotjax.envs.lessons import Choice
from cotjax.rollout.contracts import Policy
from cotjax.rollout.elicitation import Elicitation
from cotjax.rollout.episode import response_seed
from cotjax.rollout.growing import read_piece


def measure_grafts(
    path: Path,
    checkpoint: str,
    policy: Callable[[], Policy],
    codec: Codec,
    elicitation: Elicitation,
    choices: Sequence[Choice],
    report: Callable[[int, int], None],
) -> None:
    """Write what a checkpoint does after each choice's contradicting thought, unless it is there.

    Args:
      checkpoint: its hash.
      policy: returns a policy with its weights.
      elicitation: how the next id is drawn, and the limit of what is decoded.
    """
    if read_grafts(path)[0] == checkpoint:
        return
    playing, found = policy(), list[Graft]()
    for start in range(0, len(choices), playing.slots):
        found += _after(playing, codec, elicitation, choices[start : start + playing.slots])
        report(len(found), len(choices))
    write_grafts(path, checkpoint, found)


def _after(
    policy: Policy, codec: Codec, elicitation: Elicitation, choices: Sequence[Choice]
) -> list[Graft]:
    """Return what a policy does after the thoughts of as many choices as it has slots, or fewer."""
    assert codec.growing is not None, "the prompt is of turns"
    thoughts = {slot: grafted(each.text, each.rejected) for slot, each in enumerate(choices)}
    policy.reset(range(policy.slots))
    policy.extend(
        {slot: codec.first_prompt(x.task, x.observation) for slot, x in enumerate(choices)}
    )
    prefixes = {slot: codec.encode_plain(text, "the thought") for slot, text in thoughts.items()}
    seeds = {slot: response_seed(0, x.id, 0, "graft", 0) for slot, x in enumerate(choices)}
    generations = policy.sample(
        prefixes, max_new=elicitation.max_new_tokens, seeds=seeds, **elicitation.how("cot")
    )
    grafts = []
    for slot, choice in enumerate(choices):
        _, piece = read_piece(
            generations[slot], codec, prefix=f"{thoughts[slot]} ", seed=seeds[slot]
        )
        known = not choice.searches
        grafts.append(Graft(choice.id, known, outcome(piece, choice.text, choice.rejected, known)))
    policy.reset(range(policy.slots))
    return grafts
