"""The terms of the page, each in a sentence."""

from __future__ import annotations

GLOSSARY = {
    "action": "what a model tells the world to do at a step; its text between the action tags",
    "arm": "a model trained in one way; arms that differ by their seed alone are one",
    "base": "the model that arms were trained from; checkpoint 0. An arm that starts from a "
    "checkpoint of another one has that as its checkpoint 0",
    "checkpoint": "the state of an arm after so many updates of its parameters",
    "constrained action": "the most likely of the admissible actions, where no text is decoded",
    "CoT action": "the action that a model gives after its reasoning (chain of thought)",
    "CoT advantage": "what the CoT action has over the prompt action; the gap",
    "D1": "share of expert states in which the action is the expert's",
    "D1'": "the same, where an action is right too if the expert's way to the goal is no longer "
    "after it",
    "D2": "share of comparable expert states in which CoT action and prompt action are the same",
    "D3": "share of games that are won by whole episodes",
    "D4": "how often a judge prefers the CoT action, how often the prompt action",
    "D5": "what the action does where a thought is forced that supports another action",
    "D6": "where attention goes while the action is predicted: to which groups of tokens",
    "D7": "which groups of tokens the gradient of the action's loss reaches",
    "direct example": "a training example with the action alone, without a thought",
    "elicitation": "how an action is drawn out of a model: prompt, prefix, decoding",
    "equivalence": "the gap changed by less than the margin, by two one-sided tests",
    "expert state": "a state of an expert's episode of a held-out game; the same for all",
    "gap": "CoT action minus prompt action, of D1 or of D3",
    "Holm": "the correction that keeps the chance of any false verdict in a family at 5 %",
    "in-domain, out-of-domain": "with the task types that were trained on, and with what was "
    "held out of training",
    "interval": "95 %: of such intervals, 19 in 20 hold the value of all games (and seeds)",
    "margin": "the change of the gap that is too small to matter; fixed in the config",
    "nat": "unit of −log probability; an action that is 1 nat more is 2.7 times less likely",
    "pilot": "the base's rate, by which a domain is judged fit for comparison",
    "prompt action": "the action that a model gives at once, where the response begins with the "
    "action tag",
    "revision": "the CoT action is not the prompt action; helpful where the CoT action alone is "
    "the expert's, harmful where the prompt action alone is",
    "seed": "the number that draws the order of training; other seeds are other training runs",
    "share of a gain": "change of the prompt action over change of the CoT action; the rest is "
    "the gap's",
    "twin": "the arm that was trained on actions alone, whose prompt action is a ceiling",
    "valid, admissible": "a well-formed response with one action; and an action that the world "
    "offered",
}
