"""Compile the real train step and sampler for an absent TPU slice: do they fit?"""
