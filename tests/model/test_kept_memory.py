"""Memory that a process has freed is used again, in every thread, and can be given back."""

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading
import numpy as np
from cotjax.model.platform import return_freed_memory, split_cpu

def faults():
    # Pages that the system gave to this process, while an array of 128 MB was written and freed.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def in_a_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(faults()))
    thread.start()
    thread.join()
    return found[0]

if sys.argv[1:]:
    split_cpu(1)
found = [faults(), faults(), in_a_thread()]
return_freed_memory()
print(*found, faults())
"""


def faults(*arguments):
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_an_array_takes_the_pages_of_the_one_before():
    first, again, in_a_thread, given_back = faults("keep")
    # 128 MB are 64 of the largest pages that the system may give out at once.
    assert min(first, given_back) >= 60
    assert max(again, in_a_thread) < 30
    # A process without it gets every page anew.
    assert min(faults()) >= 60
