"""Damage as disks do it: single bits flipped, files cut short. What was there is back afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def random_bits(path: Path, number: int, seed: int) -> list[int]:
    """So many different bits of a file, all where it has no more, as `flipped` takes them."""
    bits = 8 * path.stat().st_size
    return random.Random(seed).sample(range(bits), min(number, bits))


@contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """Within, bit number `bit` of a file is the other way round."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    with holding(path, bytes(content)):
        yield


@contextmanager
def cut(path: Path, size: int) -> Iterator[None]:
    """Within, a file has only its first `size` bytes."""
    with holding(path, path.read_bytes()[:size]):
        yield


@contextmanager
def holding(path: Path, content: bytes) -> Iterator[None]:
    """Within, a file holds other bytes."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)
