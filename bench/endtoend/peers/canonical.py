"""canonical-interp, with `itertools.batched` for Python 3.11, which it imports: all that is changed for it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator


def batched(items: Iterable[int], size: int) -> Iterator[tuple[int, ...]]:
    each = iter(items)
    while batch := tuple(itertools.islice(each, size)):
        yield batch


if not hasattr(itertools, "batched"):
    itertools.batched = batched  # type: ignore[attr-defined]

from canonical_interp import slt  # noqa: E402

__all__ = ["slt"]
