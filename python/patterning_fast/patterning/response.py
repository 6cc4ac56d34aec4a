"""The linear response of components to data weights, read in blocks: no copy of χ is ever made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

BLOCK = 1 << 20
"""Numbers in a block: 8 MB once in double, which stays in cache between the two products that a pass makes of it."""


def blocks(components: int, data: int) -> Iterator[slice]:
    """Slices of data, each of about BLOCK numbers."""
    width = max(64, BLOCK // components)
    for start in range(0, data, width):
        yield slice(start, min(start + width, data))


@dataclass(frozen=True)
class Response:
    """dμ = R·change, with R = scale·(χ less its mean over data): the response to weights 1 + change of mean 1.

    Data of one unit (a document, a domain) have one weight: χ is then their mean, and `counts` how many they are.
    Inner products over data are weighted by the counts. Sums are in double, whatever χ is stored in.
    """

    chi: np.ndarray
    """`[components, data]`, as stored."""
    counts: np.ndarray
    """`[data]`"""
    mean: np.ndarray
    """Mean of χ over data `[components]`; not finite where χ has values that are missing."""
    scale: float
    """nβ/n, nats for nats²."""

    @property
    def total(self) -> float:
        """How many data there are in all units."""
        return float(self.counts.sum())

    @property
    def components(self) -> int:
        return len(self.chi)

    @property
    def data(self) -> int:
        return self.chi.shape[1]

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """χ in double, `[components, some data]` at a time."""
        for where in blocks(*self.chi.shape):
            yield where, self.chi[:, where].astype(np.float64)

    def gram(self) -> np.ndarray:
        """R·Rᵀ `[components, components]`."""
        gram = np.zeros((self.components, self.components))
        for where, block in self.blocks():
            block -= self.mean[:, None]
            block *= np.sqrt(self.counts[where])
            gram += block @ block.T
        return self.scale**2 * gram

    def along(self, combination: np.ndarray) -> np.ndarray:
        """Rᵀ·combination: what each datum does to a combination of components `[data]`."""
        found = np.empty(self.data)
        for where, block in self.blocks():
            found[where] = combination @ block
        return self.scale * (found - combination @ self.mean)

    def of(self, change: np.ndarray) -> np.ndarray:
        """R·change: dμ `[components]` of a change of the weights `[data]`."""
        return self.both(np.zeros(self.components), lambda where, _: change[where])

    def both(self, combination: np.ndarray, change: Callable[[slice, np.ndarray], np.ndarray]) -> np.ndarray:
        """R·change(Rᵀ·combination) `[components]`, in one pass: `change` is given where in the data and Rᵀ there."""
        offset = combination @ self.mean
        found, total = np.zeros(self.components), 0.0
        for where, block in self.blocks():
            weighted = self.counts[where] * change(where, self.scale * (combination @ block - offset))
            found += block @ weighted
            total += float(weighted.sum())
        return self.scale * (found - total * self.mean)

    def take(self, chosen: np.ndarray) -> Response:
        """The response to weights of some of the data, the others keeping theirs."""
        return Response(self.chi[:, chosen], self.counts[chosen], self.mean, self.scale)


def response_of(chi: np.ndarray, counts: np.ndarray, n_beta: float) -> Response:
    """The response dμ = nβ·χ·change/n, whose rows have mean 0 over data."""
    sums = np.zeros(len(chi))
    for where in blocks(*chi.shape):
        sums += chi[:, where].astype(np.float64) @ counts[where]
    total = float(counts.sum())
    return Response(chi, counts, sums / total, n_beta / total)
