"""Chains side by side on a CPU: one thread a chain, each on one core, so that results do not depend on their number."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from patterning_fast.posterior.local_posterior import LossModule

Work = Callable[[LossModule, int], None]


class Workers:
    """Runs work on rows of a bank, each worker with a module of its own over the same weights."""

    def __init__(self, pool: ThreadPoolExecutor, local: threading.local) -> None:
        self.pool, self.local = pool, local

    def each(self, work: Work, rows: Iterable[int]) -> None:
        """`work(module, row)` for every row; an error in one is raised here, after the others have ended."""
        for done in [self.pool.submit(lambda row: work(self.local.module, row), row) for row in rows]:
            done.result()


@contextmanager
def one_thread_each(workers: int, begin: Callable[[], None] = lambda: None) -> Iterator[ThreadPoolExecutor]:
    """A pool whose workers compute on one torch thread each, after `begin()`.

    Torch's own number is put back once all have ended: it is partly the whole process's, and would change what still
    runs.
    """
    threads = torch.get_num_threads()

    def initialize() -> None:
        torch.set_num_threads(1)
        begin()

    pool = ThreadPoolExecutor(workers, initializer=initialize)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


@contextmanager
def workers(module: LossModule, device: torch.device) -> Iterator[Workers]:
    """As many workers as torch has threads, each computing on one; a single worker where `device` is no CPU."""
    local = threading.local()
    # Swapping parameters into a module is not safe across threads; sharing the tensors in it is.
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}

    def copy_module() -> None:
        local.module = copy.deepcopy(module, dict(shared))

    with one_thread_each(torch.get_num_threads() if device.type == "cpu" else 1, copy_module) as pool:
        yield Workers(pool, local)
