"""What chains at n_beta = 0 would give, without running them: closed forms, brute force, and what estimates say."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr
from torch import Tensor, nn

import patterning_fast as pf
from patterning_fast.engine.blindness import PAIRS, GaussianBall, ball_variance
from patterning_fast.engine.options import Options
from patterning_fast.estimators.blindness import BallMoments, correlations, ratios
from tests.models import language_model, language_posterior, tokens
from tests.truth.linear_regression import linear_regression

QUICK: dict[str, Any] = {"chains": 4, "draws": 3, "batch_size": 4, "tile": 1, "progress": False}


def options(**changes: Any) -> Options:
    arguments = {
        "chains": 8, "draws": 10, "burn_in": 3, "steps_between_draws": 4, "batch_size": 8, "shared_minibatches": False,
        "antithetic": False, "groups": None, "loss_kernel": False, "recording_bytes": 2**20, "precision": "float32",
        "tile": None, "seed": 0,
    }  # fmt: skip
    return Options(**arguments | changes)


def repeated(ball: GaussianBall, seeds: int) -> tuple[Tensor, Tensor]:
    """φ `[components, seeds]` and χ `[components, seeds, losses]` of balls of several seeds."""
    found = [replace(ball, options=replace(ball.options, seed=seed))() for seed in range(seeds)]
    return torch.stack([each.phi.mean(1) for each in found], 1), torch.stack([each.chi.mean(1) for each in found], 1)


def assert_within(found: Tensor, exact: Tensor, bias: float) -> None:
    """Means over the first dimension, within 4 of their standard errors and a bias of so much of the largest."""
    error = found.double().std(0) / len(found) ** 0.5
    assert bool(((found.double().mean(0) - exact).abs() < 4 * error + bias * exact.abs().max()).all())


@pytest.mark.parametrize("moved", [[0, 1, 2, 3, 4, 5], [1, 4]])
def test_linear_regression(moved: list[int]) -> None:
    """E₀[φ] = σ²/2·tr H, too large by DIFFERENCE² of H's share along the gradient, 1 % at most; χ₀ with Σ = σ²·1.

    Standard errors of 30 seeds are 4 % of E₀[φ], and 6 % of the size of χ₀.
    """
    problem = linear_regression(1)
    model = nn.Sequential(problem.model())
    chosen = {"some": pf.component(model, "some", {"0.weight": torch.tensor([[at in moved for at in range(6)]])})}
    statistics = pf.sample(problem.posterior(model), pf.SGLD(problem.lr), components=chosen, **QUICK)
    ball = statistics.twin
    assert isinstance(ball, GaussianBall)
    at, variance = statistics.component_names.index("some"), ball.variance
    phi, chi = repeated(ball, 30)
    x = problem.x.double()[:, moved]
    h = x.T @ x / len(x)
    assert_within(phi[at], variance / 2 * torch.trace(h), 0.01)
    assert_within(chi[at], -(variance**2) / 2 * (torch.einsum("ni,ij,nj->n", x, h, x) - torch.trace(h @ h)), 1e-3)


def test_far_from_quadratic() -> None:
    """Of a net of tanhs in a wide ball, against covariances of 200,000 draws of the ball itself.

    The tolerance is 4 standard errors of both, and 3 % of the largest: terms above the 4th degree.
    """
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    x, y = torch.randn(5, 2), torch.randn(5, 1)
    posterior = pf.LocalPosterior(model, pf.losses.squared_error, (x, y), n_beta=1.0, localization=10.0)
    ball = GaussianBall(posterior, 0.1, components(posterior), None, None, options(batch_size=3), None, PAIRS)
    phi, chi = repeated(ball, 80)
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    w = flat + 0.1**0.5 * torch.randn(200_000, len(flat))
    hidden = torch.tanh(torch.einsum("nd,whd->wnh", x, w[:, :4].view(-1, 2, 2)) + w[:, None, 4:6])
    losses = 0.5 * ((hidden * w[:, None, 6:8]).sum(2) + w[:, 8:9] - y[:, 0]) ** 2
    mean, groups = losses.mean(1), losses.view(20, -1, 5)
    by_group = -torch.stack([
        ((each.mean(1) - each.mean())[:, None] * (each - each.mean(1, keepdim=True))).mean(0) for each in groups
    ])  # fmt: skip
    center = float(posterior.loss(model, (x, y)).detach().mean())
    brute_error = (by_group.std(0) / 20**0.5).max()
    assert_within(phi[0], (mean.mean() - center).double(), 0.03)
    wide = by_group.mean(0).double()
    assert_within(chi[0], wide, 0.03 + 4 * float(brute_error / wide.abs().max()))


def components(posterior: pf.LocalPosterior) -> list[pf.Component]:
    return pf.sample(posterior, pf.SGLD(1e-3), **QUICK).plan.components


@pytest.mark.parametrize(("lr", "localization"), [(0.01, 5.0), (0.01, 0.0), (0.3, 10.0)])
def test_variance_of_chains_on_their_way(lr: float, localization: float) -> None:
    """Mean over kept draws of the recursion's own variance."""
    variance, variances = 0.0, []
    for _ in range(13 * 4):
        variance = (1 - lr * localization / 2) ** 2 * variance + lr
        variances.append(variance)
    assert ball_variance(pf.SGLD(lr), localization, options()) == pytest.approx(np.mean(variances[15::4]))
    settled = ball_variance(pf.SGLD(lr), localization, options(burn_in=10_000))
    if localization:
        assert settled == pytest.approx(1 / (localization * (1 - lr * localization / 4)))


