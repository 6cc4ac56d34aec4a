"""The bias that runs tell: against exact laws of chains on linear regression, and on a net that looked healthy."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import patterning_fast as pf
from patterning_fast.engine.curvature import lanczos
from tests.models import language_model, language_posterior, tokens
from tests.truth.linear_regression import LinearRegression, linear_regression
from tests.truth.test_samplers import Regression, stationary

QUICK: dict[str, Any] = {"chains": 4, "draws": 5, "progress": False}


def test_lanczos_finds_the_largest_curvature_and_the_spectrum() -> None:
    """Eight products of a 60 × 60 matrix, whose largest value stands alone; of a 5 × 5 one they give all there is."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(60, 60, generator=generator, dtype=torch.float64))[0].float()
    matrix = vectors @ torch.diag(torch.cat((torch.linspace(0, 1, 59), torch.tensor([5.0])))) @ vectors.T
    start = torch.randn(60, generator=generator)
    found = lanczos(lambda along: matrix @ along, start, 8)
    assert found.curvature.max() == pytest.approx(5.0, rel=1e-4)
    # Gauss's rule of 8 nodes is exact for polynomials of degree 15; float32 products.
    for power in (0, 1, 3):
        exact = float(start @ torch.linalg.matrix_power(matrix, power) @ start / start.square().sum())
        assert found.mean(found.curvature**power) == pytest.approx(exact, rel=1e-4)
    small = torch.diag(torch.tensor([-1.0, 0.0, 2.0, 3.0, 7.0]))
    assert lanczos(lambda along: small @ along, torch.ones(5), 5).curvature == pytest.approx([-1, 0, 2, 3, 7], abs=1e-4)
    assert len(lanczos(lambda along: small @ along, torch.tensor([0.0, 1, 0, 0, 1]), 5).curvature) == 2
    assert lanczos(lambda along: along, torch.zeros(5), 5).curvature.tolist() == [0.0]
    assert np.isnan(lanczos(lambda along: along / 0, torch.ones(5), 5).curvature).all()


@pytest.mark.parametrize("engine", ["torch", "native"])
def test_step_size_bias_is_that_of_the_exact_law(engine: Any) -> None:
    """Every curvature of six coordinates, or of two, is found: to the rounding of central differences in float32."""
    problem = dataclasses.replace(linear_regression(seed=2), lr=0.02)
    model = nn.Sequential(problem.model())
    mask = torch.tensor([[True, True, False, False, False, False]])
    found = pf.sample(
        problem.posterior(model), pf.SGLD(problem.lr), batch_size=4000, engine=engine,
        components={"two": pf.component(model, "two", {"0.weight": mask})} | pf.components(model, "full"), **QUICK,
    )  # fmt: skip
    health, llc, chi = found.diagnostics(), found.llc(), found.susceptibilities()
    assert str(found.attrs["engine"]).startswith(engine)
    for at, coordinates in enumerate(([0, 1], [0, 1, 2, 3, 4, 5])):
        _, hessian, sigma = problem.curvature(coordinates)
        _, _, exact = dataclasses.replace(problem, lr=0.0).curvature(coordinates)
        stiffest = 1 / torch.linalg.eigvalsh(exact).min()
        assert float(health["curvature"][at]) == pytest.approx(float(stiffest), rel=1e-3)
        widest = 1 / (1 - problem.lr * float(stiffest) / 4) - 1
        assert widest > 0.2
        assert float(health["step_size_bias"][at]) == pytest.approx(widest, rel=1e-2)
        for power, (name, estimates) in enumerate((("llc", llc), ("chi", chi)), 1):
            over, under = (torch.linalg.matrix_power(hessian @ each, power).trace() for each in (sigma, exact))
            share = 1 - float(under / over)
            error = estimates[f"{name}_bias_error"][at] / abs(estimates[name][at])
            # Minibatches of 4,000 add about 1e-3 of the injected noise.
            assert error.values == pytest.approx(share, abs=5e-3)


def test_curvature_of_a_head_is_that_of_the_model() -> None:
    """Found in the suffix of a head; the whole Hessian in double, by differences. Its top stands apart by a third."""
    model, data = language_model().double(), tokens()
    head = pf.attention_heads(language_model())["l0h1"]
    base = {name: parameter.detach() for name, parameter in model.named_parameters()}
    sizes = [base[name].numel() if index is None else index.numel() for name, index in head.coordinates.items()]

    def loss(moves: Tensor) -> Tensor:
        parts = zip(head.coordinates.items(), moves.split(sizes), strict=True)
        moved = {
            name: (
                base[name].flatten() + part if index is None else base[name].flatten().index_add(0, index, part)
            ).view(base[name].shape)
            for (name, index), part in parts
        }
        logits = functional_call(model, moved, (data[:, :-1],))
        return nn.functional.cross_entropy(logits.flatten(0, 1), data[:, 1:].flatten())

    def gradient(moves: Tensor) -> Tensor:
        leaf = moves.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf)[0]

    units = 1e-5 * torch.eye(sum(sizes), dtype=torch.float64)
    hessian = torch.stack([(gradient(each) - gradient(-each)) / 2e-5 for each in units])
    largest = float(torch.linalg.eigvalsh(hessian).max())
    posterior = language_posterior(n_beta=10.0, localization=1.0)
    found = pf.sample(posterior, pf.SGLD(1e-5), components={"l0h1": head}, batch_size=12, tile=1, **QUICK)
    # Chains that stay at w* for all that matters: √(lr·5) is 0.007.
    assert float(found.diagnostics()["curvature"][0]) == pytest.approx(1 + 10 * largest, rel=0.02)
    assert "head" in str(found.diagnostics()["evaluated"].values[0])


