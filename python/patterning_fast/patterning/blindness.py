"""Whether χ is about the loss at all: plans say so where it is what chains at n_beta = 0 would give."""

from __future__ import annotations

import warnings

import xarray as xr

from patterning_fast.categories import BlindWarning
from patterning_fast.domains import shown
from patterning_fast.estimators.blindness import BLIND

TOLD = 0.5
"""A ratio that may be as small as this, or so much above 1, by two of its errors, tells something else."""


def blind_components(chi: xr.Dataset) -> list[str]:
    """The components whose χ is geometry of a Gaussian ball around w*; warns of them.

    None where χ does not say how blind it is.
    """
    if not {"blind", "blind_error"} <= set(chi.data_vars):
        return []
    ratio = chi["blind"]
    least = ratio - 2 * chi["blind_error"]
    blind = (ratio > BLIND) & (least > TOLD) & (least < 1 / BLIND)
    names = [str(name) for name in chi["component"].values[blind.values]]
    if names:
        warnings.warn(
            f"χ of {shown(names, typed=False)} is geometry of a Gaussian ball around w*, as without the loss "
            f"(blind is at least {float(ratio.values[blind.values].min()):.2g}); lower localization or raise n_beta",
            BlindWarning,
            stacklevel=4,
        )
    return names
