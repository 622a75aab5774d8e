"""The sides of a pair: numbers that stand beside a response's ids, 0 on prompts."""

CHOSEN = 1  # the response, or episode, that is preferred
REJECTED = 2
CROSSED = 3  # FRODO's third branch: the rejected thought, and the chosen action
