"""Every sampler on quadratic potentials, whose stationary laws are known exactly, step-size bias and all.

On U = ½a(w − w*)², a = n_beta·h + localization, SGLD is an AR(1) process of variance 1/(a(1 − lr·a/4)). Samplers with
momentum are linear recursions of (w, p); from E w² = E w'², E wp = E w'p', E p² = E p'² their variances follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

import patterning_fast as pf
from patterning_fast.chains.bank import ChainBank
from patterning_fast.chains.plan import ChainPlan, Setting
from patterning_fast.posterior.components import Component
from patterning_fast.samplers.langevin import LangevinState, Sampler

COORDINATES = 262_144
RESOLUTION = 4.5 * math.sqrt(2 / COORDINATES)
"""4.5 standard errors of the variance of that many normals, relative."""


UNUSED = Setting(1.0, 1.0, 1.0)
"""Of the plan: each row is given its own numbers."""


def bank_of(rows: int, center: Tensor) -> ChainBank:
    """That many chains, whose parameters are independent copies of a small problem."""
    plan = ChainPlan([Component("full", {"w": None})], chains=rows, antithetic=False, groups=rows, settings=(UNUSED,))
    return ChainBank(plan, {"w": center})


def variance_of(deviation: Tensor) -> float:
    return float(deviation.double().square().mean())


@dataclass(frozen=True)
class Row:
    """Of one chain: its numbers, and the curvature h of its loss."""

    lr: float
    n_beta: float
    localization: float
    curvature: float = 1.0

    @property
    def a(self) -> float:
        return self.n_beta * self.curvature + self.localization


Gradient = Callable[[Row, Tensor, torch.Generator], Tensor]
"""The loss gradient of a chain at w − w*."""


def quadratic(row: Row, deviation: Tensor, generator: torch.Generator) -> Tensor:
    return row.curvature * deviation


def run(sampler: Sampler, rows: list[Row], steps: int, gradient: Gradient = quadratic) -> tuple[Tensor, LangevinState]:
    """w − w* `[rows, COORDINATES]` after that many steps, and the state."""
    center = torch.linspace(-1, 1, COORDINATES)
    bank = bank_of(len(rows), center)
    numbers = torch.tensor([[row.lr, row.n_beta, row.localization] for row in rows])
    lr, n_beta, localization = numbers.T.contiguous()
    state = sampler.init(bank, lr, n_beta, localization, seed=7)
    deviation, grads = bank.params.view(len(rows), -1) - center, bank.grads.view(len(rows), -1)
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        for at, row in enumerate(rows):
            grads[at] = gradient(row, deviation[at], generator)
        sampler.update(bank, state)
        deviation = bank.params.view(len(rows), -1) - center
    return deviation, state


def stationary(transition: list[list[float]], noise: list[float]) -> np.ndarray:
    """Covariance of x ← Mx + bξ."""
    b = np.array(noise)[:, None]
    return scipy.linalg.solve_discrete_lyapunov(np.array(transition), b @ b.T)


def test_sgld() -> None:
    rows = [Row(0.125, 10.0, 0.0, 0.4), Row(0.1, 10.0, 5.0, 0.0), Row(0.2, 3.0, 2.0), Row(0.02, 20.0, 30.0, 0.5)]
    deviation, _ = run(pf.SGLD(0.1), rows, 60)  # (1 − lr·a/2)^120 < 1e-14: stationary
    for own, row in zip(deviation, rows, strict=True):
        exact = 1 / (row.a * (1 - row.lr * row.a / 4))
        assert abs(variance_of(own) / exact - 1) < RESOLUTION
        assert abs(float(own.double().mean())) < 4.5 * math.sqrt(exact / COORDINATES)
        # The exact law differs from the limit of small steps, 1/a, by far more than the test can see.
        assert exact * row.a - 1 > 10 * RESOLUTION / 4.5


@pytest.mark.parametrize("bias_correction", [False, True])
def test_rmsprop_sgld(bias_correction: bool) -> None:
    """Gradients of size G and random sign make v̂ = G² and lr_i = lr/(G + c): an AR(1) with the gradient's own noise."""
    size, stability = 0.5, 0.25

    def coin(row: Row, deviation: Tensor, generator: torch.Generator) -> Tensor:
        return size * (2.0 * torch.randint(2, deviation.shape, generator=generator) - 1)

    rows = [Row(0.2, 4.0, 3.0, 0.0), Row(0.1, 2.0, 7.0, 0.0)]
    deviation, _ = run(pf.RMSPropSGLD(0.1, 0.5, stability, bias_correction), rows, 50, coin)
    for own, row in zip(deviation, rows, strict=True):
        lr = row.lr / (size + stability)
        exact = ((0.5 * lr * row.n_beta * size) ** 2 + lr) / (1 - (1 - 0.5 * lr * row.localization) ** 2)
        assert abs(variance_of(own) / exact - 1) < RESOLUTION


