"""How many chains are evaluated together: measured, since caches and launches decide."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

CANDIDATES = (1, 4, 16, 64, 256)
SLOW = 0.25
"""Seconds of a call after which nothing larger is tried on a CPU, whose caches are long full then."""

WORTH = 0.9
"""A larger tile must take less than this share of a smaller one's time per chain."""


def fastest_tile(chains: int, run: Callable[[int], None], device: torch.device) -> int:
    """The number of chains for which `run(number)` takes least time a chain; larger ones are tried while they gain."""
    best, fastest = 1, float("inf")
    for tile in CANDIDATES:
        if tile > chains:
            break
        try:
            first = timed(run, tile, device)
        except RuntimeError:  # vmap does not know one of the model's operators
            if tile == 1:
                raise
            break
        if first > SLOW and device.type == "cpu":
            break
        seconds = min(timed(run, tile, device) for _ in range(3)) / tile
        if seconds > WORTH * fastest:
            break
        best, fastest = tile, seconds
    return best


def timed(run: Callable[[int], None], tile: int, device: torch.device) -> float:
    """Seconds that `run(tile)` takes, on the device too."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run(tile)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
