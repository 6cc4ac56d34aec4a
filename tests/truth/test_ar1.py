"""SGLD on a quadratic is an AR(1) process, whose stationary variance is known with its step-size bias."""

from __future__ import annotations

import pytest
import torch

import patterning_fast as pf

COORDINATES = 262_144


@pytest.mark.parametrize(
    ("n_beta", "curvature", "localization", "lr"),
    [(10.0, 0.4, 0.0, 0.125), (10.0, 0.0, 5.0, 0.1), (3.0, 1.0, 2.0, 0.2), (20.0, 0.5, 30.0, 0.02)],
)
def test_stationary_variance(n_beta: float, curvature: float, localization: float, lr: float) -> None:
    """U = ½a(w − w*)² with a = n_beta·h + localization: variance 1/(a(1 − lr·a/4)), mean w*."""
    a = n_beta * curvature + localization
    center = torch.linspace(-1, 1, COORDINATES)
    w, g = center[None].clone(), torch.empty(1, COORDINATES)
    for step in range(80):  # (1 - lr a / 2)^160 < 1e-12: stationary
        g.copy_(curvature * (w - center))
        pf.ops.langevin_step(w, g, center, lr=lr, n_beta=n_beta, localization=localization, seed=5, step=step)
    deviation = (w[0] - center).double()
    exact = 1 / (a * (1 - lr * a / 4))
    # Standard errors of the variance and the mean of that many normals.
    assert abs(float(deviation.square().mean()) - exact) < 4.5 * exact * (2 / COORDINATES) ** 0.5
    assert abs(float(deviation.mean())) < 4.5 * (exact / COORDINATES) ** 0.5
    # The bias itself is far larger than the test's resolution: a wrong factor of lr/2 cannot pass.
    assert exact - 1 / a > 10 * exact * (2 / COORDINATES) ** 0.5
