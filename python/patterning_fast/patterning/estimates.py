"""How large the noise of χ is, and in how many independent directions of the data it lies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr

from patterning_fast.estimators.aggregation import error_of_means, means_by_unit
from patterning_fast.patterning.response import blocks

ROUNDING = float(np.finfo(np.float32).eps)
"""Relative size of the least noise there is: χ by group is in float32."""


@dataclass(frozen=True)
class Estimates:
    """χ with its errors, by datum or by unit of data that share a weight."""

    chi: np.ndarray
    """`[components, data]`"""
    error: xr.DataArray
    group: xr.DataArray
    """`[component, group, data]`: read in blocks, so it may be larger than memory if it is opened from disk."""
    counts: np.ndarray
    """`[data]`: how many tokens or samples each unit has."""

    @cached_property
    def error_norm(self) -> np.ndarray:
        """√Σ error² over data `[components]`."""
        total = np.zeros(len(self.chi))
        for where in blocks(len(self.chi), 0, self.chi.shape[1]):
            total += (self.error[:, where].values.astype(np.float64) ** 2 * self.counts[where]).sum(1)
        return np.sqrt(total)

    def response_error(self, change: np.ndarray, n_beta: float) -> np.ndarray:
        """Standard error of dμ `[components]` that a change of the weights `[data]` gives, from independent groups."""
        by_group = np.zeros(self.group.shape[:2])
        weighted = n_beta / self.counts.sum() * self.counts * change
        for where in blocks(len(self.chi), 0, len(change)):
            by_group += self.group[:, :, where].values @ weighted[where]
        healthy = np.isfinite(by_group).sum(1)
        return np.nanstd(by_group, axis=1, ddof=1) / np.sqrt(healthy)


def check_chi(chi: xr.Dataset) -> None:
    """Raise ValueError unless χ, its error and its values by group lie as in `susceptibilities()`."""
    missing = {"chi", "chi_error", "chi_group"} - set(chi.data_vars)
    if missing:
        raise ValueError(f"expected the dataset that susceptibilities() returns; {sorted(missing)} are missing")
    dims = chi["chi"].dims
    if len(dims) != 2 or dims[0] != "component" or chi["chi_group"].dims != ("component", "group", dims[1]):
        raise ValueError(
            f"χ must have dimensions (component, data) and chi_group (component, group, data), got {dims} and "
            f"{chi['chi_group'].dims}; put them back with transpose('component', 'group', ...)"
        )
    if not chi["chi"].size:
        raise ValueError(f"χ must be of at least one component and one datum, got shape {list(chi['chi'].shape)}")


def by_datum(chi: xr.Dataset) -> Estimates:
    """The estimates as they are, each datum, or group that `aggregate` made, with a weight of its own."""
    counts = chi["count"].values.astype(np.float64) if "count" in chi.coords else np.ones(chi["chi"].shape[1])
    return Estimates(chi["chi"].values, chi["chi_error"], chi["chi_group"], counts)


def by_unit(chi: xr.Dataset, unit: str) -> tuple[Estimates, np.ndarray]:
    """Means of χ over each unit's data, errors from the means by group; and which unit each datum is of `[data]`.

    Raises ValueError where χ has no coordinate of that name over its data.
    """
    dimension = str(chi["chi"].dims[1])
    known = sorted(str(name) for name, each in chi["chi"].coords.items() if each.dims == (dimension,))
    if unit not in known:
        raise ValueError(
            f"unit {unit!r} is no coordinate of the data of χ, which has {known}; add it with "
            f"chi.assign_coords({unit}=({dimension!r}, ids))"
        )
    _, codes, counts = np.unique(chi[unit].values, return_inverse=True, return_counts=True)

    group = means_by_unit(chi["chi_group"].values, codes, counts)
    error = error_of_means(group)
    arrays = (xr.DataArray(error, dims=("component", unit)), xr.DataArray(group, dims=("component", "group", unit)))
    return Estimates(means_by_unit(chi["chi"].values, codes, counts), *arrays, counts.astype(np.float64)), codes
