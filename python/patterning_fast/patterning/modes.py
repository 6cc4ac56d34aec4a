"""Modes: the directions along which components and data answer each other (arXiv:2601.13548, §3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import xarray as xr

from patterning_fast.arguments import Count, Estimate, Seed, checked
from patterning_fast.patterning.estimates import check_chi
from patterning_fast.patterning.noise import BLOCK_BYTES, InnerProducts, inner_products
from patterning_fast.patterning.settled import unsettled_attrs
from patterning_fast.patterning.spectrum import Spectrum, ratio
from patterning_fast.patterning.stability import QUANTILES, stability
from patterning_fast.short import html_of, listed


@dataclass(frozen=True)
@checked
class Mode:
    """One mode: unit loadings on components and on data, and its singular value. `-mode` points the other way."""

    components: xr.DataArray
    data: xr.DataArray
    singular_value: Estimate
    singular_value_error: Estimate
    above_floor: bool
    """Whether its singular value is more than that of noise alone."""

    def __repr__(self) -> str:
        names, loadings = self.components["component"].values, self.components.values
        strongest = [f"{names[at]} {loadings[at]:.2f}" for at in abs(loadings).argsort()[::-1]]
        place = "above" if self.above_floor else "below"
        value = f"{self.singular_value:.3g} ± {self.singular_value_error:.2g}"
        return f"<Mode of singular value {value}, {place} the noise floor; {listed(strongest)}>"

    def __neg__(self) -> Mode:
        return replace(self, components=-self.components, data=-self.data)


@dataclass(frozen=True)
@checked
class Modes:
    """The modes of a susceptibility matrix, the strongest first.

    `modes[0]` is a mode, `modes[:3]` are the first three, `len(modes)` is their number, `table` has all as a dataset.
    """

    table: xr.Dataset

    def __repr__(self) -> str:
        values = [f"{each:.3g}" for each in self.table["singular_value"].values]
        above, components = int(self.table["above_floor"].sum()), self.table.sizes["component"]
        return (
            f"<{len(self)} modes of {components} components, {above} above the noise floor; "
            f"singular values {listed(values)}>"
        )

    def _repr_html_(self) -> str:
        return html_of(self, self.table)

    def __len__(self) -> int:
        return self.table.sizes["mode"]

    @overload
    def __getitem__(self, index: int) -> Mode: ...
    @overload
    def __getitem__(self, index: slice) -> Modes: ...
    def __getitem__(self, index: int | slice) -> Mode | Modes:
        chosen = self.table.isel(mode=index)
        if isinstance(index, slice):
            return Modes(chosen)
        return Mode(
            chosen["component_loading"],
            chosen["data_loading"],
            float(chosen["singular_value"]),
            float(chosen["singular_value_error"]),
            bool(chosen["above_floor"]),
        )


def check_matrix(chi: xr.Dataset) -> None:
    """Raise ValueError unless χ and its error are there and finite."""
    check_chi(chi)
    if chi.sizes["component"] < 2:
        raise ValueError("modes compare components: χ of at least two is needed")
    for name in ("chi", "chi_error"):
        values = chi[name].values
        broken = values.size - sum(int(np.isfinite(row).sum()) for row in values)
        if broken:
            raise ValueError(f"{broken} values of {name} are not finite; drop their tokens first")


@checked
def modes(
    chi: xr.Dataset, *, centre_data: bool = True, keep: Count | None = None, seed: Seed = 0, unsettled: bool = False
) -> Modes:
    """SVD of χ after z-scoring each component over data and, by `centre_data`, taking out each datum's mean.

    The mean over components is what they all share: with many components it drowns what sets them apart, and is taken
    out. With few, most of them part of one circuit, it may be the circuit itself: keep it with `centre_data=False`.

    Args:
        chi: what `susceptibilities()` returns, with at least two components. Read in blocks of data; memory is that of
            the loadings on data, which take as much as χ does if all modes are kept.
        centre_data: take out each datum's mean over components.
        keep: modes to keep, the strongest; None for all.
        seed: of the draws of noise that errors and intervals come from.
        unsettled: take χ of components whose chains had not settled, too; `attrs["unsettled_components"]` names them.

    Returns modes whose `table` has, by mode,

    - `singular_value`, `singular_value_error`, and the `share` of the sum of squares of all;
    - `signal`, `signal_error`: the singular value without the square that noise adds to it;
    - `above_floor`: whether the singular value is above `attrs["noise_floor"]`, which noise alone exceeds once in 20
      runs: a prediction bound for the first singular value of draws of noise, contrasts of χ's groups (parallel
      analysis, Horn 1965). NaN, with nothing above it, where there are fewer than three groups;
    - `component_loading` and `data_loading`, of unit norm, signed so that the largest component loading is positive:
      data it loads on positively raise E[φ] of that component when up-weighted;
    - `component_cosine` and `data_cosine`, by quantile: how near the loadings are to what they would be without
      noise, by |cosine|, from repeats of the estimate with noise drawn anew (bootstrap over groups).

    `attrs["marchenko_pastur"]` is the edge of the spectrum of noise that is independent between data (Marchenko &
    Pastur 1967); that of chains is not, and its floor is higher.

    Raises ValueError for χ that is missing, not finite, of one component, or the same for all data, for components with
    fewer than two groups of chains, and for those whose chains had not settled.
    """
    check_matrix(chi)
    said = unsettled_attrs(chi, unsettled)
    summed = inner_products(chi)
    scale = scales(summed, chi)
    spectrum = Spectrum.of(summed, scale, centre_data)
    number = min(keep or spectrum.rank, spectrum.rank)
    every, vectors = spectrum.modes
    values, components = every[:number], vectors[:, :number]
    repeats = stability(spectrum, number, np.random.default_rng(seed))
    floor = spectrum.floor()
    table = xr.Dataset(
        {
            "singular_value": ("mode", values),
            "singular_value_error": ("mode", repeats.error),
            "share": ("mode", ratio(values**2, np.sum(every**2, keepdims=True))),
            "signal": ("mode", spectrum.without_noise(values, components)),
            "signal_error": ("mode", repeats.signal_error),
            "above_floor": ("mode", values > floor),
            "component_loading": (("mode", "component"), components.T),
            "data_loading": (
                ("mode", chi["chi"].dims[1]),
                data_loadings(chi, summed.mean, ratio(components / scale[:, None], values)),
            ),
            "component_cosine": (("mode", "quantile"), repeats.component_cosine),
            "data_cosine": (("mode", "quantile"), repeats.data_cosine),
        },
        coords=dict(chi["chi"].coords) | {"quantile": list(QUANTILES)},
        attrs=chi.attrs
        | {
            "noise_floor": floor,
            "marchenko_pastur": spectrum.marchenko_pastur(),
            "modes_above_floor": int((every > floor).sum()),
        }
        | said,
    )
    return Modes(table)


def scales(summed: InnerProducts, chi: xr.Dataset) -> np.ndarray:
    """Standard deviation of χ over data by component; raises ValueError where there is none.

    Raw χ is not comparable between components: each carries a factor of its own that no datum changes.
    """
    scale = np.sqrt(np.diagonal(summed.products[0, :, 0]) / summed.data)
    rounding = np.finfo(chi["chi"].dtype).eps * np.abs(summed.mean)
    flat = chi["component"].values[scale <= rounding].tolist()
    if flat:
        raise ValueError(
            f"χ of {flat} is the same for all data: leave these components out with chi.sel(component=...)"
        )
    return scale


def data_loadings(chi: xr.Dataset, mean: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sums of χ less its mean over data, `[modes, data]` in χ's own precision, by weights `[components, modes]`."""
    values = chi["chi"].values
    loadings = np.empty((weights.shape[1], values.shape[1]), dtype=values.dtype)
    count = max(1, BLOCK_BYTES // (8 * len(values)))
    for first in range(0, values.shape[1], count):
        block = slice(first, first + count)
        centred = values[:, block] - mean.astype(values.dtype)[:, None]
        np.matmul(weights.T.astype(values.dtype), centred, out=loadings[:, block])
    return loadings
