"""Messages between a pool and its environment processes: JSON objects, one a line.

JSON rather than pickle, so that bytes from a broken process are rejected and never executed. Lines
rather than `multiprocessing.connection`, whose `recv_bytes` blocks until an announced length has
arrived and whose `send_bytes` blocks until the other end reads: a process that stops in the middle
of a message would stop the pool too.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

from cotjax import errors
from cotjax.errors import CotjaxError

# Bytes of a message. The longest observation that a pool takes has fewer, however it is escaped.
_LONGEST = 64 << 20
_READ_SIZE = 1 << 16
# Characters of an error's text.
_LONGEST_TEXT = 1000


class MalformedMessageError(Exception):
    """The bytes from a channel are not a message."""


class Channel:
    """One end of a socket pair."""

    def __init__(self, end: socket.socket):
        self.socket = end
        self._received = bytearray()

    def send(self, message: dict[str, Any], timeout_s: float | None = None) -> None:
        """Send a message.

        Raises OSError when the other end is closed, and TimeoutError, which is one, when it does
        not read in time.
        """
        self.socket.settimeout(timeout_s)
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> Iterator[dict[str, Any]]:
        """Read once, and yield the messages that are complete.

        Blocks until there is something to read. Raises EOFError when the other end is closed,
        OSError, or MalformedMessageError.
        """
        self.socket.settimeout(None)
        piece = self.socket.recv(_READ_SIZE)
        if not piece:
            raise EOFError
        start = len(self._received)
        self._received += piece
        while (end := self._received.find(b"\n", start)) >= 0:
            line = bytes(self._received[:end])
            del self._received[: end + 1]
            start = 0
            yield _parse(line)
        if len(self._received) > _LONGEST:
            raise MalformedMessageError(f"{len(self._received):,} bytes without an end")

    def close(self) -> None:
        """Close this end."""
        self.socket.close()


def _parse(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise MalformedMessageError(f"not JSON: {line[:60]!r}") from None
    if not isinstance(message, dict):
        raise MalformedMessageError(f"not a JSON object: {line[:60]!r}")
    return message


class Wakeup:
    """Wakes a thread that waits for it and for sockets, with `multiprocessing.connection.wait`."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._ours.fileno()

    def set(self) -> None:
        """Wake whoever waits, now or later."""
        with contextlib.suppress(OSError):  # closed: nobody waits
            self._theirs.sendall(b"!")

    def clear(self) -> None:
        """Undo `set`."""
        with contextlib.suppress(OSError):
            while self._ours.recv(_READ_SIZE):
                pass

    def close(self) -> None:
        """Close both ends."""
        self._ours.close()
        self._theirs.close()


def error_to_message(error: CotjaxError) -> list[str]:
    """Return an error of the package as JSON: its class and its text."""
    return [type(error).__name__, error_text(error)]


def error_from_message(message: list[str]) -> CotjaxError:
    """Return the error that was sent; of the base class where its own cannot be made of a text."""
    name, text = message
    kind = getattr(errors, str(name), None)
    if isinstance(kind, type) and issubclass(kind, CotjaxError):
        with contextlib.suppress(TypeError):
            return kind(str(text))
    return CotjaxError(str(text))


def error_text(error: BaseException) -> str:
    """Return an error's text, valid Unicode and of limited length."""
    return clean(str(error))[:_LONGEST_TEXT]


def clean(text: str) -> str:
    """Return the text with U+FFFD for lone surrogates, which files and tokenizers reject."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
