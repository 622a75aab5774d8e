"""A fork server for environments: a fresh interpreter imports them once, then forks each worker.

The interpreter is a fresh one because a fork of the caller would be unsafe: jax has threads. The
workers are forks because an import takes most of a second and 65 MB, and a fork neither. The server
ends with the caller, even when that is killed: it sees its socket close, gives the workers time to
close their environments, kills those that take too long, and removes their temporary folder. If the
server is killed, the kernel kills the workers (`descendants.die_with`), and the caller kills what
these have started.
"""

# The standard library's forkserver was tried (Python 3.11). It does not keep these properties
# (tests in tests/envs/test_pool*.py):
#
# - Nothing outlives a killed caller. Its workers hold the pipe whose end stops the server, so with
#   one worker hung or stopped, that worker, the server and the resource tracker stay.
# - A closed pool has ended its processes. There is one server a process. It lives until the caller
#   exits, and the private `_stop` blocks while a worker is hung.
# - What an environment has started ends with it. The server does not kill orphans that it adopts,
#   and its loop cannot be extended.
# - Workers import neither jax nor the caller's script. Each runs the caller's `__main__` again.
# - A worker that stops within a message costs one time limit. `Connection.recv_bytes` then blocks
#   for good.
# - The first environment imports what all need, once, and its errors are reported. Preloaded
#   modules are the same for all pools of a process, and errors in them are not reported.

from __future__ import annotations

import codecs
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from multiprocessing.connection import wait
from typing import Any

from cotjax.envs.pool.descendants import end_group, end_marked
from cotjax.envs.pool.messages import Channel, Wakeup, error_from_message
from cotjax.envs.pool.server import GRACE_S
from cotjax.errors import EnvError, UsageError
from cotjax.runtime.terminal import visible

# In the environment of all descendants of a server; its value is the server's temporary folder.
_MARK = "COTJAX_ENVIRONMENTS"
# Ctrl-C reaches every process of a terminal; only the caller obeys it.
_BOOTSTRAP = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); import json; "
    "sys.path[:] = json.loads(sys.argv[2]); "
    "from cotjax.envs.pool.server import run; run(int(sys.argv[1]), sys.argv[3])"
)


class ForkServer:
    """The caller's end of the server.

    Args:
      factory: pickled; makes one environment.
      start_s: time limit for starting a worker, in seconds.
      wakeup: set by another thread to make a waiting call give up.
    """

    def __init__(self, factory: bytes, start_s: float, wakeup: Wakeup):
        self._factory, self._start_s, self._wakeup = factory, start_s, wakeup
        self._open()

    def spawn(self, slots: list[int]) -> tuple[int, Channel]:
        """Start a worker for these slots; returns its process id and its channel (`worker.serve`).

        Raises:
          CotjaxError: what the factory raised.
          EnvError: no process can be started.
          UsageError: `wakeup` was set.
        """
        problem: OSError | None = None
        for _ in range(2):  # a server that was killed is started again, once
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    answer = self._ask({"slots": slots}, theirs)
            except OSError as error:
                ours.close()
                problem = error
                self.close()
                self._open()
                continue
            if "error" in answer:
                ours.close()
                raise error_from_message(answer["error"])
            return answer["pid"], Channel(ours)
        raise EnvError(
            f"the process that starts the environments is gone ({problem}); look for what kills "
            "it, such as too little memory"
        )

    def end(self, pid: int, at_once: bool) -> int | None:
        """End a worker, at once or after time to close; returns its exit code, None if unknown."""
        with contextlib.suppress(OSError):
            return self._ask({"end": pid, "at_once": at_once})["code"]
        return None

    def close(self) -> None:
        """End all workers. Those whose channel is closed get time to close their environments."""
        with contextlib.suppress(OSError):
            self._control.settimeout(GRACE_S)
            self._control.sendall(b"{}")
        self._control.close()
        try:
            # A server that never answered is still making its first environment, and does not
            # listen until it is done.
            self._process.wait(3 * GRACE_S if self._answered else 0.0)
        except subprocess.TimeoutExpired:
            end_group(self._process.pid)
            self._process.wait()
        if self._process.returncode:
            end_marked(_MARK, self._folder)
        self._relay.join(GRACE_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self) -> None:
        self._answered = False
        self._control, theirs = socket.socketpair()
        self._folder = tempfile.mkdtemp(prefix="cotjax-envs-")
        stderr, their_stderr = os.pipe()
        self._relay = threading.Thread(target=_relay, args=(stderr,), daemon=True)
        self._relay.start()
        arguments = [str(theirs.fileno()), json.dumps(list(map(str, sys.path))), self._folder]
        with theirs, open(their_stderr, "wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=self._environment(),
                # A signal to the caller's process group leaves the server alive to clean up.
                start_new_session=True,
            )
        with contextlib.suppress(OSError):  # it has died already: `spawn` will notice
            self._control.sendall(len(self._factory).to_bytes(8, "big") + self._factory)

    def _environment(self) -> dict[str, str]:
        # One thread of linear algebra a process: environments need no more, and threads do not
        # survive a fork.
        threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        return os.environ | threads | {"TMPDIR": self._folder, _MARK: self._folder}

    def _ask(self, request: dict[str, Any], passed: socket.socket | None = None) -> dict[str, Any]:
        """Return the answer to a request. Both fit into a socket's buffer."""
        self._control.settimeout(self._start_s)
        fds = [passed.fileno()] if passed else []
        socket.send_fds(self._control, [json.dumps(request).encode()], fds)
        ready = wait([self._control, self._wakeup.fileno()], self._start_s)
        if self._wakeup.fileno() in ready:
            raise UsageError("the pool is closed")
        if not ready:
            raise TimeoutError(f"no answer for {self._start_s:g} s")
        answer = self._control.recv(1 << 16)
        if not answer:
            raise ConnectionError("it has died")
        self._answered = True
        return json.loads(answer)


def _relay(fd: int) -> None:
    """Print what the environments write to their stderr, until the last of them has ended."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while piece := os.read(fd, 1 << 12):
        with contextlib.suppress(OSError, ValueError):  # the caller's own stderr is closed
            sys.stderr.write(visible(decoder.decode(piece)))
            sys.stderr.flush()
    os.close(fd)