def test_variance_of_other_samplers() -> None:
    assert ball_variance(pf.SGHMC(1e-3), 20.0, options()) == 0.05
    assert pf.sample(language_posterior(localization=0.0), pf.SGHMC(1e-9), **QUICK).twin is None
    assert pf.sample(language_posterior(localization=0.0), pf.SGLD(1e-9), **QUICK).twin is not None


@pytest.mark.parametrize("n_beta", [0.0, 30.0])
def test_ratio_and_correlation_of_linear_regression(n_beta: float) -> None:
    """Of 20 runs with intervals of 95 %: 15 and fewer hold what closed forms say in 1 of 400.

    Intervals are of 7 degrees of freedom, the ball's pairs; the ball's 1 % is small beside errors of a fifth.
    """
    problem = replace(linear_regression(1), n_beta=n_beta)
    posterior, all_six = problem.posterior(nn.Sequential(problem.model())), [0, 1, 2, 3, 4, 5]
    _, h, sigma = problem.curvature(all_six)
    variance = ball_variance(pf.SGLD(problem.lr), problem.localization, options(burn_in=1000))
    ratio = float(torch.trace(h @ sigma) / torch.trace(h) / variance)
    without = replace(problem, n_beta=0.0)
    both = torch.stack([each.susceptibility(all_six) for each in (problem, without)])
    exact = {"blind": ratio, "blind_correlation": float(torch.corrcoef(both)[0, 1])}
    sampling: dict[str, Any] = {"chains": 32, "draws": 25, "burn_in": 15, "steps_between_draws": 8, "batch_size": 200}
    found = [
        pf.sample(posterior, pf.SGLD(problem.lr), seed=seed, progress=False, **sampling)
        .susceptibilities()
        .isel(component=0)
        for seed in range(20)
    ]
    for name, truth in exact.items():
        z = np.array([(float(each[name]) - truth) / float(each[f"{name}_error"]) for each in found])
        assert (np.abs(z) < scipy.stats.t.ppf(0.975, PAIRS - 1)).sum() > 15, name
    assert np.mean([float(each["blind_error"]) for each in found]) < 0.3 * ratio


def test_a_language_model_without_and_with_its_loss() -> None:
    """At n_beta = 0 ratio and correlation are 1 within 4 errors; the loss of a fitted model takes them away from it."""
    model = language_model()
    pf.train(model, tokens(), pf.losses.next_token, steps=60, batch_size=12, lr=1e-2, progress=False)

    def found(n_beta: float, lr: float) -> xr.Dataset:
        posterior = pf.LocalPosterior(model, pf.losses.next_token, tokens(), n_beta=n_beta, localization=400.0)
        sampling: dict[str, Any] = {"chains": 16, "draws": 20, "burn_in": 5, "steps_between_draws": 2, "batch_size": 12}
        return (
            pf.sample(posterior, pf.SGLD(lr), tile=16, progress=False, **sampling).susceptibilities().isel(component=0)
        )

    without, with_loss = found(0.0, 1e-3), found(5000.0, 2e-4)
    for name in ("blind", "blind_correlation"):
        assert float(abs(without[name] - 1)) < 4 * float(without[f"{name}_error"]), name
        assert float(without[f"{name}_error"]) < 0.3
        assert float(with_loss[name]) < 1 - 2 * float(with_loss[f"{name}_error"]), name


