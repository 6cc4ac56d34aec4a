"""Susceptibilities with a known truth and noise of known size and shape."""

from __future__ import annotations

import numpy as np
import xarray as xr


def noisy_chi(
    truth: np.ndarray, noise: float, generator: np.random.Generator, *, groups: int = 4, directions: int | None = None
) -> xr.Dataset:
    """χ `[component, sample]` of groups that each add noise to the truth, of standard deviation `noise` in their mean.

    The noise of a component lies in as many random directions of the data as `directions` says, as that of chains
    does, which the parameters that move bring about; None for independent noise.
    """
    components, data = truth.shape
    shape = (components, groups, directions or data)
    scatter = noise * np.sqrt(groups) * generator.standard_normal(shape)
    if directions is not None:
        scatter = scatter @ generator.standard_normal((components, directions, data)) / np.sqrt(directions)
    by_group = truth[:, None] + scatter
    return xr.Dataset(
        {
            "chi": (("component", "sample"), by_group.mean(1)),
            "chi_error": (("component", "sample"), by_group.std(1, ddof=1) / np.sqrt(groups)),
            "chi_group": (("component", "group", "sample"), by_group),
        },
        coords={
            "component": [f"c{index}" for index in range(components)],
            "probe": ("sample", np.full(data, "data")),
            "sample": np.arange(data),
        },
        attrs={"n_beta": 10.0},
    )


def planted(values: list[float], components: int, data: int, generator: np.random.Generator) -> np.ndarray:
    """A matrix `[components, data]` with these singular values and random orthonormal loadings of mean 0 over data."""
    left = np.linalg.qr(generator.standard_normal((components, len(values))))[0]
    right = generator.standard_normal((data, len(values)))
    right = np.linalg.qr(right - right.mean(0))[0]
    return (left * values) @ right.T
