"""A plan: weights for data, what they are expected to do, and how far that is to be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from patterning_fast.arguments import NonNegative, Number, checked
from patterning_fast.patterning.constraints import relative_entropy
from patterning_fast.patterning.estimates import Estimates
from patterning_fast.patterning.metric import Noise
from patterning_fast.patterning.regularization import Spectrum
from patterning_fast.short import html_of, listed


@dataclass(frozen=True)
@checked
class Plan:
    """Weights ρ for data, and what they are predicted to do."""

    weights: xr.DataArray
    """ρ of each token or sample; mean 1."""
    predicted: xr.Dataset
    """By component [nats]: `dmu`, what is to be expected of the weights; `dmu_error`, from the independent groups of
    χ; `asked`, NaN where the target does not say; `leakage`, dμ of components that should stay, NaN for the others.
    By direction of χ: `singular_value` in units of its noise, `signal`, the share of it that is signal, and
    `inverted`, what the pseudo-inverse was multiplied by: 0 where a direction was dropped."""
    attrs: dict[str, Any]
    """How the plan came about: see `report`."""

    def __repr__(self) -> str:
        rho, told = self.weights.values, self.predicted
        changes = [
            f"{name} {change:.3g} ± {error:.2g}"
            for name, change, error in zip(told["component"].values, told["dmu"].values, told["dmu_error"].values,
                                           strict=True)
        ]  # fmt: skip
        return (
            f"<Plan of {rho.size:,} weights from {rho.min():.3g} to {rho.max():.3g}, strength "
            f"{self.attrs['strength']:.3g}; dμ {listed(changes)}>"
        )

    def _repr_html_(self) -> str:
        return html_of(self, self.predicted)

    def scaled(self, factor: Number) -> xr.DataArray:
        """Weights of the same direction at `factor` times the strength."""
        return 1.0 + factor * (self.weights - 1.0)

    def verified(self, strength: NonNegative) -> Plan:
        """The plan, with the largest strength at which sampling again has kept its prediction."""
        return replace(self, attrs=self.attrs | {"verified_strength": strength})

    @property
    def within_verified(self) -> bool | None:
        """Whether the strength is inside the range where linear response was verified; None before it has been."""
        verified = self.attrs["verified_strength"]
        return None if verified is None else bool(self.attrs["strength"] <= verified)


def predictions(
    noise: Noise,
    estimates: Estimates,
    spectrum: Spectrum,
    weights: np.ndarray,
    asked: np.ndarray | None,
    made_from_chi: bool,
    unseen: float,
) -> dict[str, tuple[str, np.ndarray, dict[str, str]]]:
    """The variables of a plan's `predicted`, from weights by unit of data `[data]`.

    χ·change is unbiased for weights that know nothing of χ's noise. Weights made from χ follow it, and the square of
    noise that the product then holds is taken off. How far that square is known is added to the scatter of groups.
    Weights that avoid what noise the groups show meet less of it in them than in χ, whose noise is another draw: the
    scatter is then made as large as draws show that the weights' metric was not made from.
    """
    change = weights - 1.0
    product = noise.response.of(change)[: len(estimates.chi)]
    expected, error = product, estimates.response_error(change, noise.response.scale * noise.response.total)
    if made_from_chi:
        expected = spectrum.expected(product)
        error = np.hypot(math.sqrt(unseen) * error, spectrum.square_error(product))
    nowhere = np.full(len(expected), np.nan)
    stays = np.zeros(len(expected), dtype=bool) if asked is None else asked == 0
    by_component = {
        "dmu": (expected, "expected change of mu"),
        "dmu_error": (error, "standard error of the expected change of mu"),
        "asked": (nowhere if asked is None else asked, "change of mu that was asked for"),
        "leakage": (np.where(stays, expected, np.nan), "change of mu of components that should stay"),
    }
    by_direction = {
        "singular_value": (spectrum.singular, "singular value of chi, in units of its noise"),
        "signal": (spectrum.signal, "share of the singular value that is signal"),
        "inverted": (spectrum.multiples, "the inverse, in units of the pseudo-inverse"),
    }
    variables = {name: ("component", *each) for name, each in by_component.items()}
    variables |= {name: ("direction", *each) for name, each in by_direction.items()}
    units = {"component": "nats", "direction": "1"}
    return {
        name: (dimension, values, {"long_name": text, "units": units[dimension]})
        for name, (dimension, values, text) in variables.items()
    }


def report(
    predicted: xr.Dataset, spectrum: Spectrum, weights: np.ndarray, counts: np.ndarray, upper: float
) -> dict[str, float | None]:
    """The figures of a plan.

    `strength`, √mean((ρ − 1)²); `effective_sample_size`, (Σρ)²/Σρ² in data; `share_zero` and `share_capped`, of the
    data at either bound; `kl_to_base`, Σ ρ log ρ/n [nats], None with negative weights; `leakage` [nats], the norm over
    components that should stay, `leakage_error` what their errors alone would give; `rank`, how many directions of χ
    are inverted, with the `condition_number` of what is; `verified_strength`, None until it is known.
    """
    total = float(counts.sum())
    stays = np.isfinite(predicted["leakage"].values)
    kept = spectrum.singular[spectrum.kept]

    def norm(name: str) -> float | None:
        return float(np.linalg.norm(predicted[name].values[stays])) if stays.any() else None

    return {
        "strength": math.sqrt(float(counts @ (weights - 1.0) ** 2) / total),
        "effective_sample_size": float(counts @ weights) ** 2 / float(counts @ weights**2),
        "share_zero": float(counts @ (weights == 0)) / total,
        "share_capped": float(counts @ (weights >= upper)) / total,
        "kl_to_base": float(counts @ relative_entropy(weights)) / total if weights.min() >= 0 else None,
        "leakage": norm("leakage"),
        "leakage_error": norm("dmu_error"),
        "rank": len(kept),
        "condition_number": float(kept[0] / kept[-1]) if len(kept) else None,
        "verified_strength": None,
    }
