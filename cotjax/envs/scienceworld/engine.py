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


class EngineError(Exception):
    """The simulator failed; the text says how."""


class Engine:
    """One simulator, which holds one game at a time. The Java process starts with the first game.

    It ends with `close`, and when this process ends, however that happens: its standard input
    closes then. Two games of one simulator would share its random numbers, so each environment has
    its own.

    Raises UsageError where the package or Java is missing.
    """

    def __init__(self) -> None:
        try:
            import py4j.java_gateway  # noqa: F401
            from scienceworld.constants import JAR_PATH
        except ImportError as error:
            raise UsageError(f"ScienceWorld is not installed ({error}): {_INSTALL}") from None
        installed = importlib.metadata.version("scienceworld")
        if installed != _VERSION:
            raise UsageError(
                f"scienceworld {installed} is installed, but games are those of {_VERSION}: "
                f"{_INSTALL}"
            )
        java = shutil.which("java")
        if java is None:
            raise UsageError(
                "ScienceWorld needs Java, and there is no `java` on the PATH: "
                "apt-get install default-jre-headless (Debian, Ubuntu)"
            )
        self._jar, self._java = JAR_PATH, java
        self._gateway: Any = None
        self._server: Any = None
        self._process: Any = None

    @property
    def pid(self) -> int | None:
        """The id of the Java process, where there is one."""
        return self._process.pid if self._process else None

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
        """End the Java process, if there is one. The next game starts another."""
        process, gateway = self._process, self._gateway
        self._process = self._gateway = self._server = None
        if process is None:
            return
        process.kill()
        with contextlib.suppress(Exception):
            gateway.close()
        process.wait(_ENDS_WITHIN_S)
        process.stdin.close()

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        from py4j.protocol import Py4JError

        try:
            return function(*arguments)
        except (Py4JError, OSError) as error:
            self.close()  # its state is unknown
            raise EngineError(" ".join(f"{type(error).__name__}: {error}".split())[:300]) from error

    def _load(self, loaded: Loaded, gold: bool) -> str:
        if self._process is None:
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
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway

        # py4j logs what it raises, and that it cannot free the objects of a process that has ended.
        logging.getLogger("py4j").setLevel(logging.CRITICAL)
        try:
            port, token, self._process = launch_gateway(
                classpath=self._jar,
                javaopts=_JAVA_OPTIONS,
                java_path=self._java,
                # It reads the ids of its objects' types there, and writes them where it finds none.
                cwd=os.path.dirname(self._jar),
                die_on_exit=True,
                enable_auth=True,
                return_proc=True,
            )
        except ValueError:  # it printed no port
            raise EngineError(
                f"{self._java} did not start; try `{self._java} -Xmx512m -version`"
            ) from None
        self._gateway = JavaGateway(
            gateway_parameters=GatewayParameters(port=port, auth_token=token)
        )
        java = self._gateway.jvm.java
        # The simulator prints every step at length.
        nowhere = java.io.PrintStream(java.io.FileOutputStream(os.devnull))
        java.lang.System.setOut(nowhere)
        self._server = self._gateway.jvm.scienceworld.runtime.pythonapi.PythonInterface()


@functools.cache
def solver() -> Engine:
    """Return this process's engine for gold paths. No game is played in it.

    Its Java process ends when an environment of this process is closed.
    """
    return Engine()
