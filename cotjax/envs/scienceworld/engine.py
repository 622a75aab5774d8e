"""ScienceWorld's simulator: a Java process of bounded memory, spoken to through py4j.

The package's own `ScienceWorldEnv` is not used. At every step it lists the valid actions and asks
for the inventory and the surroundings, which takes longer than the step itself; its process has no
bound on memory; and its port accepts calls from every user of the machine.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import os
import shutil
from collections.abc import Callable
from typing import Any

from cotjax.envs.scienceworld.tasks import SIMPLIFICATIONS, Loaded
from cotjax.errors import UsageError

_VERSION = "1.2.3"
_INSTALL = f'pip install "scienceworld=={_VERSION}" (or "cotjax[scienceworld]")'
_JAVA_OPTIONS = [
    "-Xmx512m",  # it grows to 1.2 to 3.3 GB otherwise
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",  # games are short: thorough compilation costs more than it saves
    "-XX:+ExitOnOutOfMemoryError",
    # The simulator goes through sets in the order of their objects' hash codes, which differ from
    # run to run. With one hash code for all, the order is that of insertion.
    "-XX:+UnlockExperimentalVMOptions",
    "-XX:hashCode=2",
    "-XX:-UsePerfData",  # no files in the machine's temporary folder, which a killed process leaves
    "-Duser.language=en",  # the simulator lower-cases actions by the language of the machine
]
_ENDS_WITHIN_S = 5.0
# Games that one Java process plays side by side. Eight took 110 MB of its heap of 512 MB.
ENVS_A_PROCESS = 8


class EngineError(Exception):
    """The simulator failed; the text says how."""


def installed_jar() -> str:
    """Return the path of the simulator's archive. Raises UsageError without the package.

    The package is not imported: a file such as configs/scienceworld.py would be, where its folder
    comes first on the path of modules.
    """
    try:
        import py4j.java_gateway  # noqa: F401

        package = importlib.metadata.distribution("scienceworld")
    except ImportError as error:
        raise UsageError(f"ScienceWorld is not installed ({error}): {_INSTALL}") from None
    if package.version != _VERSION:
        raise UsageError(
            f"scienceworld {package.version} is installed, but games are those of {_VERSION}: "
            f"{_INSTALL}"
        )
    return str(package.locate_file("scienceworld/scienceworld.jar"))


class _Java:
    """One Java process, with a simulator for each of up to `most` engines.

    Simulators keep their random numbers and other state in static fields. So each has its classes
    from a loader of its own, and none notices the others: in one process, their games went as they
    go alone. A game takes some 12 MB of the heap.

    Raises EngineError where Java does not start.
    """

    def __init__(self, java: str, jar: str, most: int):
        from py4j.java_gateway import launch_gateway

        # py4j logs what it raises, and that it cannot free the objects of a process that has ended.
        logging.getLogger("py4j").setLevel(logging.CRITICAL)
        self._jar, self._most, self._simulators = jar, most, 0
        try:
            self._port, self._token, self.process = launch_gateway(
                classpath=jar,
                javaopts=_JAVA_OPTIONS,
                java_path=java,
                # It reads the ids of its objects' types there, and writes them where it finds none.
                cwd=os.path.dirname(jar),
                die_on_exit=True,
                enable_auth=True,
                return_proc=True,
            )
        except ValueError:  # it printed no port
            raise EngineError(f"{java} did not start; try `{java} -Xmx512m -version`") from None
        _running.append(self)
        gateway = self._gateway()
        try:
            standard = gateway.jvm.java
            # The simulators print every step at length.
            nowhere = standard.io.PrintStream(standard.io.FileOutputStream(os.devnull))
            standard.lang.System.setOut(nowhere)
            gateway.close()
        except BaseException:
            self.close()
            raise

    @property
    def runs(self) -> bool:
        return self in _running and self.process.poll() is None

    @property
    def has_room(self) -> bool:
        return self.runs and self._simulators < self._most

    def _gateway(self) -> Any:
        from py4j.java_gateway import GatewayParameters, JavaGateway

        parameters = GatewayParameters(port=self._port, auth_token=self._token)
        return JavaGateway(gateway_parameters=parameters)

    def simulator(self) -> tuple[Any, Any]:
        """Return (gateway, a new simulator).

        Each has its own gateway, hence a connection and a thread of Java: py4j remembers methods by
        the names of classes, for each thread.
        """
        self._simulators += 1
        gateway = self._gateway()
        java = gateway.jvm.java
        urls = gateway.new_array(java.net.URL, 1)
        urls[0] = java.io.File(self._jar).toURI().toURL()
        above = java.lang.ClassLoader.getPlatformClassLoader()
        loader = java.net.URLClassLoader(urls, above)
        made = loader.loadClass("scienceworld.runtime.pythonapi.PythonInterface").getConstructor(
            gateway.new_array(java.lang.Class, 0)
        )
        return gateway, made.newInstance(gateway.new_array(java.lang.Object, 0))

    def release(self, gateway: Any) -> None:
        """Let go of a simulator; the process ends with its last one."""
        self._simulators -= 1
        with contextlib.suppress(Exception):
            gateway.close()
        if not self._simulators:
            self.close()

    def close(self) -> None:
        """End the process. What is left of its simulators fails from now on."""
        if self in _running:
            _running.remove(self)
            self.process.kill()
            self.process.wait(_ENDS_WITHIN_S)
            self.process.stdin.close()


_running: list[_Java] = []  # the Java processes of this process


class Engine:
    """One simulator, which holds one game at a time. It starts with the first game.

    A Java process ends with the last of its engines, and when this process ends, however that
    happens: its standard input closes then.

    Args:
      shared: up to `ENVS_A_PROCESS` engines of this process share a Java process.

    Raises UsageError where the package or Java is missing.
    """

    def __init__(self, shared: bool = True) -> None:
        self._jar, self._shared = installed_jar(), shared
        java = shutil.which("java")
        if java is None:
            raise UsageError(
                "ScienceWorld needs Java, and there is no `java` on the PATH: "
                "apt-get install default-jre-headless (Debian, Ubuntu)"
            )
        self._path = java
        self._java: _Java | None = None
        self._gateway: Any = None
        self._server: Any = None

    @property
    def pid(self) -> int | None:
        """The id of the Java process, where there is one."""
        return self._java.process.pid if self._java else None

    def load(self, loaded: Loaded) -> str:
        """Begin a game and return its task's description. Raises EngineError."""
        return self._ask(self._load, loaded, False)

    def step(self, action: str) -> tuple[str, float, bool]:
        """Return (answer, score, whether the goal is reached or missed).

        `score`: 1 for the whole goal, negative where it is missed for good. Raises EngineError.
        """
        return self._ask(self._step, action)

    def gold_path(self, loaded: Loaded) -> tuple[str, ...]:
        """Return the engine's own solution, which ends the game that it holds.

        Raises EngineError.
        """
        return self._ask(self._gold_path, loaded)

    def close(self) -> None:
        """End the simulator, if there is one. The next game starts another."""
        java, gateway = self._java, self._gateway
        self._java = self._gateway = self._server = None
        if java is not None:
            java.release(gateway)

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        from py4j.protocol import Py4JError, Py4JNetworkError

        try:
            return function(*arguments)
        except (Py4JError, OSError) as error:
            if self._java is not None and isinstance(error, Py4JNetworkError | OSError):
                self._java.close()  # it has died, and all its simulators with it
            self.close()  # its state is unknown
            raise EngineError(" ".join(f"{type(error).__name__}: {error}".split())[:300]) from error

    def _load(self, loaded: Loaded, gold: bool) -> str:
        if self._java is not None and not self._java.runs:
            self.close()  # it failed in another engine's hands
        if self._java is None:
            self._start()
        simplification = SIMPLIFICATIONS[loaded.simplification]
        if problem := self._server.load(loaded.task, loaded.variation, simplification, gold):
            raise EngineError(problem)
        return self._server.getTaskDescription()

    def _gold_path(self, loaded: Loaded) -> tuple[str, ...]:
        self._load(loaded, True)
        return tuple(self._server.getGoldActionSequence())

    def _step(self, action: str) -> tuple[str, float, bool]:
        text = self._server.step(action)
        score, over = self._server.getScore(), self._server.getCompleted()
        # A score below 0 is a goal that is missed, or the simulator's answer after an exception.
        if score < 0 and self._server.agentInterface().get().isInErrorState():
            raise EngineError(text)
        return text, score, over

    def _start(self) -> None:
        java = next((java for java in _running if self._shared and java.has_room), None)
        if java is None:
            java = _Java(self._path, self._jar, ENVS_A_PROCESS if self._shared else 1)
        self._java = java
        self._gateway, self._server = java.simulator()


@functools.cache
def solver() -> Engine:
    """Return this process's engine for gold paths. No game is played in it.

    It has a Java process of its own, because a search needs more memory than a game. This ends when
    an environment of this process is closed.
    """
    return Engine(shared=False)
