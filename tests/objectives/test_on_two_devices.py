"""Policy gradient, DPO and FRODO make the same update on two devices as on one."""

import pytest
from helpers.processes import TESTS, ended, start_process


@pytest.mark.slow
def test_two_devices_make_the_update_of_one(tmp_path):
    script = TESTS / "objectives" / "on_two_devices.py"
    ((code, out, error),) = ended([start_process([script, tmp_path], devices=2)])
    assert code == 0, error[-2000:]
    assert out.split() == ["policy", "dpo", "frodo"]
