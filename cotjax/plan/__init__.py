"""Will it fit: the real train step and the real sampler, compiled for a TPU slice that is not
there.
"""
