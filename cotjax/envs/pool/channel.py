"""Messages between a pool and its environment processes: JSON in frames that a damaged byte cannot pass through.

    length, 4 bytes | CRC-32 of the message, 4 bytes | message, UTF-8 JSON

JSON rather than pickle, so that bytes from a process gone wild are refused and never executed.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

_HEAD = struct.Struct(">II")
_LONGEST = 64 << 20  # bytes; an observation has a few thousand
_AT_ONCE = 1 << 16


class GarbledError(Exception):
    """What came through the channel is not a message."""


class Channel:
    """One end of a socket pair. Sending and receiving never wait longer than they are told to."""

    def __init__(self, end: socket.socket):
        self.socket = end
        self._come = bytearray()

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: Any, seconds: float | None = None) -> None:
        """Raises OSError (TimeoutError is one) when the other end is gone, or does not read for so long."""
        body = json.dumps(message).encode()
        self.socket.settimeout(seconds)
        self.socket.sendall(_HEAD.pack(len(body), zlib.crc32(body)) + body)

    def receive(self) -> Iterator[Any]:
        """The messages that are whole after one read; waits until there is something to read.

        Raises EOFError when the other end is gone, OSError, or GarbledError.
        """
        self.socket.settimeout(None)
        come = self.socket.recv(_AT_ONCE)
        if not come:
            raise EOFError
        self._come += come
        while len(self._come) >= _HEAD.size:
            length, checksum = _HEAD.unpack_from(self._come)
            if length > _LONGEST:
                raise GarbledError(f"a frame of {length} bytes")
            if len(self._come) < _HEAD.size + length:
                return
            body = bytes(self._come[_HEAD.size : _HEAD.size + length])
            del self._come[: _HEAD.size + length]
            if zlib.crc32(body) != checksum:
                raise GarbledError("a wrong checksum")
            try:
                message = json.loads(body)
            except (
                ValueError,
                RecursionError,
            ):  # eight zero bytes are an empty frame with a right checksum
                raise GarbledError("a frame that is not JSON") from None
            yield message

    def close(self) -> None:
        self.socket.close()


class Bell:
    """Wakes a thread that waits for it along with its sockets (`multiprocessing.connection.wait`)."""

    def __init__(self):
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)

    def fileno(self) -> int:
        return self._ours.fileno()

    def ring(self) -> None:
        with contextlib.suppress(OSError):  # it is closed, so nobody waits
            self._theirs.sendall(b"!")

    def quiet(self) -> None:
        """Forget that it rang."""
        with contextlib.suppress(OSError):
            while self._ours.recv(_AT_ONCE):
                pass

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()