def residuals(problem: LinearRegression) -> Tensor:
    return (problem.y - problem.model()(problem.x)).detach().flatten()


@pytest.mark.parametrize("engine", ["torch", "native"])
def test_heat_of_minibatches_is_that_of_the_exact_law(engine: Any) -> None:
    """λ̂ over that without noise, of the exact stationary covariance, which is felt where the loss bends."""
    problem = dataclasses.replace(linear_regression(seed=3), lr=2e-4, n_beta=300.0)
    law, batch = Regression(problem.x, residuals(problem)), 2
    covariances = [
        law.covariance(problem.lr, problem.n_beta, problem.localization, size, replacement=True, corrected=False)
        for size in (batch, 10**9)
    ]
    hessian = problem.curvature([0, 1, 2, 3, 4, 5])[1]
    exact = float((hessian @ covariances[0]).trace() / (hessian @ covariances[1]).trace()) - 1
    run = pf.sample(
        problem.posterior(nn.Sequential(problem.model())), pf.SGLD(problem.lr), chains=32, draws=20, burn_in=30,
        steps_between_draws=10, batch_size=batch, engine=engine, progress=False,
    )  # fmt: skip
    told = float(run.bias.llc[0]) - float(run.bias.step_size[0])
    # The variance between 32 minibatches of 6 coordinates is known to 10 %, the place of two chains changes it by as
    # much; the rest are directions in which noise and curvature do not go together.
    assert told == pytest.approx(exact, rel=0.3)
    assert float(run.bias.chi[0]) > 1.8 * told


def tanh_posterior() -> pf.LocalPosterior:
    """A net of 10 weights at its minimum, with curvatures of the potential from 4 to 857."""
    net, generator = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Tanh(), nn.Linear(3, 1)), torch.Generator()
    with torch.no_grad():
        for parameter, values in zip(
            net.parameters(),
            ([[0.6, -0.6], [1.1, 0.1], [1.3, 0.1]], [[-1.6, 2.9, -2.5]], [0.9]),
            strict=True,
        ):
            parameter.copy_(torch.tensor(values))
    x = torch.randn(200, 2, generator=generator.manual_seed(0))
    y = net(x).detach() + 0.3 * torch.randn(200, 1, generator=generator)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=500, tolerance_grad=1e-9)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * (net(x) - y).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return pf.LocalPosterior(net, pf.losses.squared_error, (x, y), n_beta=200.0, localization=4.0)


def test_steps_too_long_are_told_where_chains_agree() -> None:
    """At a large step R̂ is below 1.1 and χ several times too large: what `calibrate` took for healthy."""
    posterior = tanh_posterior()
    sampling: dict[str, Any] = {"chains": 16, "draws": 200, "batch_size": 400, "progress": False}
    short, long = (
        pf.sample(posterior, pf.SGLD(lr), burn_in=100, steps_between_draws=steps, **sampling)
        for lr, steps in ((3e-4, 6), (3.7e-3, 2))
    )
    chi = [float(np.square(run.susceptibilities()["chi"]).mean() ** 0.5) for run in (short, long)]
    error = [float(np.square(run.susceptibilities()["chi_bias_error"]).mean() ** 0.5) for run in (short, long)]
    assert float(long.diagnostics()["r_hat"][0]) < 1.1
    assert chi[1] > 5 * chi[0]
    assert float(short.diagnostics()["step_size_bias"][0]) < 0.15
    assert float(long.diagnostics()["step_size_bias"][0]) > 2
    assert error[0] < 0.15 * chi[0]
    assert error[1] > 0.5 * chi[1]
    grid = pf.calibrate(
        posterior, pf.SGLD(1.0), lr=[3e-4, 3.7e-3], chains=8, draws=20, burn_in=20, batch_size=400, progress=False,
    )  # fmt: skip
    assert grid["verdict"].values[:, 0, 0, 0].tolist() == ["on the way out", "steps too long"]


def test_minibatches_that_heat_are_told_by_calibrate() -> None:
    problem = linear_regression(seed=3)
    posterior = problem.posterior(nn.Sequential(problem.model()))
    sampling: dict[str, Any] = {"lr": [2e-4], "n_beta": [300.0], "draws": 50, "burn_in": 50, "progress": False}
    for batch, verdict in ((2, "too warm"), (400, "healthy")):
        grid = pf.calibrate(posterior, pf.SGLD(1.0), batch_size=batch, steps_between_draws=20, **sampling)
        assert grid["verdict"].values.ravel().tolist() == [verdict]
        assert (float(grid["gradient_noise"].squeeze()) > 0.1) == (batch == 2)


