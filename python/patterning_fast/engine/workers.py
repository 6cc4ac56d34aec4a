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
def workers(module: LossModule, device: torch.device) -> Iterator[Workers]:
    """As many workers as torch has threads, each computing on one; a single worker where `device` is no CPU."""
    threads = torch.get_num_threads()
    local = threading.local()
    # Swapping parameters into a module is not safe across threads; sharing the tensors in it is.
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}

    def begin() -> None:
        if device.type == "cpu":
            torch.set_num_threads(1)
        local.module = copy.deepcopy(module, dict(shared))

    pool = ThreadPoolExecutor(threads if device.type == "cpu" else 1, initializer=begin)
    try:
        yield Workers(pool, local)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)