def test_rmsprop_sgld_on_a_quadratic() -> None:
    """With a long memory lr_i hardly moves, so w follows the law of SGLD at the lr_i that its own variance makes."""
    row, stability = Row(0.5, 4.0, 1.0), 0.25
    deviation, state = run(pf.RMSPropSGLD(0.5, 0.999, stability), [row], 400)
    assert state.memory is not None
    second_moment = state.memory.double() / (1 - 0.999**400)
    lr = row.lr / (second_moment.sqrt() + stability)
    exact = 1 / (row.a * (1 - lr * row.a / 4))
    assert float(exact.mean()) * row.a > 2  # far from the 1/a of small steps, which lr_i would not tell apart
    assert abs(float((deviation.double().square() / exact).mean()) - 1) < RESOLUTION
    # Of the loss gradient alone, whose square has the mean E w²; the first steps of 400 start from w = w*.
    assert abs(float(second_moment.mean()) / variance_of(deviation) - 1) < RESOLUTION + 2 / 400


@pytest.mark.parametrize("friction", [0.2, 0.5])
def test_sghmc(friction: float) -> None:
    rows = [Row(0.05, 2.0, 1.0), Row(0.2, 1.0, 2.0, 0.5)]
    deviation, state = run(pf.SGHMC(0.1, friction), rows, 180)
    assert state.memory is not None
    for at, row in enumerate(rows):
        push, spread = row.lr * row.a, math.sqrt(2 * friction * row.lr)
        exact = stationary([[1 - push, 1 - friction], [-push, 1 - friction]], [spread, spread])
        assert abs(variance_of(deviation[at]) / exact[0, 0] - 1) < RESOLUTION
        assert abs(variance_of(state.memory[state.place(at)]) / exact[1, 1] - 1) < RESOLUTION
        # The closed form, to rounding; it differs from the limit of small steps, 1/a, by more than the test can see.
        assert exact[0, 0] * row.a * (1 - push / (2 * (2 - friction))) == pytest.approx(1, rel=1e-12)
        assert exact[0, 0] * row.a - 1 > 1.5 * RESOLUTION