def test_cost() -> None:
    """Samples that run forward or backward, a backward pass counted as two: 5 % of a run of 8 chains and 100 draws."""
    cost = [0]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        cost[0] += len(batch[0]) * (3 if torch.is_grad_enabled() else 1)
        return pf.losses.squared_error(model, batch)

    problem = linear_regression(0, samples=200)
    posterior = pf.LocalPosterior(nn.Sequential(problem.model()), loss, (problem.x, problem.y), n_beta=1.0,
                                  localization=1.0)  # fmt: skip
    before = cost[0]
    statistics = pf.sample(posterior, pf.SGLD(1e-3), tile=1, progress=False)
    run, before = cost[0] - before, cost[0]
    assert statistics.ball is not None
    assert 0.03 * run < cost[0] - before < 0.05 * run


def test_it_belongs_to_its_component_and_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior, heads = language_posterior(), pf.attention_heads(language_model())
    alone = pf.sample(posterior, pf.SGLD(1e-3), components={"l1h0": heads["l1h0"]}, **QUICK)
    every = pf.sample(posterior, pf.SGLD(1e-3), components=heads, **QUICK)
    one, other = (each.llc()["blind"].sel(component="l1h0") for each in (alone, every))
    assert float(one) == pytest.approx(float(other), rel=1e-4)  # where heads run different suffixes
    monkeypatch.setattr(GaussianBall, "__call__", lambda self: pytest.fail("it is known by now"))
    assert {"blind", "blind_error"} <= set(alone.influence()) & set(alone.llc()) & set(alone.contributions())


def test_a_run_can_be_pickled() -> None:
    statistics = pf.sample(language_posterior(), pf.SGLD(1e-3), **QUICK)
    again = pickle.loads(pickle.dumps(statistics)).llc()
    np.testing.assert_array_equal(again["blind"], statistics.llc()["blind"])


def test_where_there_is_none() -> None:
    observed = pf.sample(language_posterior(), pf.SGLD(1e-3), observables={"one": one}, **QUICK)
    assert "blind_correlation" not in observed.susceptibilities("one")
    assert "blind_correlation" in observed.susceptibilities()
    assert "blind_correlation" not in pf.aggregate(observed.susceptibilities(), ["a"] * 12)
    random = pf.sample(language_posterior(random_loss=True), pf.SGLD(1e-3), **QUICK)
    assert "blind" not in random.susceptibilities()


def one(model: nn.Module) -> Tensor:
    return next(model.parameters()).sum()


def test_ratios_and_correlations_are_their_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    phi, chi = 2 + torch.randn(2, PAIRS, generator=generator), torch.randn(3, 50, generator=generator)
    by_draw = torch.stack([chi[:1] + 0.3 * torch.randn(PAIRS, 50, generator=generator), torch.randn(PAIRS, 50)])
    ball = BallMoments(phi.double(), by_draw)
    own = 4 + torch.randn(16, generator=generator, dtype=torch.float64)
    found = ratios([own, own[:0]], ball)
    mean, error = float(own.mean()), float(own.std() / 4)
    base, base_error = float(phi[0].double().mean()), float(phi[0].double().std() / PAIRS**0.5)
    assert found["blind"][1][0] == pytest.approx(mean / base)
    assert found["blind_error"][1][0] == pytest.approx(mean / base * np.hypot(error / mean, base_error / base))
    assert np.isnan(found["blind"][1][1])
    of_chi = correlations([chi[:1].numpy() + np.zeros((4, 1)), chi[:2].numpy()], ball)
    # χ is exact here, and the ball's noise of 0.3 adds 0.3²/8 to its variance, which is taken out again.
    assert of_chi["blind_correlation"][1][0] == pytest.approx(1.0, abs=0.05)
    assert 0 < of_chi["blind_correlation_error"][1][0] < 0.05
    assert np.isnan(of_chi["blind_correlation"][1][1])  # of two groups
