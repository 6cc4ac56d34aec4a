"""Susceptibilities made up from known parts."""

from __future__ import annotations

import numpy as np
import xarray as xr


def made_up_chi(matrix: np.ndarray, error: float = 1e-6, groups: int = 4, n_beta: float = 10.0) -> xr.Dataset:
    """χ `[component, sample]` with uniform errors and groups that scatter accordingly."""
    generator = np.random.default_rng(0)
    scatter = error * groups**0.5 * generator.standard_normal((len(matrix), groups, matrix.shape[1]))
    return xr.Dataset(
        {
            "chi": (("component", "sample"), matrix),
            "chi_error": (("component", "sample"), np.full_like(matrix, error)),
            "chi_group": (("component", "group", "sample"), matrix[:, None] + scatter),
        },
        coords={
            "component": [f"c{index}" for index in range(len(matrix))],
            "probe": ("sample", np.full(matrix.shape[1], "data")),
            "sample": np.arange(matrix.shape[1]),
        },
        attrs={"n_beta": n_beta},
    )
