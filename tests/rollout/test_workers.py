"""Jobs in processes: what cannot be set up is an error, not a pool that starts for ever."""

import pytest

from cotjax.errors import UsageError
from cotjax.rollout.workers import outcomes


def _without_java():
    raise UsageError("there is no `java` on the PATH")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_worker_that_cannot_be_made_ends_the_work_with_its_error(workers):
    with (
        pytest.raises(UsageError, match="no `java` on the PATH"),
        outcomes(_without_java, [1, 2, 3], workers) as found,
    ):
        list(found)
