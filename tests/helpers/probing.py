"""A checkpoint for probes, over the records of a folder."""

from cotjax.config import default_config
from cotjax.probes.probe import Checkpoint


def checkpoint_of(run, policy, codec, *, step=60, config=None, said=None, world=None, games=()):
    """Return the checkpoint of `step` of the first arm that has records at it.

    `policy`: what `Checkpoint.policy` is, or a function that makes it.
    """
    files = sorted((run / "records").glob(f"*/{step}/*/*.json"))
    arm = files[0].parts[-4]
    return Checkpoint(
        arm=arm,
        step=step,
        digest="hash",
        config=config or default_config(),
        world=world,
        games={game.id: game for game in games},
        codec=codec,
        files=[file for file in files if file.parts[-4] == arm],
        load_policy=policy if callable(policy) else lambda: policy,
        load_weights=None,
        workers=0,
        say=[].append if said is None else said.append,
    )
