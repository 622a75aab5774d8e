"""A process of test_compiled.py: trains and plays a tiny model with programs that may be kept.

Prints a line of JSON: the warning, a digest of all results, and how many programs were read.
"""

import hashlib
import json
import sys

from cotjax.runtime.compiled import keep_compiled


def main():
    assert "jax" not in sys.modules
    warning = keep_compiled()
    import jax
    import numpy as np
    from helpers.tiny import mesh, model_config

    from cotjax.model import decoder
    from cotjax.model.params import init_params
    from cotjax.sample.sampler import Sampler

    hits = []
    jax.monitoring.register_event_listener(
        lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None
    )
    config = model_config()
    params = init_params(config, jax.random.key(0))
    ids_BT = np.arange(64).reshape(2, 32) % config.vocab_size

    @jax.jit
    def step(params):
        def loss(params):
            return decoder.logits(config, params, ids_BT).astype("float32").std()

        value, gradient = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)

    value, trained = step(params)
    sampler = Sampler(config, mesh(), slots=2, max_length=64, stop=[[1]], pad_id=0)
    sampler.load(trained)
    sampler.extend({0: [5, 6, 7], 1: [8, 9]})
    drawn = sampler.sample({0: [3], 1: [3]}, max_new=24, temperature=0.7, seeds={0: 1, 1: 2})
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((value, trained)):
        digest.update(np.asarray(leaf).tobytes())
    digest.update(
        repr([(g.ids, np.float32(g.logprobs).tobytes()) for g in drawn.values()]).encode()
    )
    print(json.dumps({"warning": warning, "digest": digest.hexdigest(), "hits": len(hits)}))


if __name__ == "__main__":
    main()