@pytest.mark.parametrize("gradient_noise", [0.0, 2.0])
def test_sgnht(gradient_noise: float) -> None:
    """The thermostat settles where |p|² per parameter is 1, whatever noise the gradients bring.

    With E p² = 1, E w² = E w'² gives the variance (1 − thermostat·lr/2)/a, and E p² = E p'² the thermostat: what
    (1 − thermostat·lr/2 − lr²·a/4)·thermostat = diffusion + lr·n_beta²·(gradient noise)²/2 asks for.
    """

    def noisy(row: Row, deviation: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(deviation.shape, generator=generator) if gradient_noise else 0.0
        return row.curvature * deviation + gradient_noise * noise

    rows, diffusion = [Row(0.2, 0.5, 0.5), Row(0.1, 1.0, 1.0)], 1.5
    deviation, state = run(pf.SGNHT(0.1, diffusion), rows, 150 if gradient_noise else 300, noisy)
    assert state.memory is not None
    assert state.thermostat is not None
    for at, row in enumerate(rows):
        heat, loss = diffusion + 0.5 * row.lr * (row.n_beta * gradient_noise) ** 2, 1 - row.lr**2 * row.a / 4
        thermostat = (loss - math.sqrt(loss**2 - 2 * row.lr * heat)) / row.lr
        keep, push, spread = 1 - thermostat * row.lr, row.lr * row.a, math.sqrt(2 * heat * row.lr)
        exact = stationary([[1 - row.lr * push, row.lr * keep], [-push, keep]], [row.lr * spread, spread])
        assert exact[1, 1] == pytest.approx(1, rel=1e-12)
        assert exact[0, 0] * row.a == pytest.approx(1 - thermostat * row.lr / 2, rel=1e-12)
        assert abs(variance_of(state.memory[state.place(at)]) - 1) < RESOLUTION
        assert abs(variance_of(deviation[at]) / exact[0, 0] - 1) < RESOLUTION
        # The thermostat's own variance is 1/params (Ding et al. 2014, theorem 2); 4.5 standard errors.
        assert abs(float(state.thermostat[at]) - thermostat) < 4.5 / math.sqrt(COORDINATES)
        assert abs(thermostat - diffusion) > 0.05


@dataclass(frozen=True)
class Regression:
    """Loss ½(x_jᵀd − r_j)² of sample j at d = w − w*, w* the least-squares solution: gradients x_j(x_jᵀd − r_j)."""

    x: Tensor
    r: Tensor

    def covariance(
        self, lr: float, n_beta: float, localization: float, batch: int, *, replacement: bool, corrected: bool
    ) -> Tensor:
        """The exact stationary Σ of SGLD with minibatches, `[width, width]`.

        Σ ← (1 − (lr/2)A)Σ(1 − (lr/2)A) + lr + (lr·n_beta/2)²·N(Σ)/batch, A = n_beta·H + localization, where the
        gradients of single samples have covariance N(Σ) = E[xxᵀΣxxᵀ] − HΣH + E[r²xxᵀ]; without replacement
        (n − batch)/(n − 1) of it. Correction by coordinate takes its diagonal off.
        """
        x, r = self.x.double(), self.r.double()
        n, width = x.shape
        hessian, identity = x.T @ x / n, torch.eye(width, dtype=torch.float64)
        step = identity - 0.5 * lr * (n_beta * hessian + localization * identity)
        share = (0.5 * lr * n_beta) ** 2 / batch * (1.0 if replacement else (n - batch) / (n - 1))
        sigma = torch.zeros_like(identity)
        for _ in range(500):  # far more than it takes to settle to rounding
            spread = torch.einsum("ni,ij,nj->n", x, sigma, x) + r**2
            noise = x.T @ (spread[:, None] * x) / n - hessian @ sigma @ hessian
            if corrected:
                noise = noise - noise.diag().diag()
            sigma = step @ sigma @ step + lr * identity + share * noise
        return sigma


def regression(samples: int, width: int) -> Regression:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(samples, width, generator=generator)
    r = 2 * torch.randn(samples, generator=generator)
    return Regression(x, r - x @ torch.linalg.lstsq(x, r[:, None]).solution[:, 0])


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("replacement", [False, True])
def test_gradient_noise(replacement: bool, corrected: bool) -> None:
    """Minibatches inflate SGLD's covariance, by as much as computed; corrected, they hardly do."""
    problem, copies, batch = regression(samples=12, width=3), 40_000, 6 if replacement else 4
    lr, n_beta, localization = 0.03, 8.0, 2.0
    width, generator = problem.x.shape[1], torch.Generator().manual_seed(4)
    sampler = pf.SGLD(lr, gradient_noise_correction=corrected)
    bank = bank_of(1, torch.zeros(copies * width))  # one chain, of independent copies of the problem
    state = sampler.init(bank, torch.tensor([lr]), torch.tensor([n_beta]), torch.tensor([localization]), seed=5)
    for _ in range(50):  # what is left of the start is (1 − lr·a/2)^100 < 1e-4, a > 6
        if replacement:
            drawn = torch.randint(len(problem.x), (batch, copies), generator=generator)
        else:
            drawn = torch.rand(len(problem.x), copies, generator=generator).argsort(0)[:batch]
        x, r = problem.x[drawn], problem.r[drawn]
        grads = (x * ((x * bank.params.view(copies, width)).sum(-1) - r)[:, :, None]).view(batch, -1)
        if not corrected:
            bank.grads.copy_(grads.mean(0))
            sampler.update(bank, state)
        elif replacement:
            sampler.update_row(bank, state, 0, grads)
            state.step += 1
        else:
            pf.ops.per_sample_langevin_step(
                bank.params[None], grads[None], bank.centers, lr=lr, n_beta=n_beta, localization=localization, seed=5,
                step=state.step, sampled_fraction=batch / len(problem.x),
            )  # fmt: skip
            state.step += 1
    law = partial(problem.covariance, lr, n_beta, localization)
    exact = law(batch, replacement=replacement, corrected=corrected)
    d = bank.params.view(copies, width).double()
    error = ((exact.diag()[:, None] * exact.diag() + exact**2) / copies).sqrt()
    assert float(((d.T @ d / copies - exact) / error).abs().max()) < 4.5
    noiseless = law(10**9, replacement=True, corrected=False).diag()
    inflation = law(batch, replacement=replacement, corrected=False).diag() / noiseless - 1
    # Far above the resolution, and a tenth of it is left: what coordinates do to one another.
    assert float(inflation.min()) > 2 * 4.5 * math.sqrt(2 / copies)
    assert not corrected or float((exact.diag() / noiseless - 1).abs().max()) < 0.1 * float(inflation.min())
