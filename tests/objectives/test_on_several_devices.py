"""Policy gradient, DPO and FRODO make the same update on several devices as on one."""

import pytest
from helpers.processes import TESTS, ended, start_process


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "names"), [(2, ["policy", "dpo", "frodo"]), (8, ["policy"])])
def test_several_devices_make_the_update_of_one(tmp_path, devices, names):
    script = TESTS / "objectives" / "on_several_devices.py"
    ((code, out, error),) = ended([start_process([script, tmp_path], devices=devices)])
    assert code == 0, error[-2000:]
    assert out.split() == names
