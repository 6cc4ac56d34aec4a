"""Times of functions that take turns, so that all see the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def interleaved(functions: dict[str, Callable[[], object]], repeats: int = 9) -> dict[str, float]:
    """Median time [s] of each function: all once to warm up, then `repeats` rounds of one call each."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(-1, repeats):
        for name, function in functions.items():
            synchronize()
            started = time.perf_counter()
            function()
            synchronize()
            if repeat >= 0:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(each) for name, each in times.items()}


def synchronize() -> None:
    """Wait for a GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
