"""Every form of the sampler's cache computes the model; one that does not is named."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import tiny

from cotjax.bench import kernels
from cotjax.errors import InternalError
from cotjax.model import platform

LOW = {"param_dtype": "bfloat16", "compute_dtype": "bfloat16"}


@pytest.fixture(autouse=True)
def like_a_gpu(monkeypatch):
    """A CPU with a GPU's cache and fused weights; XLA takes the place of cuDNN."""
    here = replace(platform.FORMS["cpu"], token_kernels=("cudnn",), fused_projections=True)
    monkeypatch.setitem(platform.FORMS, "cpu", here)
    monkeypatch.setattr(kernels, "named_model", lambda *_: tiny.model_config(**LOW))


def test_all_forms_are_near_float32():
    off = kernels.check_kernels("tiny", "bfloat16")
    assert list(off) == ["plain", "by token: cudnn", "by token: xla"]
    assert 0 < max(off.values()) < 0.03
    assert platform.FORMS["cpu"].token_kernels == ("cudnn",), "the forms are put back"


def test_a_tpus_own_kernel_is_among_the_forms(monkeypatch):
    here = replace(platform.FORMS["cpu"], token_kernels=("ragged",))
    monkeypatch.setitem(platform.FORMS, "cpu", here)
    monkeypatch.setattr(kernels, "reads_ragged", lambda config, parts: True)
    off = kernels.check_kernels("tiny", "bfloat16")
    assert list(off) == ["plain", "pairs: ragged", "by token: xla"]


def test_a_form_that_is_too_far_off_is_named(monkeypatch):
    near, far = np.ones(4, np.float32), np.full(4, 1.1, np.float32)
    found = iter((near, near + 0.05, near + 0.06, far))
    monkeypatch.setattr(kernels, "_hidden", lambda *_: next(found))
    with pytest.raises(InternalError, match=r"by token: xla: .* 1\.00e-01 of"):
        kernels.check_kernels("tiny", "bfloat16")
