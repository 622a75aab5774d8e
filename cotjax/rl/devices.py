"""Devices of the trainer, and of a sampler that plays while it trains (`rl.play_devices`)."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from cotjax.errors import UsageError


def divided(play_devices: int) -> tuple[Sequence[jax.Device], Sequence[jax.Device]]:
    """Return the devices that train and those that play: all do both where `play_devices` is 0.

    Raises:
      UsageError: no device would be left to train.
    """
    devices = jax.devices()
    if play_devices >= len(devices):
        raise UsageError(
            f"rl.play_devices is {play_devices}, and there are {len(devices)} devices, of which "
            "some must train; give fewer, or 0 to play and train on all in turn"
        )
    if not play_devices:
        return devices, devices
    return devices[:-play_devices], devices[-play_devices:]
