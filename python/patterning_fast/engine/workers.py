"""Chains side by side on a CPU: one thread a chain, each on one core, so that results do not depend on their number."""

from __future__ import annotations

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
    """A pool whose workers compute on one torch thread each.

    Torch's own number is put back once all have ended: it is partly the whole process's, and would change what still
    runs.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


@contextmanager
def workers(make: Callable[[], Own], device: torch.device) -> Iterator[Workers[Own]]:
    """As many workers as torch has threads, each computing on one; a single worker where `device` is no CPU."""
    count = torch.get_num_threads() if device.type == "cpu" else 1
    with one_thread_each(count) as pool:
        yield Workers(pool, count, make)