@pytest.mark.parametrize("engine", ["torch", "native"])
def test_a_correction_that_must_clip_is_refused_with_the_largest_lr_that_it_can_correct(engine: Any) -> None:
    problem = dataclasses.replace(linear_regression(seed=3), n_beta=3000.0)
    posterior = problem.posterior(nn.Sequential(problem.model()))
    options: dict[str, Any] = {"batch_size": 2, "engine": engine, **QUICK}
    with pytest.raises(ValueError, match=r"lr=0\.0002: in full .* lower lr to [0-9.e-]+, the largest") as refused:
        pf.sample(posterior, pf.SGLD(2e-4, gradient_noise_correction=True), **options)
    largest = float(str(refused.value).split("lower lr to ")[1].split(",")[0])
    # (lr/2)²·nβ²·s²/m = lr of the noisiest coordinate of the data there are.
    noise = (problem.x * residuals(problem)[:, None]).var(0).max()
    assert largest == pytest.approx(float(4 * 2 / (3000**2 * noise)), rel=0.6)  # of 16 parts of the data
    allowed = pf.sample(posterior, pf.SGLD(largest, gradient_noise_correction=True), **options).diagnostics()
    assert 0 <= float(allowed["gradient_noise"][0]) < 0.1


def test_a_correction_that_clips_on_the_way_is_told() -> None:
    """Data that are met exactly have no noise at w*, and much of it where large steps go."""
    problem = linear_regression(seed=3)
    met = dataclasses.replace(problem, y=problem.x @ problem.model().weight.detach().T)
    posterior = met.posterior(nn.Sequential(met.model()))
    with pytest.warns(UserWarning, match="gradient_noise_correction has left up to .* lower lr=0.03"):
        pf.sample(posterior, pf.SGLD(0.03, gradient_noise_correction=True), batch_size=2, burn_in=50, **QUICK)


def test_biases_that_nobody_can_tell_are_nan() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))
    data = torch.randn(20, 3), torch.randn(20, 2)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (nn.functional.dropout(model(batch[0]), 0.5, True) - batch[1]).square().sum(1)

    posterior = pf.LocalPosterior(model, loss, data, n_beta=1.0, localization=10.0, random_loss=True)
    run = pf.sample(posterior, pf.SGLD(1e-3), **QUICK)
    assert np.isnan(run.diagnostics()["step_size_bias"]).all()
    assert np.isnan(run.llc()["llc_bias_error"]).all()
    assert np.isfinite(pf.intervals(run.llc(), "llc")["upper"]).all()


@pytest.mark.parametrize(
    "sampler",
    [pf.SGLD(0.3), pf.SGHMC(0.3, 0.4), pf.RMSPropSGLD(0.3, stability=1.0)],
    ids=lambda each: type(each).__name__,
)
@pytest.mark.parametrize("curvature", [0.5, 2.0])
def test_samplers_tell_their_exact_laws(sampler: Any, curvature: float) -> None:
    """Against the stationary covariance of their recursions; RMSProp's where its gradients are 0."""
    lr, n_beta, variance = sampler.lr, 3.0, 0.2
    heat = sampler.heating(lr, n_beta) * variance
    if isinstance(sampler, pf.SGHMC):
        keep, push = 1 - sampler.friction, lr * curvature
        move = [[1 - push, keep], [-push, keep]]
        injected, added = (2 * sampler.friction * lr) ** 0.5, lr * n_beta * variance**0.5
        exact = [float(stationary(move, [size, size])[0, 0]) for size in (injected, (injected**2 + added**2) ** 0.5)]
    else:
        move, added = [[1 - lr * curvature / 2]], lr / 2 * n_beta * variance**0.5
        exact = [float(stationary(move, [size])[0, 0]) for size in (lr**0.5, (lr + added**2) ** 0.5)]
    assert sampler.inflation([curvature], lr)[0] == pytest.approx(exact[0] * curvature, rel=1e-9)
    assert 1 + heat == pytest.approx(exact[1] / exact[0], rel=1e-9)
    assert sampler.inflation([1.001 * sampler.steepest(lr)], lr)[0] == np.inf


def test_sgnht_tells_its_exact_law() -> None:
    """As `tests/truth/test_samplers.py` has it, at a thermostat of diffusion/(1 − lr²·a/4): to first order in lr."""
    sampler = pf.SGNHT(0.1, 1.5)
    thermostat = 1.5 / (1 - 0.1**2 / 4)
    assert sampler.inflation([1.0, 401.0], 0.1).tolist() == [pytest.approx(1 - thermostat * 0.05), np.inf]
    assert np.isnan(sampler.heating(0.1, 1.0))
