"""Many episodes in real environments, while these are killed, stopped and garbled.

`cotjax bench faults` plays more of them.
"""

import pytest

from cotjax.bench.faults import KINDS, Settings, run


@pytest.mark.slow
def test_every_episode_is_accounted_for_while_faults_are_injected(tmp_path):
    settings = Settings(40, rate=0.05, retries=2, max_steps=8, seed=1)
    outcome = run(settings, tmp_path)
    assert outcome.good, outcome
    assert outcome.records == outcome.episodes == 40
    assert set(outcome.injected) == set(KINDS) and outcome.recovered > 3
    assert outcome.different == outcome.leaked_processes == outcome.leaked_files == 0
    assert outcome.memory[1] < outcome.memory[0] + 20
