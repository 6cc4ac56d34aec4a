"""Modes: the directions along which components and data answer each other (arXiv:2601.13548, §3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr


@dataclass(frozen=True)
class Mode:
    """One mode: unit loadings on components and on data, and its singular value. `-mode` points the other way."""

    components: xr.DataArray
    data: xr.DataArray
    singular_value: float

    def __neg__(self) -> Mode:
        return Mode(-self.components, -self.data, self.singular_value)


@dataclass(frozen=True)
class Modes:
    """The modes of a susceptibility matrix, the strongest first: `modes[0]`, `len(modes)`, or `table` for all."""

    table: xr.Dataset

    def __len__(self) -> int:
        return self.table.sizes["mode"]

    def __getitem__(self, index: int) -> Mode:
        one = self.table.isel(mode=index)
        return Mode(one["component_loading"], one["data_loading"], float(one["singular_value"]))


def standardised(chi: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """χ z-scored over data for each component `[components, data]`, with the scales taken out `[components]`.

    Raw χ is not comparable between components: each carries a factor of its own that no datum changes.
    """
    check_matrix(chi)
    matrix = chi["chi"].values.astype(np.float64)
    mean, scale = matrix.mean(1), matrix.std(1)
    flat = chi["component"].values[scale == 0].tolist()
    if flat:
        raise ValueError(
            f"χ of {flat} is the same for all data: leave these components out with chi.sel(component=...)"
        )
    return (matrix - mean[:, None]) / scale[:, None], scale


def check_matrix(chi: xr.Dataset) -> None:
    """Raise ValueError unless χ and its error are there and finite."""
    missing = {"chi", "chi_error", "chi_group"} - set(chi.data_vars)
    if missing:
        raise ValueError(f"expected the dataset that susceptibilities() returns; {sorted(missing)} are missing")
    for name in ("chi", "chi_error"):
        broken = int((~np.isfinite(chi[name].values)).sum())
        if broken:
            raise ValueError(f"{broken} values of {name} are not finite; drop their tokens first")


def modes(chi: xr.Dataset, *, centre_data: bool = True) -> Modes:
    """SVD of χ after z-scoring each component over data and, by `centre_data`, taking out each datum's mean.

    The mean over components is what they all share: with many components it drowns what sets them apart, and is taken
    out. With few, most of them part of one circuit, it may be the circuit itself: keep it with `centre_data=False`.

    `chi` is what `susceptibilities()` returns, with at least two components. Each mode is signed so that its largest
    component loading is positive: data it loads on positively raise E[φ] of that component when up-weighted.
    `noise_floor` is the singular value that the errors of χ alone would give: √max_C Σ_z (error/scale)². Modes under
    it are not to be trusted. Raises ValueError for χ that is missing, not finite, or of one component.
    """
    if chi.sizes["component"] < 2:
        raise ValueError("modes compare components: χ of at least two is needed")
    z, scale = standardised(chi)
    if centre_data:
        z -= z.mean(0)
    eigenvalues, vectors = np.linalg.eigh(z @ z.T)
    kept = np.argsort(eigenvalues)[::-1][: len(z) - centre_data]  # centring takes one dimension out
    singular_values, components = np.sqrt(np.maximum(eigenvalues[kept], 0.0)), vectors[:, kept].T
    components *= np.sign(components[np.arange(len(kept)), np.abs(components).argmax(1)])[:, None]
    data = components @ z / np.where(singular_values > 0, singular_values, 1.0)[:, None]
    noise = (chi["chi_error"].values / scale[:, None]) ** 2
    dimension = chi["chi"].dims[1]
    table = xr.Dataset(
        {
            "singular_value": ("mode", singular_values),
            "share": ("mode", singular_values**2 / (singular_values**2).sum()),
            "component_loading": (("mode", "component"), components),
            "data_loading": (("mode", dimension), data),
        },
        coords=dict(chi["chi"].coords),
        attrs=chi.attrs | {"noise_floor": float(np.sqrt(noise.sum(1).max()))},
    )
    return Modes(table)
