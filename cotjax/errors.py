"""What can go wrong, in a few kinds. The command line prints the message alone, on one line, and exits with the kind's code."""


class CotjaxError(Exception):
    """Base of every error that cotjax raises on purpose. Its message is one line: what, where, and what to do."""

    exit_code = 1


class UsageError(CotjaxError):
    """The user asked for something that cannot be: an unknown key, a count of zero, a folder that is taken."""

    exit_code = 2


class DataError(CotjaxError):
    """A file does not hold what it should, or cannot be written; the message names the file, and the line where there is one."""

    exit_code = 3


class NotFiniteError(DataError):
    """A model's logits are NaN or infinite, so no token can be drawn; `slot` is the sampler's slot that they are of."""

    def __init__(self, message: str, slot: int):
        super().__init__(message)
        self.slot = slot


class EnvError(CotjaxError):
    """An environment failed (not the agent); the message names the game and the step."""

    exit_code = 4


class InternalError(CotjaxError):
    """cotjax broke a rule of its own: a bug, to be reported with the message."""

    exit_code = 5


class Stopped(CotjaxError):
    """Asked to stop by SIGTERM, as before a preemption: what is done is saved, and the same command goes on from it."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again
