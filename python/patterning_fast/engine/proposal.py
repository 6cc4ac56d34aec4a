"""Which of the settings that `calibrate` has tried to sample with, and how long, so that chains settle."""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np
import xarray as xr

HOPELESS = ("diverged", "negative")
"""Verdicts that no more steps would mend."""


def proposal(grid: xr.Dataset) -> dict[str, float]:
    """Attributes `proposed_NAME` for lr, n_beta, localization, burn_in and steps_between_draws; NaN where none will do.

    Of the settings at which chains of every component relax, those that are healthy already are preferred; among them
    the one that heeds the loss most: the largest n_beta, then the least localization, then the shortest relaxation.
    Draws are then a relaxation time of the slowest component apart, and burn-in is what that component needs.
    """
    axes = ("lr", "n_beta", "localization")
    verdicts, slowest = grid["verdict"], grid["relaxation_steps"].max("component", skipna=False)
    usable = ~verdicts.isin(HOPELESS).any("component") & np.isfinite(slowest)
    if not bool(usable.any()):
        return dict.fromkeys([f"proposed_{name}" for name in (*axes, "burn_in", "steps_between_draws")], math.nan)
    healthy = (verdicts == "healthy").all("component")

    def preference(at: tuple[int, ...]) -> tuple[float, ...]:
        here = slowest[at]
        return float(healthy[at]), float(here["n_beta"]), -float(here["localization"]), -float(here)

    best = max((at for at in np.ndindex(*usable.shape) if bool(usable[at])), key=preference)
    needed = grid["burn_in_steps"].transpose(*slowest.dims, "component")[best]
    settings = {f"proposed_{name}": float(slowest[best][name]) for name in axes}
    paced = pace(slowest[best], needed)
    return settings | {
        "proposed_burn_in": paced["burn_in"],
        "proposed_steps_between_draws": paced["steps_between_draws"],
    }


class Pace(TypedDict):
    """How long to run: keywords of `sample` and `linear_response`."""

    burn_in: int
    steps_between_draws: int


def pace(relaxation_steps: xr.DataArray, burn_in_steps: xr.DataArray) -> Pace:
    """That of the slowest of some components: draws a relaxation time apart, after the burn-in that it needs."""
    apart = max(1, round(float(relaxation_steps.max())))
    return {"burn_in": math.ceil(float(burn_in_steps.max()) / apart), "steps_between_draws": apart}
