import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
# A shell starts what runs in its background with Ctrl-C ignored, and so would be every process that a test starts to interrupt it.
signal.signal(signal.SIGINT, signal.default_int_handler)
