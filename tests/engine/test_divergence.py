"""Chains that diverge are frozen, reported and left out; the others take no notice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import patterning_fast as pf
from patterning_fast.chains.plan import Setting
from patterning_fast.engine import sample as engine
from patterning_fast.engine.run import advice
from patterning_fast.engine.torch_ensemble import TorchEnsemble
from patterning_fast.samplers.langevin import Sampler
from tests.models import language_model, language_posterior, tokens

SMALL: dict[str, Any] = {"chains": 4, "draws": 6, "batch_size": 4, "tile": 1, "progress": False}
SAMPLERS: list[Sampler] = [pf.SGLD(1e-3), pf.RMSPropSGLD(1e-4), pf.SGHMC(1e-4), pf.SGNHT(1e-3)]


@pytest.mark.parametrize("tile", [1, 4])
@pytest.mark.parametrize("far", [1e30, float("nan"), float("inf")])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda each: type(each).__name__)
def test_the_others_are_bit_identical(sampler: Sampler, far: float, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = SMALL | {"components": pf.components(language_model(), "l1h0", "full"), "tile": tile}
    alone = pf.sample(language_posterior(), sampler, **sampling)
    step = TorchEnsemble.step

    def stumble(moving: TorchEnsemble, pool: Any) -> None:
        step(moving, pool)
        if int(moving.state.step) == 3:
            moving.bank.params[moving.bank.starts[1] : moving.bank.starts[2]] = far

    monkeypatch.setattr(TorchEnsemble, "step", stumble)
    found = pf.sample(language_posterior(), sampler, **sampling)
    assert found.traces.diverged.tolist() == [False, True] + 6 * [False]
    others = ~found.traces.diverged
    assert torch.equal(found.traces.phi[others], alone.traces.phi[others])
    assert torch.equal(found.traces.distance[others], alone.traces.distance[others])
    assert torch.isfinite(found.traces.phi[1, :2]).all()
    assert torch.isnan(found.traces.phi[1, 2:]).all()
    # Its group, of which it is the only chain, is left out of every estimate; the others' values are those they had.
    kept = [0, 2, 3]
    expected = alone.grouped.means(torch.tensor(kept))
    for value, own in zip(found.grouped.means(found.groups(0)), expected, strict=True):
        assert torch.equal(value, own)
    mu = found.llc()["mu"].sel(component="l1h0")
    assert float(mu) == pytest.approx(float(alone.traces.phi[kept].mean()), rel=1e-6)
    assert found.diagnostics()["diverged"].sel(component="l1h0").values.tolist() == [False, True, False, False]
    assert np.isnan(found.susceptibilities()["chi_group"].sel(component="l1h0").values[1]).all()


def test_bundles_lose_no_more_than_they_must(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where totals are too many for every chain to have its own, a diverged chain takes its bundle with it."""
    monkeypatch.setattr(engine, "TOTALS_BYTES", 1)
    step = TorchEnsemble.step

    def stumble(moving: TorchEnsemble, pool: Any) -> None:
        step(moving, pool)
        moving.bank.params[moving.bank.starts[1] : moving.bank.starts[2]] = torch.nan

    monkeypatch.setattr(TorchEnsemble, "step", stumble)
    found = pf.sample(language_posterior(), pf.SGLD(1e-3), **SMALL | {"chains": 6, "groups": 3})
    assert found.units_per_bundle == 2
    assert found.grouped.count.tolist() == [0.0, 12.0, 12.0]
    expected = float(found.traces.phi[2:].mean())
    assert float(found.llc()["mu"][0]) == pytest.approx(expected, rel=1e-6)


def test_a_component_without_healthy_chains_has_no_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    step = TorchEnsemble.step

    def stumble(moving: TorchEnsemble, pool: Any) -> None:
        step(moving, pool)
        moving.bank.params[: moving.bank.starts[4]] = torch.nan

    monkeypatch.setattr(TorchEnsemble, "step", stumble)
    components = pf.components(language_model(), "l0h0", "full")
    found = pf.sample(language_posterior(), pf.SGLD(1e-3), **SMALL | {"components": components})
    llc = found.llc()
    assert np.isnan(llc["llc"].sel(component="l0h0"))
    assert np.isfinite(llc["llc"].sel(component="full"))
    assert np.isnan(found.susceptibilities()["chi"].sel(component="l0h0")).all()
    assert np.isnan(found.diagnostics()["r_hat"].sel(component="l0h0"))


class Floor(nn.Module):
    """A loss without a floor, whose chains run away while everything stays finite."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w.pow(3)


def test_losses_that_are_finite_but_absurd_do_not_pass() -> None:
    """An LLC of 10¹² is no estimate: a chain whose loss has risen a hundredfold has diverged."""
    posterior = pf.LocalPosterior(
        Floor(),
        lambda model, x: -model(x),
        torch.rand(8, 3) + 0.5,
        n_beta=1.0,
        localization=0.1,
    )
    with pytest.raises(pf.ChainDivergedError, match=r"at lr=0\.3 they overshoot: lower lr \(try 0\.03\)"):
        pf.sample(posterior, pf.SGLD(0.3), **SMALL | {"draws": 100})


def test_advice_names_the_hyperparameter() -> None:
    assert "lr·localization is 10, and must be below 4: lower lr below 0.4" in advice(
        pf.SGLD(1.0), Setting(1.0, 1.0, 10.0)
    )
    assert "lower lr (try 0.01), or lower n_beta" in advice(pf.SGHMC(0.1), Setting(0.1, 1.0, 100.0))


def test_tokens_of_a_run_with_lost_chains_can_be_inverted(monkeypatch: pytest.MonkeyPatch) -> None:
    step = TorchEnsemble.step

    def stumble(moving: TorchEnsemble, pool: Any) -> None:
        step(moving, pool)
        moving.bank.params[moving.bank.starts[1] : moving.bank.starts[2]] = torch.nan

    monkeypatch.setattr(TorchEnsemble, "step", stumble)
    heads = pf.components(language_model(), "heads", "full")
    found = pf.sample(
        language_posterior(), pf.SGLD(1e-3), components=heads, **SMALL | {"chains": 8, "probes": {"p": tokens(3)}}
    )
    chi = found.susceptibilities()
    plan = pf.invert(chi, pf.modes(chi, centre_data=False, unsettled=True)[0], strength=0.1, unsettled=True)
    assert np.isfinite(plan.predicted["dmu_error"]).all()
