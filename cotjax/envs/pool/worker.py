"""A worker process: it answers for the environments of its slots."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from cotjax.envs.base import TextEnv
from cotjax.envs.pool.answers import ask, close_all, request_from_message
from cotjax.envs.pool.messages import Channel, error_to_message
from cotjax.errors import CotjaxError, UsageError


def serve(channel: Channel, factory: Callable[[], TextEnv], slots: Iterable[int]) -> None:
    """Make the environments, and answer requests until the channel closes; then close them.

    It first sends {"ready": true}, or {"error": ...}. Requests have "number", "slot" and
    "reset" or "step"; answers have the same "number" and "slot", and the fields of
    `cotjax.envs.pool.answers`.
    """
    envs: dict[int, TextEnv] = {}
    try:
        with contextlib.suppress(EOFError, OSError):
            try:
                envs.update((slot, factory()) for slot in slots)
            except Exception as error:
                channel.send({"error": error_to_message(as_package_error(error))})
                return
            channel.send({"ready": True})
            while True:
                for message in channel.receive():
                    slot = message["slot"]
                    answer = ask(envs[slot], request_from_message(message))
                    channel.send({"number": message["number"], "slot": slot} | answer)
    finally:
        close_all(envs.values())


def as_package_error(error: Exception) -> CotjaxError:
    """Return what a factory raised as an error of the package."""
    if isinstance(error, CotjaxError):
        return error
    return UsageError(
        f"a pool worker could not make its environments ({type(error).__name__}: {error})"
    )
