"""The process of one side: `python -m cotjax.bench.worker`.

It reads lines and answers each with a line of JSON. The first line is a job, answered after
warm-up; every further line is a number of repetitions, answered by what they took. It ends at the
end of its input. `cotjax.bench.sides` is the other end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from cotjax.bench.jobs import Job, RLJob, RolloutJob, SampleJob, TrainJob, from_line
from cotjax.bench.tasks import Task
from cotjax.envs.pool.messages import error_to_message
from cotjax.errors import CotjaxError


def serve(ask: Callable[[], str], answer: Callable[[dict[str, Any]], None]) -> None:
    """Answer every line that `ask` returns, until it returns an empty one."""
    job, started_at = from_line(ask()), time.perf_counter()
    task = make_task(job)
    try:
        setup = {"setup_s": time.perf_counter() - started_at}
        setup["cores"] = len(os.sched_getaffinity(0))
        answer(setup | task.warm_up() | task.describe())
        while line := ask():
            answer(task.measure(int(line)))
    finally:
        task.close()


def make_task(job: Job) -> Task:
    """Return the side's implementation of a job."""
    if isinstance(job, RLJob):
        if job.side == "cotjax":
            from cotjax.bench.our_rl import CotjaxRL

            return CotjaxRL(job)
        from cotjax.bench.trl_peer import TrlRL

        return TrlRL(job)
    if job.side == "cotjax":
        from cotjax.bench.ours import CotjaxSample, CotjaxTrain

        if isinstance(job, TrainJob):
            return CotjaxTrain(job)
        if isinstance(job, SampleJob):
            return CotjaxSample(job)
        if isinstance(job, RolloutJob):
            # Imported here: its imports would be counted as memory of the other tasks.
            from cotjax.bench.our_rollouts import CotjaxRollout

            return CotjaxRollout(job)
    else:
        from cotjax.bench.peers import TransformersRollout, TransformersSample, TransformersTrain

        if isinstance(job, TrainJob):
            return TransformersTrain(job)
        if isinstance(job, SampleJob):
            return TransformersSample(job)
        if isinstance(job, RolloutJob):
            return TransformersRollout(job)
    raise TypeError(f"unknown job: {job}")


def main() -> None:
    """Answer standard input on standard output; an error of the package is an answer."""
    # What libraries print goes to standard error, so standard output holds nothing but answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        serve(sys.stdin.readline, answer)
    except CotjaxError as error:
        answer({"error": error_to_message(error)})


if __name__ == "__main__":
    main()
