"""Chains side by side on a CPU: one thread a chain, each on one core, so that results do not depend on their number."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

Own = TypeVar("Own")
Item = TypeVar("Item")


class Workers(Generic[Own]):
    """Runs work on items, each worker with something of its own, made when it first needs it."""

    def __init__(self, pool: ThreadPoolExecutor, count: int, make: Callable[[], Own]) -> None:
        self.pool, self.count, self.make, self.local = pool, count, make, threading.local()

    def each(self, work: Callable[[Own, Item], None], items: Iterable[Item]) -> None:
        """`work(own, item)` for every item; an error in one is raised here, after the others have ended."""
        for done in [self.pool.submit(self.one, work, item) for item in items]:
            done.result()

    def one(self, work: Callable[[Own, Item], None], item: Item) -> None:
        if not hasattr(self.local, "own"):
            self.local.own = self.make()
        work(self.local.own, item)


@contextmanager
def one_thread_each(workers: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose workers compute on one torch thread each; the caller's number of threads stays what it is."""
    pool = ThreadPoolExecutor(workers, initializer=compute_on_one_thread)
    try:
        start(pool, workers)
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def start(pool: ThreadPoolExecutor, workers: int) -> None:
    """Start all workers now, one pool at a time.

    Their number of threads is their own once set, but torch also notes the last one set as that of threads to come, so
    that what the workers set must be undone before another pool, or a thread of the user's, asks for it.
    """
    with starting:
        threads, together = torch.get_num_threads(), threading.Barrier(workers + 1)
        try:
            for _ in range(workers):
                pool.submit(together.wait)
            together.wait()
        finally:
            together.abort()
            torch.set_num_threads(threads)


def threads_here() -> int:
    """The number of threads that torch computes on in this thread.

    A thread's first look takes up what torch has noted, which a pool that is starting has changed: so it waits.
    """
    with starting:
        return torch.get_num_threads()


def compute_on_one_thread() -> None:
    """From now on, in this thread."""
    torch.get_num_threads()  # the first call takes the number for threads to come, and would later, over that set here
    torch.set_num_threads(1)


def after_fork() -> None:
    """In a forked child OpenMP's threads are gone, and a parallel loop would wait for them for ever."""
    global starting
    starting = threading.Lock()
    torch.set_num_threads(1)


starting = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork)


@contextmanager
def workers(make: Callable[[], Own], device: torch.device) -> Iterator[Workers[Own]]:
    """As many workers as torch has threads, each computing on one; a single worker where `device` is no CPU."""
    count = threads_here() if device.type == "cpu" else 1
    with one_thread_each(count) as pool:
        yield Workers(pool, count, make)
