"""Predicted against realised dμ, as a recipe keeps and shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import patterning_fast as pf
from patterning_fast.recipes.findings import Rows
from patterning_fast.report import figures

NUMBERS = ("predicted", "predicted_error", "realised", "realised_error")


def verification(plan: pf.Plan, posterior: pf.LocalPosterior, sampler: pf.SGLD, **sampling: Any) -> dict[str, Any]:
    """`pf.verify` of a plan, as plain numbers."""
    found = pf.verify(plan, posterior, sampler, **sampling)
    numbers = {name: found[name].transpose("strength", "component").values.tolist() for name in NUMBERS}
    return numbers | {
        "strength": found["strength"].values.tolist(),
        "verdict": found["verdict"].values.tolist(),
        "component": [str(name) for name in found["component"].values],
        "radius": float(found.attrs["radius"]),
    }


def verification_rows(verified: Mapping[str, Any]) -> Rows:
    """One row a strength and component."""
    return [
        {"strength": strength, "component": component, "verdict": verdict}
        | {name: verified[name][row][column] for name in NUMBERS}
        | {"kept up to strength": verified["radius"]}
        for row, (strength, verdict) in enumerate(zip(verified["strength"], verified["verdict"], strict=True))
        for column, component in enumerate(verified["component"])
    ]


def verification_picture(verified: Mapping[str, Any]) -> Figure:
    """Predicted against realised dμ, a point a strength and component."""
    numbers = {name: (("strength", "component"), np.array(verified[name])) for name in NUMBERS}
    table = xr.Dataset(
        numbers | {"verdict": ("strength", np.array(verified["verdict"]))},
        coords={"strength": verified["strength"], "component": verified["component"]},
        attrs={"radius": verified["radius"]},
    )
    return figures.verification(table)
