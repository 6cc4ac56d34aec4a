"""How much of an estimate the loss has a part in: beside what chains would give that it does not pull on.

At n_beta = 0 a chain is a Gaussian ball around w*, whatever the loss: what it gives is the geometry of gradients there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from patterning_fast.estimators.comoments import mean_and_error
from patterning_fast.estimators.labelled import Variable, split_half_reliability

LEAST_RELIABILITY = 0.1
"""An estimate that is less reliable has no correlation to speak of."""


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
            mean, error = (float(each) for each in mean_and_error(by_group))
            without, without_error = (float(each) for each in mean_and_error(by_draw))
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                ratio = np.float64(mean) / without
                values[:, at] = ratio, np.hypot(error / without, ratio * without_error / without)
    text = "E[L] - L(w*) over what it is at n_beta = 0"
    return {
        "blind": ("component", values[0], {"long_name": text, "units": "1"}),
        "blind_error": ("component", values[1], {"long_name": f"standard error of {text}", "units": "1"}),
    }


def correlations(chi: np.ndarray, reliable: np.ndarray, ball: BallMoments) -> Variable:
    """Correlation over data of χ `[components, losses]`, freed of the noise of both, with that of the ball.

    NaN where a reliability is too small to divide by. By its error it may lie outside [−1, 1].
    """
    found = np.full(len(chi), np.nan)
    for at, (own, reliability, by_draw) in enumerate(zip(chi, reliable, ball.chi, strict=True)):

        def of(draws: Tensor, by_draw: Tensor = by_draw) -> Tensor:
            return by_draw[draws].double().mean(0)

        of_ball = split_half_reliability(len(by_draw), of)
        if reliability > LEAST_RELIABILITY and of_ball > LEAST_RELIABILITY:
            both = torch.stack((torch.from_numpy(own), by_draw.double().mean(0).cpu()))
            found[at] = float(torch.corrcoef(both)[0, 1]) / np.sqrt(reliability * of_ball)
    text = "correlation of chi with that of chains at n_beta = 0, over the root of both reliabilities"
    return "component", found, {"long_name": text, "units": "1"}
