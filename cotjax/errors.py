"""The kinds of errors that cotjax raises on purpose.

The command line prints the message alone, on one line, and exits with the kind's code.
"""


class CotjaxError(Exception):
    """Base of the kinds below; only these are raised.

    A message is one line: what is wrong, where, and what to do.
    """

    exit_code = 1


class UsageError(CotjaxError):
    """An impossible request: an unknown field, a count of zero, a folder that is taken."""

    exit_code = 2


class DataError(CotjaxError):
    """A file is malformed or cannot be written; the message names the file, and the line."""

    exit_code = 3


class NotFiniteError(DataError):
    """A model's logits are NaN or infinite, so that no token can be drawn.

    slot: the sampler's slot with these logits.
    """

    def __init__(self, message: str, slot: int):
        super().__init__(message)
        self.slot = slot


class EnvError(CotjaxError):
    """An environment failed (not the agent); the message names the game and the step."""

    exit_code = 4


class InternalError(CotjaxError):
    """A bug in cotjax: one of its own rules is broken. To be reported with the message."""

    exit_code = 5


class Stopped(CotjaxError):
    """SIGTERM asked to stop, as before a preemption; finished work is saved."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: the same command resumes
