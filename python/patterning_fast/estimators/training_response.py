"""`training_response`: how what training comes to answers to data, from runs on weights drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import xarray as xr

from patterning_fast.arguments import Name, Numbers, checked
from patterning_fast.domains import Distinct, Holds
from patterning_fast.estimators.aggregation import error_of_means
from patterning_fast.plain_torch import plain_torch

LEAST_SPARE = 8
"""Runs beyond one for each unit and the mean, without which errors of the fit are not to be trusted."""


@checked
@plain_torch()
def training_response(
    outcomes: Annotated[Mapping[str, Numbers], Holds(1)],
    weights: Numbers,
    units: Annotated[Sequence[str], Holds(1), Distinct()],
    counts: Numbers,
    name: Name = "unit",
) -> xr.Dataset:
    """Response χ of outcomes of training to data, dE[O] = Σ_u χ_u·n_u(ρ_u − 1)/n, fitted by least squares.

    Susceptibilities tell how the posterior around one model answers; this tells what whole runs do, start to end, and
    costs a run for each row. `invert` makes plans of it as of any χ, with nβ = 1 and outcomes for components, whose
    values may be of any unit. χ is known up to a constant over the data, and given with mean 0. Its groups are the
    runs: values whose mean is the fit and whose scatter is the fit's error, whether or not runs scatter alike (White
    1980, Econometrica 48, with the factor for degrees of freedom lost).

    Args:
        outcomes: what was measured at the end of each run, by name, each `[runs]`.
        weights: ρ of each unit in each run `[runs, units]`, drawn independently of the runs' seeds; their scale does
            not matter. Their spread is the range over which the response is averaged.
        units: names of the groups of data that have a weight each. counts: how many data each has.
        name: of the dimension of units in the result.

    Returns `chi`, `chi_error` (outcome, unit) and `chi_group`, the outcome being the dimension `component`; `mean`,
    the mean outcome; and `degrees_of_freedom`, runs − units.

    Raises ValueError for shapes that do not fit, values that are not finite, weights whose mean is not positive, and
    fewer runs than units and 9 more.
    """
    rho, size = np.asarray(weights, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    values = {key: np.asarray(each, dtype=np.float64) for key, each in outcomes.items()}
    runs = rho.shape[0] if rho.ndim else 0
    if rho.ndim != 2 or rho.shape[1] != len(units) or size.shape != (len(units),) or not (size > 0).all():
        raise ValueError(
            f"weights must be [runs, {len(units)}] with as many positive counts, got {list(rho.shape)} and {size}"
        )
    wrong = {key: list(each.shape) for key, each in values.items() if each.shape != (runs,)}
    if wrong or not values:
        raise ValueError(f"each outcome must be [{runs}], one for each row of weights, got {wrong or 'none'}")
    broken = [key for key, each in {"weights": rho, **values}.items() if not np.isfinite(each).all()]
    if broken:
        raise ValueError(f"{', '.join(broken)}: not finite; leave those runs out")
    if runs < len(units) + 1 + LEAST_SPARE:
        raise ValueError(f"{len(units)} units need at least {len(units) + 1 + LEAST_SPARE} runs, got {runs}")
    mean = rho @ size / size.sum()
    if not (mean > 0).all():
        raise ValueError("weights must have positive means over the data")
    mass = (rho / mean[:, None] - 1.0) * size / size.sum()
    mass -= mass.mean(0)
    inverse = np.linalg.pinv(mass)  # [units, runs]
    rank = np.linalg.matrix_rank(mass)
    if rank < len(units) - 1:
        raise ValueError(f"weights vary in {rank} directions, of {len(units) - 1}: draw each unit's independently")
    found = np.stack(list(values.values()))
    centred = found - found.mean(1, keepdims=True)
    chi = centred @ inverse.T
    left = centred - chi @ mass.T
    scatter = runs * np.sqrt(runs / (runs - len(units))) * left[:, :, None] * inverse.T
    centre = size / size.sum()
    chi -= (chi @ centre)[:, None]
    scatter -= (scatter @ centre)[..., None]
    group = chi[:, None] + scatter
    return xr.Dataset(
        {
            "chi": (("component", name), chi),
            "chi_error": (("component", name), error_of_means(group)),
            "chi_group": (("component", "group", name), group),
            "mean": ("component", found.mean(1)),
            "degrees_of_freedom": ("component", np.full(len(found), runs - len(units))),
        },
        coords={"component": list(values), name: list(units), "count": (name, size)},
        attrs={"n_beta": 1.0, "runs": runs},
    )
