"""The patterning equation: which data weights move the components as wanted (arXiv:2601.13548, §2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from patterning_fast.patterning.modes import Mode, check_matrix

NegativeWeights = Literal["allow", "clip", "project"]

SHARE_ABOVE_NOISE = 0.5
"""A target must have this share of its (error-scaled) square in directions of χ that stand above the noise."""


@dataclass(frozen=True)
class Plan:
    """Weights ρ for data, and what they are predicted to do."""

    weights: xr.DataArray
    """ρ of each token or sample; mean 1."""
    predicted: xr.Dataset
    """`dmu` [nats] of each component, with `dmu_error` from the independent groups of χ."""
    attrs: dict[str, Any]
    """How the plan came about: strength, policy, share clipped, effective sample size of the weights, rank kept."""

    def scaled(self, factor: float) -> xr.DataArray:
        """Weights of the same direction at `factor` times the strength."""
        return 1.0 + factor * (self.weights - 1.0)


def invert(
    chi: xr.Dataset,
    target: Mapping[str, float] | Mode,
    *,
    strength: float | None = None,
    negative_weights: NegativeWeights = "project",
) -> Plan:
    """Weights ρ = 1 + change, of least norm and mean 1, whose linear response dμ = nβ·χ·(ρ − 1)/n meets a target.

    Args:
        chi: what `susceptibilities()` returns, for all components that matter.
        target: dμ by component [nats], components not named staying where they are; or a mode, whose loadings on
            data are then the direction of the change.
        strength: root mean square of ρ − 1, keeping the target's direction; None takes dμ as it stands.
        negative_weights: "allow" them; "clip" at 0 and rescale to mean 1; or "project": the non-negative weights
            nearest to 1 that still meet the target.

    Directions of χ that its errors do not tell from noise are not inverted.

    Raises:
        ValueError: unknown components, a target that is zero or lies in the noise, a strength that is not positive
            or missing with a mode, targets that no non-negative weights of mean 1 can meet.
    """
    check_matrix(chi)
    if negative_weights not in get_args(NegativeWeights):
        raise ValueError(f"negative_weights must be one of {get_args(NegativeWeights)}, got {negative_weights!r}")
    if strength is not None and not (math.isfinite(strength) and strength > 0):
        raise ValueError(f"strength must be a finite number > 0, got {strength}; reverse a mode with -mode")
    if isinstance(target, Mode):
        if strength is None:
            raise ValueError("a mode is only a direction: say how far to go with strength=")
        change = aligned(target.data, chi).values.astype(np.float64)
        constraints, rank = change[None], 1
    else:
        wanted = target_vector(target, [str(name) for name in chi["component"].values])
        change, constraints, rank = least_norm(chi, wanted)
    change = change - change.mean()
    if strength is not None:
        change *= strength / np.sqrt(np.mean(change**2))
    weights = 1.0 + change
    negative = float(np.mean(weights < 0))
    if negative_weights == "clip":
        weights = np.maximum(weights, 0.0)
        weights /= weights.mean()
    elif negative_weights == "project" and negative:
        weights = 1.0 + project(constraints, change)
    weights_array = xr.DataArray(
        weights,
        dims=chi["chi"].dims[1:],
        coords={name: each for name, each in chi["chi"].coords.items() if each.dims == chi["chi"].dims[1:]},
        name="weight",
        attrs={"long_name": "data weight rho", "units": "1"},
    )
    attrs = {
        "strength": float(np.sqrt(np.mean((weights - 1.0) ** 2))),
        "negative_weights": negative_weights,
        "share_negative_before_policy": negative,
        "share_zero": float(np.mean(weights == 0)),
        "effective_sample_size": float(weights.sum() ** 2 / (weights**2).sum()),
        "rank": rank,
        "n_beta": chi.attrs["n_beta"],
    }
    return Plan(weights_array, predicted_response(chi, weights), attrs)


def aligned(data: xr.DataArray, chi: xr.Dataset) -> xr.DataArray:
    """`data` if it belongs to the data of `chi`; raises ValueError otherwise."""
    dimension = chi["chi"].dims[1]
    same = data.dims == (dimension,) and all(
        np.array_equal(data[name].values, chi[name].values)
        for name in ("probe", "sample", "position")
        if name in chi.coords
    )
    if not same:
        raise ValueError("the mode and χ belong to different data; take the modes of this χ, with the same selection")
    return data


def target_vector(target: Mapping[str, float], components: list[str]) -> np.ndarray:
    """dμ `[components]`; raises ValueError for names that χ lacks, values that are not finite, or nothing asked."""
    unknown = sorted(set(target) - set(components))
    if unknown:
        raise ValueError(f"the target names unknown components {unknown}; χ has {components}")
    wanted = np.array([float(target.get(name, 0.0)) for name in components])
    if not np.isfinite(wanted).all() or not wanted.any():
        raise ValueError(f"the target must be finite and ask for something, got {dict(target)}")
    return wanted


def least_norm(chi: xr.Dataset, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The least change with dμ = wanted in directions of χ above the noise; those directions; their number.

    Rows are scaled by the size of their error: a direction whose singular value is then under 1 + √(components/data),
    the edge of the spectrum of pure noise, is left out.
    """
    matrix = chi["chi"].values.astype(np.float64)
    count = matrix.shape[1]
    scale = float(chi.attrs["n_beta"]) / count
    response = scale * (matrix - matrix.mean(1, keepdims=True))
    error = scale * np.sqrt(np.sum(chi["chi_error"].values ** 2, axis=1))
    left, singular, right = np.linalg.svd(response / error[:, None], full_matrices=False)
    kept = singular > 1.0 + math.sqrt(len(response) / count)
    scaled = wanted / error
    share = float(np.sum((left[:, kept].T @ scaled) ** 2) / np.sum(scaled**2))
    if share < SHARE_ABOVE_NOISE:
        raise ValueError(
            f"only {share:.0%} of the target lies in directions of χ that stand above its noise "
            f"({int(kept.sum())} of {len(kept)}); run more chains or draws, or ask for one of the modes of χ"
        )
    directions = right[kept]
    return directions.T @ ((left[:, kept].T @ scaled) / singular[kept]), directions, int(kept.sum())


