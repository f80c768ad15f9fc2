"""Compute runs on a Ray cluster: each task starts the child process that a local sweep starts.

Ray decides where a task runs. The machines of a cluster need this checkout, its Python and its
folder of runs at the same paths. A child whose conditions are not those asked for refuses the run.
"""

from __future__ import annotations

import os
import queue
from collections import deque
from collections.abc import Generator, Mapping, Sequence

from companion.lab.processes import Worker, next_answer
from companion.lab.worker import Answer, Request

__all__ = ["answers"]


def answers(
    requests: Sequence[Request], at_once: int, environment: Mapping[str, str]
) -> Generator[tuple[int, Answer], None, None]:
    """Have tasks answer all requests; yield each answer as it comes, with its request's index.

    The cluster is the one that ``RAY_ADDRESS`` names, else one that is started on this machine.

    Args:
        requests: What to compute.
        at_once: Largest number of tasks at the same time.
        environment: All environment variables of the children.
    """
    import ray  # an optional package

    _connect()
    task = ray.remote(num_cpus=1, max_retries=0)(_answer_in_child)
    waiting = deque(enumerate(requests))
    running: dict[ray.ObjectRef, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                number, request = waiting.popleft()
                running[task.remote(request, environment)] = number
            finished, _ = ray.wait(list(running), timeout=1.0)
            for reference in finished:
                number = running.pop(reference)
                try:
                    answer = ray.get(reference)
                except ray.exceptions.RayError as error:
                    answer = Answer(ended=f"Ray lost the task: {str(error).splitlines()[0]}")
                yield number, answer
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _connect() -> None:
    """Connect to a cluster, unless this process is connected already."""
    import ray

    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send data to a server
        # Ray passes sys.path on, so tasks import this package from the same folder
        ray.init(log_to_driver=False, include_dashboard=False, logging_level="error")


def _answer_in_child(request: Request, environment: Mapping[str, str]) -> Answer:
    """Start a child process for one request and return its answer; this is the task of Ray."""
    heard: queue.SimpleQueue[tuple[Worker, Answer | None]] = queue.SimpleQueue()
    worker = Worker(environment, heard)
    try:
        _, ready = next_answer(heard, [worker])
        if ready is None:
            return Answer(ended=f"it could not start: {worker.how_it_ended()}")
        worker.ask(request)
        _, answer = next_answer(heard, [worker])
        return answer or Answer(ended=worker.how_it_ended())
    finally:
        worker.kill()
