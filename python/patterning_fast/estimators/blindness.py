"""How much of an estimate the loss has a part in: beside what chains would give that it does not pull on.

At n_beta = 0 a chain is a Gaussian ball around w*, whatever the loss: what it gives is the geometry of gradients there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from patterning_fast.estimators.comoments import mean_and_error
from patterning_fast.estimators.labelled import Variable
from patterning_fast.estimators.regression import regression

BLIND = 0.9
"""From here on an estimate has hardly more of the loss in it than chains that do not feel it."""


class BallMoments(NamedTuple):
    """What chains at n_beta = 0 give, by independent draw of them; float64 and float32."""

    phi: Tensor
    """E[φ] `[components, draws]`."""
    chi: Tensor
    """−Cov[φ, l_z − L] `[components, draws, losses]`."""


def ratios(found: list[Tensor], ball: BallMoments) -> dict[str, Variable]:
    """E[φ] of components, by independent group `[groups]`, over that of the ball, and the ratio's standard error.

    NaN for a component without groups.
    """
    values = np.full((2, len(found)), np.nan)
    for at, (by_group, by_draw) in enumerate(zip(found, ball.phi, strict=True)):
        if len(by_group) > 1:
            mean, error = (each.cpu().numpy() for each in mean_and_error(by_group))
            without, without_error = (each.cpu().numpy() for each in mean_and_error(by_draw))
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                ratio = np.divide(mean, without)
                values[:, at] = ratio, np.hypot(error, ratio * without_error) / np.abs(without)
    text = "E[L] - L(w*) over what it is at n_beta = 0"
    return {
        "blind": ("component", values[0], {"long_name": text, "units": "1"}),
        "blind_error": ("component", values[1], {"long_name": f"standard error of {text}", "units": "1"}),
    }


def correlations(found: list[np.ndarray], ball: BallMoments) -> dict[str, Variable]:
    """Correlation over data of χ of components, by independent group `[groups, losses]`, with that of the ball."""
    values = [regression(by_group, by_draw.cpu().numpy()) for by_group, by_draw in zip(found, ball.chi, strict=True)]
    text = "correlation of chi over data with that at n_beta = 0, over the root of both reliabilities"
    described = {"blind_correlation": text, "blind_correlation_error": f"standard error of {text}"}
    return {
        name: (
            "component",
            np.array([getattr(each, name.removeprefix("blind_")) for each in values]),
            {"long_name": text, "units": "1"},
        )
        for name, text in described.items()
    }
