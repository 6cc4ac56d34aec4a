"""Is a prediction kept? Predicted against realised dμ at several strengths, and the radius up to which they agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats
import xarray as xr

from patterning_fast.patterning.plan import Plan

LEVEL = 0.01
"""Chance of calling a prediction broken that holds, where its errors are all that it is off by."""


def agreement(
    plan: Plan,
    names: Sequence[str],
    fractions: Sequence[float],
    by_group: np.ndarray,
    known: Sequence[str | None],
    tolerance: float,
    attrs: dict[str, Any],
) -> xr.Dataset:
    """Predicted and realised dμ by strength and component, and a verdict on each strength.

    A strength's differences make χ² over components, each in its own error and as Student's t of its groups; its
    `deviation` is |realised − predicted|/|predicted|, norms over components in nats. The verdict is

    - "broken" where χ² is larger than errors make it once in 100 and the deviation is above the tolerance;
    - else "too noisy" where errors alone are a deviation above the tolerance: agreement would mean nothing;
    - else "kept".

    `attrs["radius"]` is the largest strength that is kept, with none below it broken or diverged; 0 without any.

    Args:
        names: the components. fractions: of the plan's strength, ascending.
        by_group: realised dμ `[fractions, components, groups]`, NaN where a group has lost its chains.
        known: a strength's verdict where it is known beforehand, whatever the numbers say.
    """
    predicted = plan.predicted.sel(component=list(names))
    scale = np.asarray(fractions)[:, None]
    expected, expected_error = (scale * predicted[name].values for name in ("dmu", "dmu_error"))
    healthy = np.isfinite(by_group).sum(2)
    with np.errstate(invalid="ignore", divide="ignore"):
        realised = np.nansum(by_group, 2) / healthy
        spread = np.nansum((by_group - realised[:, :, None]) ** 2, 2) / (healthy - 1)
        realised_error = np.where(healthy > 1, np.sqrt(spread / healthy), np.nan)
        error = np.hypot(expected_error, realised_error)
        z = (realised - expected) / error
    tails = 2 * scipy.stats.t.sf(np.abs(z), np.maximum(healthy - 1, 1))
    chi_squared = scipy.stats.chi2.isf(tails, 1).sum(1)  # NaN for a component without an estimate
    p_value = scipy.stats.chi2.sf(chi_squared, len(names))
    size = np.linalg.norm(expected, axis=1)
    deviation = np.linalg.norm(realised - expected, axis=1) / size
    deviation_error = np.linalg.norm(error, axis=1) / size
    broken = (p_value < LEVEL) & (deviation > tolerance)
    told = np.where(broken, "broken", np.where(deviation_error <= tolerance, "kept", "too noisy"))
    verdict = np.array([before or found for before, found in zip(known, told.tolist(), strict=True)])
    strengths = np.asarray(fractions) * plan.attrs["strength"]
    both, by_strength = ("strength", "component"), ("strength",)
    nats = {"units": "nats"}
    return xr.Dataset(
        {
            "predicted": (both, expected, nats | {"long_name": "predicted change of mu"}),
            "predicted_error": (both, expected_error, nats | {"long_name": "standard error of predicted"}),
            "realised": (both, realised, nats | {"long_name": "realised change of mu"}),
            "realised_error": (both, realised_error, nats | {"long_name": "standard error of realised"}),
            "z": (both, z, {"long_name": "realised - predicted, in standard errors", "units": "1"}),
            "p_value": (by_strength, p_value, {"long_name": "p-value of chi squared over components", "units": "1"}),
            "deviation": (by_strength, deviation, {"long_name": "|realised - predicted|/|predicted|", "units": "1"}),
            "deviation_error": (by_strength, deviation_error, {"long_name": "deviation of errors alone", "units": "1"}),
            "verdict": (by_strength, verdict),
        },
        coords={
            "strength": ("strength", strengths, {"long_name": "root mean square of rho - 1", "units": "1"}),
            "fraction": ("strength", np.asarray(fractions), {"long_name": "share of the plan's strength"}),
            "component": list(names),
        },
        attrs=attrs | {"radius": radius(strengths, verdict), "tolerance": tolerance},
    )


def radius(strengths: np.ndarray, verdicts: np.ndarray) -> float:
    """The largest strength that is kept, with none below it broken or diverged; 0 without any."""
    largest = 0.0
    for strength, verdict in zip(strengths, verdicts, strict=True):
        if verdict in ("broken", "diverged"):
            break
        if verdict == "kept":
            largest = float(strength)
    return largest


def check_comparison(plan: Plan, n_beta: float, fractions: Sequence[float]) -> list[float]:
    """The fractions in ascending order; raises ValueError for what cannot be compared."""
    if plan.attrs["n_beta"] != n_beta:
        raise ValueError(f"the plan was made at n_beta {plan.attrs['n_beta']}, the posterior has {n_beta}")
    return sorted(set(fractions))


def predicted_names(plan: Plan, sampled: Sequence[str]) -> list[str]:
    """The sampled components that the plan predicts; raises ValueError where there is none."""
    names = [name for name in sampled if name in plan.predicted["component"].values]
    if not names:
        raise ValueError(
            f"none of the components {list(sampled)} is among the plan's, {plan.predicted['component'].values.tolist()}"
            ": pass components= as for χ"
        )
    return names
