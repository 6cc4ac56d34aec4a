"""Chains that have not diverged."""

from __future__ import annotations

import warnings

import numpy as np
import xarray as xr

from patterning_fast.categories import DivergedWarning
from patterning_fast.engine.run import ChainDivergedError


def dataset_of(samples: xr.DataTree) -> xr.Dataset:
    """The variables of a tree; raises ValueError for one that `sample` has not made."""
    found = samples.to_dataset()
    if "init_loss" not in found or "metadata" not in found.attrs:
        there = ", ".join(map(str, found)) or "no variables"
        raise ValueError(f"samples must be what sample returns, with init_loss and metadata, got {there}")
    return found


def whole_chains(losses: xr.DataArray, name: str) -> np.ndarray:
    """The chains all of whose losses are finite, int64; warns of others, raises ChainDivergedError for none."""
    finite = np.isfinite(losses.values).reshape(losses.sizes["chain"], -1).all(1)
    if not finite.any():
        raise ChainDivergedError(f"{name}: all {len(finite)} chains have diverged; sample again with a lower lr")
    if not finite.all():
        lost = ", ".join(map(str, (~finite).nonzero()[0]))
        warnings.warn(
            f"{name}: chains {lost} of {len(finite)} have diverged, and are left out", DivergedWarning, stacklevel=4
        )
    return finite.nonzero()[0]
