import os
import signal
import tempfile

from helpers import compiling

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# What several processes of the tests compile is compiled once. Under xdist this file is read by the
# controlling process first, and its workers inherit the variables. JAX_COMPILATION_CACHE_DIR, where
# it is set, keeps the programs for the next run too.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _COMPILED = tempfile.TemporaryDirectory(prefix="cotjax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
# jax locks a cache while a process writes to it only if its size is limited.
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(8 << 30))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
# Compiling takes most of the time of the tests, and what is compiled runs for milliseconds. LLVM
# therefore does not optimize, in the processes that tests start too. XLA's own passes run as ever:
# what is fused, how much memory a program takes and what it sends do not change. The processes that
# test kept programs (runtime/test_compiled.py) and plans (helpers/planning.py) do without this, and
# so do the few tests that compute for longer than they compile (the fixture `optimized`).
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# XLA writes kernels by its older emitters and a program in one piece: a quarter of what is left.
os.environ["XLA_FLAGS"] = compiling.quick(os.environ.get("XLA_FLAGS", ""))

import hypothesis
import jax
import pytest

pytest_plugins = ["helpers.bases", "helpers.studies"]

# How long an example takes says something about the machine, not about the code. Examples are the
# same in every run, so that a commit that passes passes everywhere; a change of what they test is
# searched for new ones by `--hypothesis-profile=search`.
_BUSY = hypothesis.settings(
    deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], database=None
)
hypothesis.settings.register_profile("fixed", _BUSY, derandomize=True)
hypothesis.settings.register_profile("search", _BUSY)
hypothesis.settings.load_profile("fixed")
jax.config.update("jax_numpy_rank_promotion", "raise")
# A shell starts what runs in its background with Ctrl-C ignored, and so would be every process that
# a test starts to interrupt it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Tests write tens of thousands of small files, and what a disk keeps when the machine crashes none
# of them sees. Waiting for it takes minutes, so it is left to the tests of files (`synced`) and to
# the processes that tests start.
_FSYNC = os.fsync
os.fsync = lambda handle: os.fstat(handle) and None


@pytest.fixture
def synced(monkeypatch):
    """Wait for the disk, as users do."""
    monkeypatch.setattr(os, "fsync", _FSYNC)


@pytest.fixture
def optimized(monkeypatch):
    """Compile with all optimizations, here and in processes that the test starts."""
    disabled = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"].lower() not in ("0", "false")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", disabled)


def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Failures(config), "failures")


class _Failures:
    """Name what failed at once, too: a run of all tests takes most of an hour."""

    def __init__(self, config):
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report):
        if report.failed:
            terminal = self._config.pluginmanager.get_plugin("terminalreporter")
            crash = getattr(report.longrepr, "reprcrash", None)
            message, *_ = str(crash.message if crash else report.longrepr).splitlines() or [""]
            terminal.line(f"\nFAILED {report.nodeid} ({report.when}): {message}")
