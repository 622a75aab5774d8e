import os
import signal
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# What several processes of the tests compile is compiled once. Under xdist this file is read by the
# controlling process first, whose workers inherit the variable. JAX_COMPILATION_CACHE_DIR, where it
# is set, keeps the programs for the next run too.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _COMPILED = tempfile.TemporaryDirectory(prefix="cotjax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name

import jax

pytest_plugins = ["helpers.studies"]

_CACHE = {
    "jax_compilation_cache_dir": os.environ["JAX_COMPILATION_CACHE_DIR"],
    "jax_persistent_cache_min_compile_time_secs": 0.2,
    # Only a cache with a limit is locked while a process writes to it.
    "jax_compilation_cache_max_size": 8 << 30,
}
for name, value in _CACHE.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)
jax.config.update("jax_numpy_rank_promotion", "raise")
# A shell starts what runs in its background with Ctrl-C ignored, and so would be every process that
# a test starts to interrupt it.
signal.signal(signal.SIGINT, signal.default_int_handler)
