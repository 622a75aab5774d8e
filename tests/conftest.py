import os
import signal
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax

pytest_plugins = ["helpers.studies"]

jax.config.update("jax_numpy_rank_promotion", "raise")
# What several processes of the tests run is compiled once; JAX_COMPILATION_CACHE_DIR keeps it for the next run too.
_COMPILED = tempfile.TemporaryDirectory(prefix="cotjax-compiled-")
_CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR") or _COMPILED.name
for name, value in {
    "jax_compilation_cache_dir": _CACHE,
    "jax_persistent_cache_min_compile_time_secs": 0.2,
}.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)
# A shell starts what runs in its background with Ctrl-C ignored, and so would be every process that a test starts to interrupt it.
signal.signal(signal.SIGINT, signal.default_int_handler)
