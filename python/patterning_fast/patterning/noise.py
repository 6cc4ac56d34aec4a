"""Draws of χ's noise from its independent groups, and the inner products that modes and their errors are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.linalg import helmert

BLOCK_BYTES = 2**25
"""What one block of data takes, draws of noise included."""

ROWS = 2048
"""Most rows, components × groups, whose inner products are taken; more groups are merged, to no fewer than 4."""


@dataclass(frozen=True)
class InnerProducts:
    """Inner products over the data of χ and of draws of its noise, each row less its mean."""

    mean: np.ndarray
    """Of χ over the data, `[components]`."""
    products: np.ndarray
    """float64 `[draws, components, draws, components]`; draw 0 is χ itself, the others are noise as large as χ's."""
    data: int
    """Over how many data they were summed."""


def inner_products(chi: xr.Dataset) -> InnerProducts:
    """Inner products over data of χ and of as many independent draws of its noise as its groups give, less one.

    A contrast of groups, Σ u_g χ_g / √groups with Σ u_g = 0 and |u| = 1, holds none of the signal and noise of the
    size and shape of that in their mean: over data, and between components, however those depend on each other.

    Reads the data in blocks and multiplies them in χ's own precision; sums are float64. Raises ValueError for
    groups that are not finite for some data, and for components with fewer than two groups.
    """
    contrasts, shift = group_contrasts(chi["chi_group"], max(4, ROWS // chi.sizes["component"])), np.zeros(0)
    draws, components = contrasts.shape[1] + 1, contrasts.shape[0]
    total, squares, data = np.zeros(draws * components), np.zeros((draws * components,) * 2), 0
    for estimate, groups in blocks(chi, draws):
        rows = np.empty((draws, components, estimate.shape[1]), dtype=estimate.dtype)
        rows[0] = estimate
        rows[1:] = (contrasts.astype(estimate.dtype) @ groups).swapaxes(0, 1)
        rows = rows.reshape(draws * components, -1)
        if not data:
            shift = rows.mean(1, dtype=np.float64)
        rows -= shift.astype(rows.dtype)[:, None]
        total += rows.sum(1, dtype=np.float64)
        squares += rows @ rows.T
        data += rows.shape[1]
    squares -= np.outer(total, total) / data
    # The shift as it was taken off: rounded to the precision of χ.
    mean = shift.astype(chi["chi"].dtype)[:components] + total[:components] / data
    return InnerProducts(mean, squares.reshape(draws, components, draws, components), data)


def blocks(chi: xr.Dataset, draws: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """χ `[components, block]` and its healthy groups `[components, groups, block]`, others 0, by blocks of the data."""
    dimension = chi["chi"].dims[1]
    lost = lost_groups(chi["chi_group"])
    count = max(1, BLOCK_BYTES // (8 * chi.sizes["component"] * max(draws, chi.sizes["group"])))
    for first in range(0, chi.sizes[dimension], count):
        part = chi[["chi", "chi_group"]].isel({dimension: slice(first, first + count)})
        estimate = part["chi"].values
        groups = np.where(lost[:, :, None], 0, part["chi_group"].values).astype(estimate.dtype, copy=False)
        broken = groups.size - int(np.isfinite(groups).sum())
        if broken:
            raise ValueError(f"{broken} values of chi_group are not finite; drop their tokens first")
        yield estimate, groups


def lost_groups(group: xr.DataArray) -> np.ndarray:
    """Groups of a component that have lost all their chains, bool `[components, groups]`: NaN from the first datum on.

    Raises ValueError where a component has fewer than two groups left.
    """
    lost = np.isnan(group[:, :, 0].values)
    few = group["component"].values[(~lost).sum(1) < 2].tolist()
    if few:
        raise ValueError(
            f"χ of {few} has fewer than two groups of chains, so its noise is not known: run more chains, or leave "
            "these components out with chi.sel(component=...)"
        )
    return lost


def group_contrasts(group: xr.DataArray, most: int) -> np.ndarray:
    """Contrasts that make draws of noise of a component's groups, `[components, draws, groups]`.

    Where there are more than `most` groups, some are merged. Contrasts are the same for all components with all their
    groups, so that noise which components share stays shared.
    """
    lost = lost_groups(group)
    components, groups = lost.shape
    merged = min(groups, most)
    basis = helmert(merged)
    contrasts = np.zeros((components, merged - 1, groups))
    for own, gone in zip(contrasts, lost, strict=True):
        healthy = np.flatnonzero(~gone)
        into = np.arange(len(healthy)) % merged
        size = np.bincount(into, minlength=merged)
        root = np.sqrt(size / len(healthy))
        # A merged group's mean, times the root of its size, has the noise of one group; with √size taken out of the
        # contrast nothing is left of the signal.
        there = np.where(size > 0, basis, 0.0)
        there -= np.outer(there @ root, root)
        there *= np.sqrt((merged - 1) / np.sum(there**2))
        own[:, healthy] = there[:, into] / np.sqrt(size[into] * len(healthy))
    return contrasts
