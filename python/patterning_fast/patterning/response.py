"""The linear response of components to data weights, read in blocks: no copy of χ is ever made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from patterning_fast.engine.workers import one_thread_each

BLOCK = 1 << 20
"""Numbers in a block: 8 MB once in double, which stays in cache between the two products that a pass makes of it."""

PANEL = 128
"""Components at a time of the matrix of inner products, of which half is enough."""

STRIPES = 16
"""Parts of the data that are worked on side by side, however many threads there are: sums have one order."""


def dot(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """one @ other on this thread alone: where cores are shared, BLAS's threads wait longer than such products take."""
    return np.asarray(np.einsum("...i,i->...", one, other))


def blocks(components: int, start: int, stop: int) -> Iterator[slice]:
    """Slices of the data from start to stop, each of about BLOCK numbers."""
    width = max(64, BLOCK // components)
    for first in range(start, stop, width):
        yield slice(first, min(first + width, stop))


@dataclass(frozen=True)
class Response:
    """dμ = R·change, with R = scale·(χ less its mean over data): the response to weights 1 + change of mean 1.

    Data of one unit (a document, a domain) have one weight: χ is then their mean, and `counts` how many they are.
    Inner products over data are weighted by the counts. Sums are in double, whatever χ is stored in.

    Noisy data may have less `weight`, in means and in what combinations of rows make of the data. Directions that are
    `avoided` are rows below those of χ.
    """

    chi: np.ndarray
    """`[components, data]`, as stored."""
    counts: np.ndarray
    """`[data]`"""
    mean: np.ndarray
    """Mean of χ over data `[components]`; not finite where χ has values that are missing."""
    scale: float
    """nβ/n, nats for nats²."""
    weight: np.ndarray
    """`[data]`"""
    avoided: np.ndarray
    """`[directions, data]`"""

    @property
    def total(self) -> float:
        """How many data there are in all units."""
        return float(self.counts.sum())

    @property
    def rows(self) -> int:
        return len(self.chi) + len(self.avoided)

    @property
    def data(self) -> int:
        return self.chi.shape[1]

    def gram(self) -> np.ndarray:
        """R·Rᵀ `[components, components]`, weighted."""
        components = len(self.chi)
        mean = torch.from_numpy(self.mean[:components])[:, None]
        panels = [slice(start, start + PANEL) for start in range(0, components, PANEL)]

        def stripe(parts: Iterator[tuple[slice, Tensor]]) -> Tensor:
            gram = torch.zeros(components, components, dtype=torch.float64)
            for where, every in parts:
                block = every[:components]
                block.sub_(mean).mul_(torch.from_numpy(np.sqrt(self.counts[where] * self.weight[where])))
                for rows in panels:  # on and under the diagonal: the rest is the same again
                    gram[rows.start :, rows].addmm_(block[rows.start :], block[rows].T)
            return gram

        lower = np.tril(self.sum(stripe))
        return self.scale**2 * (lower + np.tril(lower, -1).T)

    def along(self, combination: np.ndarray) -> np.ndarray:
        """Rᵀ·combination, weighted: what each datum does to a combination of rows `[data]`."""
        found = np.empty(self.data)

        def keep(where: slice, along: np.ndarray) -> np.ndarray:
            found[where] = along
            return along

        self.both(combination, keep)
        return found

    def of(self, change: np.ndarray) -> np.ndarray:
        """R·change: dμ `[rows]` of a change of the weights `[data]`."""
        return self.both(np.zeros(self.rows), lambda where, _: change[where])

    def both(self, combination: np.ndarray, change: Callable[[slice, np.ndarray], np.ndarray]) -> np.ndarray:
        """R·change(Rᵀ·combination) `[rows]`, in one pass: `change` is given where in the data and Rᵀ there."""
        offset, factors = float(combination @ self.mean), torch.from_numpy(combination)

        def stripe(parts: Iterator[tuple[slice, Tensor]]) -> Tensor:
            found = torch.zeros(self.rows + 1, dtype=torch.float64)
            for where, block in parts:
                along = self.scale * self.weight[where] * (torch.mv(block.T, factors).numpy() - offset)
                weighted = torch.from_numpy(self.counts[where] * change(where, along))
                found[:-1] += torch.mv(block, weighted)
                found[-1] += weighted.sum()
            return found

        *found, total = self.sum(stripe)
        return self.scale * (np.array(found) - total * self.mean)

    def sum(self, stripe: Callable[[Iterator[tuple[slice, Tensor]]], Tensor]) -> np.ndarray:
        """The sum of what `stripe` makes of each part of the data, given its slices and the rows there in double.

        They `[rows, some data]` are in memory that the next slice takes over.
        """
        edges = np.linspace(0, self.data, min(STRIPES, -(-self.chi.size // BLOCK)) + 1).astype(int)

        def parts(start: int, stop: int) -> Iterator[tuple[slice, Tensor]]:
            memory = torch.empty(0, dtype=torch.float64)
            for where in blocks(self.rows, start, stop):
                size = self.rows * (where.stop - where.start)
                memory = memory if len(memory) >= size else torch.empty(size, dtype=torch.float64)
                block = memory[:size].view(self.rows, -1)
                np.copyto(block[: len(self.chi)].numpy(), self.chi[:, where])
                np.copyto(block[len(self.chi) :].numpy(), self.avoided[:, where])
                yield where, block

        def work(ends: tuple[int, int]) -> Tensor:
            return stripe(parts(*ends))

        with one_thread_each(min(torch.get_num_threads(), len(edges) - 1)) as pool:
            total = torch.stack(list(pool.map(work, pairwise(edges)))).sum(0)
        return total.numpy()

    def take(self, chosen: np.ndarray) -> Response:
        """The response to weights of some of the data, the others keeping theirs."""
        parts = {name: getattr(self, name)[..., chosen] for name in ("chi", "counts", "weight", "avoided")}
        return replace(self, **parts)


def response_of(chi: np.ndarray, counts: np.ndarray, n_beta: float) -> Response:
    """The response dμ = nβ·χ·change/n, whose rows have mean 0 over data."""
    total, alike = float(counts.sum()), np.ones(len(counts))
    uncentred = Response(chi, counts, np.zeros(len(chi)), 1.0 / total, alike, np.zeros((0, len(counts)), np.float32))
    return replace(uncentred, mean=uncentred.of(alike), scale=n_beta / total)
