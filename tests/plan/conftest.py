"""The plans of the shipped configs compile for many minutes, one core each. So they begin with the first test, on what the tests
leave of the cores, and the tests that ask for them come last."""

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import planning


class Plans:
    """Plans under way: name -> what its command gave, when it has ended."""

    def __init__(self, names: list[str]):
        self._running: list[subprocess.Popen] = []
        self._pool = ThreadPoolExecutor(2)
        self._results = {name: self._pool.submit(self._plan, name) for name in names}

    def _plan(self, name: str) -> subprocess.CompletedProcess:
        command = ["nice", "-n", "19", *planning.command(*planning.shipped(name))]
        running = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=planning.environment(planning.compiler()),
        )
        self._running.append(running)
        said = running.communicate()
        return subprocess.CompletedProcess(command, running.returncode, *said)

    def __getitem__(self, name: str) -> subprocess.CompletedProcess:
        return self._results[name].result()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for running in self._running:
            running.kill()  # does nothing to one that has ended
        self._pool.shutdown()


_plans = pytest.StashKey[Plans]()


def _names(items) -> list[str]:
    """The configs that tests ask for; none where there is no compiler."""
    asking = [item for item in items if "plans" in item.fixturenames] if planning.compiler() else []
    return list(dict.fromkeys(item.callspec.params["name"] for item in asking))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: "plans" in item.fixturenames)


def pytest_runtestloop(session):
    if not session.config.option.collectonly:
        session.stash[_plans] = Plans(_names(session.items))


def pytest_sessionfinish(session):
    if _plans in session.stash:
        session.stash[_plans].close()


@pytest.fixture
def plans(request) -> Plans:
    return request.session.stash[_plans]
