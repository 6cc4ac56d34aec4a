"""Samplers other than SGLD on a quadratic, and SGLD with minibatches: stationary variances that are known exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from torch import Tensor

import patterning_fast as pf
from patterning_fast.ops.langevin_step import SGHMC, SGNHT, RMSProp

COORDINATES = 262_144
RESOLUTION = 4.5 * math.sqrt(2 / COORDINATES)
"""4.5 standard errors of the variance of that many normals, relative."""


def variance_of(w: Tensor) -> float:
    return float(w.double().square().mean())


def run(rule: RMSProp | SGHMC | SGNHT, steps: int, lr: float, n_beta: float, localization: float) -> Tensor:
    """w − w* after `steps` on U = ½(n_beta + localization)(w − w*)²."""
    w, zero, g = torch.zeros(1, COORDINATES), torch.zeros(COORDINATES), torch.empty(1, COORDINATES)
    for step in range(steps):
        g.copy_(w)
        pf.ops.langevin_step(w, g, zero, lr=lr, n_beta=n_beta, localization=localization, seed=7, step=step, rule=rule)
    return w


def stationary(transition: list[list[float]], noise: list[float]) -> np.ndarray:
    """Covariance of x ← Mx + bξ."""
    b = np.array(noise)[:, None]
    return scipy.linalg.solve_discrete_lyapunov(np.array(transition), b @ b.T)


@pytest.mark.parametrize("bias_correction", [False, True])
def test_rmsprop(bias_correction: bool) -> None:
    """Gradients of size G and random sign make v̂ = G² and lr_i = lr/(G + c): an AR(1) with the gradient's own noise."""
    size, lr, n_beta, pull, stability = 0.5, 0.2, 4.0, 3.0, 0.25
    rule = RMSProp(torch.zeros(1, COORDINATES), 0.5, stability, bias_correction)
    w, zero = torch.zeros(1, COORDINATES), torch.zeros(COORDINATES)
    generator = torch.Generator().manual_seed(3)
    for step in range(60):
        g = size * (2.0 * torch.randint(2, w.shape, generator=generator) - 1)
        pf.ops.langevin_step(w, g, zero, lr=lr, n_beta=n_beta, localization=pull, seed=7, step=step, rule=rule)
    own = lr / (size + stability)
    exact = ((0.5 * own * n_beta * size) ** 2 + own) / (1 - (1 - 0.5 * own * pull) ** 2)
    assert abs(variance_of(w) / exact - 1) < RESOLUTION


@pytest.mark.parametrize(("lr", "friction"), [(0.05, 0.2), (0.2, 0.5)])
def test_sghmc(lr: float, friction: float) -> None:
    n_beta, pull = 2.0, 1.0
    rule = SGHMC(torch.zeros(1, COORDINATES), friction)
    w = run(rule, 200, lr, n_beta, pull)
    push, spread = lr * (n_beta + pull), math.sqrt(2 * friction * lr)
    exact = stationary([[1 - push, 1 - friction], [-push, 1 - friction]], [spread, spread])
    assert abs(variance_of(w) / exact[0, 0] - 1) < RESOLUTION
    assert abs(variance_of(rule.momentum) / exact[1, 1] - 1) < RESOLUTION
    # The exact law differs from the limit of small steps, 1/a, by more than the test can see.
    assert abs(exact[0, 0] * (n_beta + pull) - 1) > 3 * RESOLUTION


def test_sgnht() -> None:
    """The thermostat settles where |p|² per parameter is 1; with so many parameters it then hardly moves."""
    lr, n_beta, pull, diffusion = 0.2, 0.5, 0.5, 1.5
    momentum = torch.randn(1, COORDINATES, generator=torch.Generator().manual_seed(1))
    rule = SGNHT(momentum, torch.full((1,), diffusion), diffusion)
    w = run(rule, 400, lr, n_beta, pull)
    push, spread = lr * (n_beta + pull), math.sqrt(2 * diffusion * lr)

    def covariance(thermostat: float) -> np.ndarray:
        keep = 1 - thermostat * lr
        return stationary([[1 - lr * push, lr * keep], [-push, keep]], [lr * spread, spread])

    thermostat = scipy.optimize.brentq(lambda xi: covariance(xi)[1, 1] - 1, 0.5, 3.0)
    assert abs(variance_of(momentum) - 1) < RESOLUTION
    assert abs(variance_of(w) / covariance(thermostat)[0, 0] - 1) < RESOLUTION
    # |p|² per parameter moves by 1/√params a step, and the thermostat by lr of that, over some ten steps of memory.
    assert abs(float(rule.thermostat) - thermostat) < 4.5 * lr * math.sqrt(2 * 10 / COORDINATES) * 3
    assert abs(thermostat - diffusion) > 0.05


@pytest.mark.parametrize("replacement", [True, False])
def test_gradient_noise_correction(replacement: bool) -> None:
    """Regression on one coordinate, gradients x_j²d − x_j r_j of minibatches: their variance, like d's, is known."""
    chains, samples, batch, lr, n_beta, pull = 65_536, 10, 4, 0.02, 8.0, 2.0
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(samples, generator=generator) + 0.5
    r = 3 * torch.randn(samples, generator=generator)
    r = r - x * (x @ r) / (x @ x)  # the residuals of a least-squares solution
    freedom = 0 if replacement else 1
    fraction = 0.0 if replacement else batch / samples

    def step_all(corrected: bool) -> float:
        d, zero = torch.zeros(chains, 1), torch.zeros(1)
        for step in range(120):
            if replacement:
                drawn = torch.randint(samples, (chains, batch), generator=generator)
            else:
                drawn = torch.rand(chains, samples, generator=generator).argsort(1)[:, :batch]
            g = (x[drawn] ** 2 * d - (x * r)[drawn])[:, :, None].contiguous()
            numbers = {"lr": lr, "n_beta": n_beta, "localization": pull, "seed": 5, "step": step}
            if corrected:
                pf.ops.per_sample_langevin_step(d, g, zero, sampled_fraction=fraction, **numbers)  # type: ignore[arg-type]
            else:
                pf.ops.langevin_step(d, g.mean(1), zero, **numbers)  # type: ignore[arg-type]
        return variance_of(d)

    a = n_beta * float((x**2).double().mean()) + pull
    exact = 1 / (a * (1 - lr * a / 4))
    # V = (1 − lr·a/2)²V + lr + k(Var(x²)V + Var(xr)), k = (lr·n_beta/2)²(1 − m/n)/m.
    k = (0.5 * lr * n_beta) ** 2 * (1 - fraction) / batch
    own = [float(values.double().var(correction=freedom)) for values in (x**2, x * r)]
    inflated = (lr + k * own[1]) / (1 - (1 - 0.5 * lr * a) ** 2 - k * own[0])
    resolution = 4.5 * math.sqrt(3 / chains)  # d's fourth moment is a little more than a normal's
    assert inflated / exact > 1 + 4 * resolution
    assert lr > 3 * k * (own[0] * exact + own[1])  # so the correction rarely asks for more than there is
    assert abs(step_all(corrected=False) / inflated - 1) < resolution
    assert abs(step_all(corrected=True) / exact - 1) < resolution
