"""Parts of χ, reliabilities and diagnostics, against what they are in numbers made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from arviz_stats.base.array import array_stats
from torch import Tensor

import patterning_fast as pf
from patterning_fast.chains.plan import Setting, chain_plan
from patterning_fast.estimators.bias import Bias
from patterning_fast.estimators.comoments import Comoments, Means, mean_and_error, pseudo_values, unbiased_covariance
from patterning_fast.estimators.statistics import Statistics, covariance
from patterning_fast.estimators.traces import ChainTraces
from patterning_fast.posterior.components import resolve_components
from tests.models import language_model, language_posterior

SMALL: dict[str, Any] = {"chains": 4, "draws": 8, "batch_size": 4, "tile": 1, "progress": False}


def statistics_of(losses: Tensor, phi: Tensor) -> Statistics:
    """Statistics of given losses `[components, chains, draws, tokens]` and φ `[components, chains, draws]`."""
    components, chains, draws, tracked = losses.shape
    model = language_model()
    heads = dict(list(pf.attention_heads(model).items())[: components - 1]) | pf.components(model, "full")
    plan = chain_plan(resolve_components(model, heads), chains, False, chains, (Setting(1e-3, 10.0, 1.0),))
    totals = Comoments.zeros(plan.rows + 1, torch.zeros(tracked), torch.zeros(1))
    for draw in range(draws):
        totals.update(
            losses[:, :, draw].flatten(0, 1).contiguous(),
            phi[:, :, draw].reshape(-1, 1).contiguous(),
            torch.arange(plan.rows),
        )
    traces = ChainTraces.empty(plan, draws)
    traces.phi[:] = phi.flatten(0, 1).double()
    coordinates = {"probe": np.full(tracked, "p"), "sample": np.arange(tracked), "position": np.zeros(tracked)}
    return Statistics(
        plan=plan, setting=0, totals=totals, early=Comoments.zeros(plan.rows + 1, torch.zeros(tracked), torch.zeros(0)),
        units_per_bundle=1, traces=traces, evaluated=["whole model"] * components,
        loss_dimension="token", loss_coordinates=coordinates, observables=[], loss_kernel_tracked=False,
        bias=Bias(*np.zeros((5, components))),
        attrs={
            "lr": 1e-3, "n_beta": 10.0, "localization": 1.0, "batch_size": 4, "burn_in": 0, "steps_between_draws": 1,
            "sampler": "SGLD(lr=0.001)",
        },
    )  # fmt: skip


def test_parts_of_chi_are_their_definitions(generator: torch.Generator) -> None:
    """With one loss of mean L, the estimates are averages over pairs of different chains, by hand."""
    losses = torch.randn(2, 5, 7, 3, generator=generator)
    phi = losses.mean(-1) + 0.3 + torch.randn(2, 5, 7, generator=generator)
    losses[0] += 0.5 * phi[0, ..., None]
    chi = statistics_of(losses, phi).susceptibilities()
    p = phi.double()
    relative = losses.double() - p[..., None]  # l_z − L, but for constants

    def between_chains(first: Tensor, second: Tensor) -> Tensor:
        """E[first]·E[second] of independent chains: over all pairs of different ones."""
        total = first.sum(0) * second.sum(0) - (first * second).sum(0)
        return total / (5 * 4)

    own, of_full = relative[0].mean(1), relative[1].mean(1)
    mean_phi = p[0].mean(1)[:, None]
    particular = -(p[0][..., None] * relative[0]).mean((0, 1)) + between_chains(mean_phi, own)
    drift = between_chains(mean_phi, of_full - own)
    head = chi.sel(component="l0h0")
    # Totals are of float32 products, each to 2⁻²⁴ of values below 20, over 35 draws; the definitions are in double.
    assert np.allclose(head["chi"], particular, atol=35 * 20 * 2.0**-24)
    # A jackknife of a product of two chains' means pairs groups with themselves on neither side.
    assert np.allclose(head["chi_drift"], drift, atol=35 * 20 * 2.0**-24)
    assert np.allclose(head["chi_two_chain"], particular + drift, atol=70 * 20 * 2.0**-24)
    assert float(abs(chi["chi_drift"].sel(component="full")).max()) == 0
    two_chain = -(p[0][..., None] * relative[0]).mean((0, 1)) + between_chains(
        mean_phi, of_full
    )  # E_C[φL] − E_C[φ l_z] − E_C[φ]·E_full[L − l_z]
    assert np.allclose(head["chi_two_chain"], two_chain, atol=70 * 20 * 2.0**-24)


def test_one_pass_covariance_is_the_mean_of_the_pseudo_values(generator: torch.Generator) -> None:
    groups = Means(
        torch.randn(6, 4, generator=generator, dtype=torch.float64),
        torch.randn(6, 2, generator=generator, dtype=torch.float64),
        torch.randn(6, 2, 4, generator=generator, dtype=torch.float64),
        torch.randn(6, 2, 2, generator=generator, dtype=torch.float64),
    )
    expected, _ = mean_and_error(pseudo_values(covariance, groups))
    assert torch.allclose(unbiased_covariance(groups), expected, rtol=1e-12, atol=1e-12)


def test_reliability_is_the_correlation_between_two_such_runs(generator: torch.Generator) -> None:
    """χ of 2,000 tokens with known variance, measured with known noise: reliability is variance over their sum."""
    tokens, chains, draws = 2000, 16, 200
    response = torch.randn(tokens, generator=generator)
    phi = torch.randn(2, chains, draws, generator=generator)
    noise = 8.0
    losses = response * phi[..., None] + noise * torch.randn(2, chains, draws, tokens, generator=generator)
    chi = statistics_of(losses, phi).susceptibilities().sel(component="l0h0")
    # Each χ has variance 1 over tokens and, from 3,200 draws, noise of variance 64/3200 and (χ² − 1 of φ) small.
    expected = 1 / (1 + noise**2 / (chains * draws))
    assert float(chi["chi_reliability"]) == pytest.approx(expected, abs=0.005)
    # r = 0.9 with the truth needs .81 = n/(n + k), k = 16 · (1 − ρ)/ρ chains.
    k = chains * (1 - expected) / expected
    assert float(chi["chains_for_r_0.9"]) == pytest.approx(k * 0.81 / 0.19, rel=0.3)
    assert float(chi["chi_drift_reliability"]) < 0.5


def test_reliability_needs_four_groups() -> None:
    chi = pf.sample(language_posterior(), pf.SGLD(1e-3), **SMALL | {"chains": 2}).susceptibilities()
    assert np.isnan(chi["chi_reliability"]).all()
    assert np.isnan(chi["chains_for_r_0.9"]).all()


def test_diagnostics_are_arviz_s_on_the_traces() -> None:
    components = pf.components(language_model(), "l0h1", "full")
    found = pf.sample(language_posterior(), pf.SGLD(1e-3), loss_kernel=True, **SMALL | {"components": components})
    health = found.diagnostics()
    for at, name in enumerate(("l0h1", "full")):
        traces = found.traces.phi[4 * at : 4 * at + 4].numpy()
        assert float(health["r_hat"].sel(component=name)) == array_stats.rhat(traces, chain_axis=0, draw_axis=1)
        assert float(health["ess"].sel(component=name)) == array_stats.ess(traces, chain_axis=0, draw_axis=1)
    estimates = (found.llc(), found.contributions(), found.susceptibilities(), found.influence(), found.loss_kernel())
    for each in (*estimates, pf.aggregate(estimates[2], np.arange(12) % 3)):
        xr.testing.assert_identical(each[["r_hat", "ess"]], health[["r_hat", "ess"]].assign_attrs(each.attrs))
    # φ's mean over the traces is mu: float32 φ in both, added in double.
    mu = found.llc()["mu"].values
    assert np.allclose(health["phi"].mean(("chain", "draw")), mu, rtol=1e-6)
    assert health["evaluated"].values.tolist() == ["head l0h1", "whole model"]
    assert dict(health["distance"].sizes) == {"component": 2, "chain": 4, "draw": 8}


def test_gradient_noise_is_that_of_minibatches() -> None:
    """Of a linear loss with gradients x_j the covariance is that of the data over the batch size."""
    torch.manual_seed(0)
    x = torch.randn(64, 5) + 0.5
    model = torch.nn.Linear(5, 1, bias=False)
    posterior = pf.LocalPosterior(model, lambda model, x: model(x).squeeze(1), x, n_beta=3.0, localization=10.0)
    found = pf.sample(posterior, pf.SGLD(1e-3), chains=2000, draws=1, batch_size=8, groups=4, tile=1000, progress=False)
    health = found.diagnostics()
    variance, mean = x.var(0, correction=0).mean(), x.mean(0).square().mean()
    # From 2,000 minibatches of 5 coordinates: 1/√(2000·5/2) = 1.4 % for the variance, at 4 standard errors.
    assert float(health["gradient_noise_scale"][0]) == pytest.approx(float(variance / mean), rel=0.1)
    assert float(health["gradient_noise"][0]) == pytest.approx(float(1e-3 / 4 * 9 * variance / 8), rel=0.06)
    shared = pf.sample(posterior, pf.SGLD(1e-3), shared_minibatches=True, **SMALL).diagnostics()
    # Of 16 parts of few samples, 5 coordinates each: 16 % for the variance, at 3 standard errors.
    assert float(shared["gradient_noise"][0]) == pytest.approx(float(1e-3 / 4 * 9 * variance / 4), rel=0.5)


def test_llc_reads_no_losses() -> None:
    run = pf.sample(language_posterior(), pf.SGLD(1e-3), loss_kernel=True, **SMALL)
    expected = run.llc()
    again = pf.sample(language_posterior(), pf.SGLD(1e-3), loss_kernel=True, **SMALL)
    again.totals.loss_sum.fill_(torch.nan)
    again.totals.cross.fill_(torch.nan)
    assert np.isfinite(expected["llc_error"]).all()
    assert again.llc()[["mu_group", "llc", "llc_error"]].equals(expected[["mu_group", "llc", "llc_error"]])
    assert again.observed.cross.numel() == 0
    for found, sign in ((run.llc(), "llc > 0"), (run.influence(), "influence > 0"), (run.loss_kernel(), "kernel, ")):
        assert sign in found.attrs["sign"]


def test_contributions_of_a_weighted_posterior_are_refused() -> None:
    weighted = language_posterior(weights=torch.linspace(0.5, 1.5, 12))
    with pytest.raises(ValueError, match="derivatives at weights of 1"):
        pf.sample(weighted, pf.SGLD(1e-3), **SMALL).contributions()
