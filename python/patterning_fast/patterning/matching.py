"""Matching of modes between checkpoints, seeds or estimators: which mode of one is which of the other."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.linalg import cholesky, solve_triangular, svdvals
from scipy.optimize import linear_sum_assignment
from scipy.stats import beta, ortho_group, wishart

from patterning_fast.arguments import Seed, checked
from patterning_fast.patterning.modes import Modes

DRAWS = 1000
"""Random rotations and subspaces that matches are compared with."""

CHANCE = 0.95
"""Quantile of what they reach."""


@checked
def match_modes(modes: Modes, others: Modes, *, seed: Seed = 0) -> xr.Dataset:
    """Deal the modes of two estimates on the same data to each other, by the |cosines| of their loadings on data.

    The assignment has the largest sum of |cosines| (Hungarian algorithm; scipy's `linear_sum_assignment`). Modes that
    are noise match something too: give those above the floor, `modes[:3]`.

    Returns a dataset with, for each mode, its `partner` (−1 for none, where there are fewer others), the `sign` that
    turns the partner its way, their `cosine` after that, and two levels of significance:

    - `p_direction`: chance that one of the others comes as near to a direction drawn at random among all of the data;
    - `p_within`: chance that the match is as near when the others are turned at random within the space they span, so
      that only the space is the same and not its axes. Undefined (NaN) for a single other mode.

    `all_cosines` `[mode, other]` are those of all pairs. `principal_cosine` `[angle]` are the cosines of the principal
    angles between the two spaces (Björck & Golub 1973), and `chance_principal_cosine` what spaces drawn at random
    stay below in 95 % of draws.

    Raises ValueError where the two are not about the same data in the same order.
    """
    ours, theirs = modes.table["data_loading"], others.table["data_loading"]
    check_same_data(ours, theirs)
    if not len(modes) or not len(others):
        raise ValueError(f"there are {len(modes)} modes and {len(others)} others: at least one of each can be matched")
    cosines = ours.values.astype(np.float64) @ theirs.values.astype(np.float64).T
    number, other_number, data = len(modes), len(others), ours.shape[1]
    partner = np.full(number, -1)
    row, column = linear_sum_assignment(np.abs(cosines), maximize=True)
    partner[row] = column
    matched = np.where(partner >= 0, cosines[np.arange(number), partner], np.nan)
    generator = np.random.default_rng(seed)
    principal = svdvals(cosines)
    return xr.Dataset(
        {
            "partner": ("mode", partner),
            "sign": ("mode", np.where(matched < 0, -1, 1)),
            "cosine": ("mode", np.abs(matched)),
            "p_direction": ("mode", p_direction(matched, other_number, data - 1)),
            "p_within": ("mode", p_within(cosines, np.abs(matched), generator)),
            "all_cosines": (("mode", "other"), cosines),
            "principal_cosine": ("angle", principal),
            "chance_principal_cosine": ("angle", chance_principal(number, other_number, data - 1, generator)),
        }
    )


def check_same_data(ours: xr.DataArray, theirs: xr.DataArray) -> None:
    """Raise ValueError unless two arrays are about the same data in the same order."""
    dimension = ours.dims[1]
    names = [name for name in ("probe", "sample", "position") if name in ours.coords or name in theirs.coords]
    if ours.dims != theirs.dims or ours.shape[1] != theirs.shape[1]:
        raise ValueError(
            f"the modes are about different data: {ours.shape[1]} of {dimension} and {theirs.shape[1]} of "
            f"{theirs.dims[1]}; take the modes of both from the data they share, with chi.isel({dimension}=...)"
        )
    for name in names:
        both = name in ours.coords and name in theirs.coords
        differ = int((ours[name].values != theirs[name].values).sum()) if both else ours.shape[1]
        if differ:
            raise ValueError(
                f"the modes are about different data: {name} differs at {differ} of {ours.shape[1]}; take the modes "
                f"of both from the data they share, in the same order, with chi.isel({dimension}=...)"
            )


def p_direction(cosine: np.ndarray, others: int, dimensions: int) -> np.ndarray:
    """Chance that the nearest of some orthonormal directions comes as near to a random one (Bonferroni)."""
    if dimensions < 2:
        return np.ones_like(cosine)
    return np.minimum(1.0, others * beta.sf(cosine**2, 0.5, (dimensions - 1) / 2))


def p_within(cosines: np.ndarray, matched: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Share of random rotations of the others' axes, the given one counted among them, with a match as near."""
    number, others = cosines.shape
    if others < 2:
        return np.full(number, np.nan)
    reached = np.ones(number)
    for _ in range(DRAWS):
        turned = np.abs(cosines @ ortho_group.rvs(others, random_state=generator))
        row, column = linear_sum_assignment(turned, maximize=True)
        reached[row] += turned[row, column] >= matched[row]
    return np.where(np.isfinite(matched), reached / (DRAWS + 1), np.nan)


def chance_principal(number: int, others: int, dimensions: int, generator: np.random.Generator) -> np.ndarray:
    """What principal cosines `[angles]` of random subspaces stay below in `CHANCE` of draws.

    Those of a fixed and a random subspace are the singular values of the first rows of the random one's orthonormal
    basis, which are drawn alone: of all the others only their inner products, a Wishart matrix, matter.
    """
    if number + others > dimensions:
        return np.ones(min(number, others))
    drawn = np.empty((DRAWS, min(number, others)))
    for own in drawn:
        rows = generator.standard_normal((number, others))
        rest = wishart.rvs(dimensions - number, np.eye(others), random_state=generator).reshape(others, others)
        own[:] = svdvals(solve_triangular(cholesky(rows.T @ rows + rest, lower=True), rows.T, lower=True))
    return np.quantile(drawn, CHANCE, axis=0)
