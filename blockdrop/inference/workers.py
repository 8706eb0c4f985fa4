"""Threads that each run small pieces of a batch on one core."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Task = TypeVar("Task")


class Workers:
    """A pool of threads; torch's operations inside them use one thread each.

    Small convolutions gain little from being split over cores and pay for it in waiting; rows split over cores
    don't wait. torch and OpenVINO let go of Python's lock while they compute.
    """

    def __init__(self, count: int):
        self.count = count
        self._pool: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[Task], object], tasks: Sequence[Task]) -> None:
        """Calls `work` on every task; neighbours mostly by the same thread, in order."""
        if self.count == 1 or len(tasks) <= 1:
            for task in tasks:
                work(task)
            return
        count = min(self.count, len(tasks))
        cuts = [len(tasks) * i // count for i in range(count + 1)]
        shares = [deque(tasks[start:stop]) for start, stop in itertools.pairwise(cuts)]

        def work_off(own: int) -> None:
            with torch.no_grad():
                while (task := _next(shares, own)) is not None:
                    work(task)

        pool = self._threads()
        futures = [pool.submit(work_off, i) for i in range(count)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            for share in shares:  # nobody goes on with what nobody waits for
                share.clear()
            wait(futures)
            raise

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            started = threading.Barrier(self.count + 1)

            def begin() -> None:
                torch.get_num_threads()  # torch sets up a thread's count at its first use; only then it can change
                torch.set_num_threads(1)
                started.wait()

            threads = torch.get_num_threads()
            pool = ThreadPoolExecutor(self.count, "blockdrop", begin)
            try:
                for _ in range(self.count):
                    pool.submit(int)
                started.wait()
            except BaseException:
                started.abort()
                pool.shutdown(wait=False)
                raise
            finally:
                torch.set_num_threads(threads)  # parts of the setting belong to the process
            self._pool = pool
        return self._pool


def _next(shares: list[deque[Task]], own: int) -> Task | None:
    """The next task of one's own share, or the last one of the longest other share."""
    while True:
        try:
            return shares[own].popleft()
        except IndexError:
            longest = max(shares, key=len)
        try:
            return longest.pop()
        except IndexError:
            if not any(shares):
                return None