def project(constraints: np.ndarray, change: np.ndarray) -> np.ndarray:
    """The change nearest to 0 with the same `constraints @ change` `[rows]`, mean 0, and 1 + change ≥ 0 everywhere.

    Solves the dual, 1 + change = max(0, 1 + Aᵀy) with A the constraints and a row of ones, by Newton's method: as many
    unknowns as constraints, however many data. Raises ValueError where no such weights exist, with what can be met.
    """
    for share in (1.0, *np.linspace(0.95, 0.05, 19)):
        solution = solve_projection(constraints, share * change)
        if solution is None:
            continue
        if share == 1.0:
            return solution
        raise ValueError(
            f"no non-negative weights of mean 1 meet this target; {share:.0%} of it can be met: lower the strength or "
            "target to that, or choose negative_weights='clip' or 'allow'"
        )
    raise ValueError(
        "no non-negative weights of mean 1 come near this target; choose negative_weights='clip' or 'allow'"
    )


def solve_projection(constraints: np.ndarray, change: np.ndarray) -> np.ndarray | None:
    """The projected change, or None where Newton's method finds none."""
    rows = np.vstack([constraints, np.ones(constraints.shape[1])])
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    goal = rows @ (1.0 + change)
    tolerance = 1e-9 * max(1.0, float(np.abs(goal).max()))
    y = np.zeros(len(rows))
    weights = np.maximum(0.0, 1.0 + y @ rows)
    for _ in range(200):
        residual = goal - rows @ weights
        if np.abs(residual).max() < tolerance:
            return weights - 1.0
        active = rows[:, weights > 0]
        step = np.linalg.lstsq(active @ active.T + 1e-12 * np.eye(len(rows)), residual, rcond=None)[0]
        value = dual(rows, goal, y)
        size = 1.0
        while dual(rows, goal, y + size * step) > value - 1e-4 * size * float(residual @ step) and size > 1e-8:
            size /= 2
        y = y + size * step
        weights = np.maximum(0.0, 1.0 + y @ rows)
    return None


def dual(rows: np.ndarray, goal: np.ndarray, y: np.ndarray) -> float:
    """The convex function whose minimum solves the projection: ½|max(0, 1 + Aᵀy)|² − goal·y."""
    return float(0.5 * np.sum(np.maximum(0.0, 1.0 + y @ rows) ** 2) - goal @ y)


def predicted_response(chi: xr.Dataset, weights: np.ndarray) -> xr.Dataset:
    """dμ = nβ·χ·(ρ − 1)/n of each component, its error from the spread over χ's independent groups."""
    change = float(chi.attrs["n_beta"]) / len(weights) * (weights - weights.mean())
    groups = chi["chi_group"].values @ change
    healthy = np.isfinite(groups).sum(1)
    return xr.Dataset(
        {
            "dmu": ("component", chi["chi"].values @ change, {"units": "nats"}),
            "dmu_error": ("component", np.nanstd(groups, axis=1, ddof=1) / np.sqrt(healthy), {"units": "nats"}),
        },
        coords={"component": chi["component"].values},
    )
