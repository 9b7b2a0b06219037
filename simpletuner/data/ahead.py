"""Work done ahead on threads, handed out in order, with a bound on how much is held."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def threads(max_workers: int) -> int:
    """How many threads to use: never more than twice the cores."""
    return max(1, min(max_workers, 2 * (os.cpu_count() or 1)))


def ahead(
    jobs: Iterable[Job],
    work: Callable[[Job], Result],
    *,
    workers: int,
    limit: int,
    cost: Callable[[Job], int] = lambda job: 0,
    most_cost: int = 0,
) -> Iterator[tuple[Job, Result]]:
    """(job, work(job)) in the order of `jobs`, which may be endless.

    At most `limit` jobs are started and not yet handed out, and together they cost at most `most_cost` (0: no bound;
    one job may always run). An exception of `work` is raised here. Closing the iterator stops the threads.
    """
    waiting: deque[tuple[Job, int, Future[Result]]] = deque()
    held = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ahead")
    try:
        for job in jobs:
            price = cost(job)
            while waiting and (len(waiting) >= limit or (most_cost and held + price > most_cost)):
                done, paid, future = waiting.popleft()
                yield done, future.result()
                held -= paid
            waiting.append((job, price, pool.submit(work, job)))
            held += price
        while waiting:
            done, _, future = waiting.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
