"""Whether chains had settled: against chains whose relaxation times are known, over repeats of the same experiment."""

from __future__ import annotations

import dataclasses
import math
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import patterning_fast as pf
from patterning_fast.engine.proposal import proposal
from patterning_fast.estimators.settling import Drift, Settling, Window, approach_time, correlation_time, settling
from patterning_fast.patterning.settled import unsettled_attrs
from tests.models import language_model, language_posterior
from tests.patterning.chi import made_up_chi
from tests.truth.linear_regression import linear_regression

REPEATS, TOKENS = 300, 30


@cache
def chains(
    curvatures: tuple[float, ...],
    lr: float,
    pull: float,
    units: int,
    draws: int,
    burn_in: int,
    apart: int,
    start: float = 0.0,
) -> tuple[list[Settling], np.ndarray]:
    """What is said of `REPEATS` sets of SGLD chains from w*, at nβ = 1, of a quadratic loss; and its relaxation times.

    Curvatures are h; losses of tokens are quadratic and linear in random directions, as at a minimum.
    """
    h, noise = np.array(curvatures), np.random.default_rng(units + draws)
    a, w = h + pull, np.full((REPEATS, units, len(curvatures)), start)
    directions = np.random.default_rng(1).normal(size=(TOKENS, len(h))) * np.sqrt(h)
    residuals = 0.3 * np.random.default_rng(2).normal(size=TOKENS)
    phi, square, losses = [], [], []
    for step in range(1, (burn_in + draws) * apart + 1):
        w = w - lr / 2 * a * w + math.sqrt(lr) * noise.normal(size=w.shape)
        if step % apart == 0 and step > burn_in * apart:
            along = w @ directions.T
            phi.append((h * w * w).sum(-1) / 2)
            square.append((w * w).sum(-1))
            losses.append(along**2 / 2 + residuals * along)
    steps = (burn_in + np.arange(1, draws + 1.0)) * apart
    first = draws // 2
    early, late = np.mean(losses[:first], 0), np.mean(losses[first:], 0)
    traces = np.stack(phi, -1), np.stack(square, -1)
    found = [
        settling(traces[0][at], traces[1][at], steps, early[at], late[at], first / draws, 1 / (lr * pull))
        for at in range(REPEATS)
    ]
    return found, 1 / (lr * a)


SIX = (15.0, 21.0, 27.0, 30.0, 39.0, 48.0)
FLAT = (1e-9,) * 20
SETTLED: dict[str, Any] = {
    "after burn-in": {"curvatures": SIX, "lr": 0.01, "pull": 5.0, "draws": 30, "burn_in": 8, "apart": 6},
    "a run so long that the way does not count": {
        "curvatures": SIX, "lr": 0.01, "pull": 5.0, "draws": 60, "burn_in": 0, "apart": 4,
    },
    "one coordinate": {"curvatures": (30.0,), "lr": 0.01, "pull": 5.0, "draws": 40, "burn_in": 4, "apart": 5},
    "held by localization alone": {
        "curvatures": FLAT, "lr": 1e-3, "pull": 100.0, "draws": 30, "burn_in": 10, "apart": 4,
    },
}  # fmt: skip
ON_THE_WAY: dict[str, Any] = {
    "from w*, less than a relaxation time": {"draws": 36, "burn_in": 0, "apart": 1, "pull": 20.0},
    "a tenth of one": {"draws": 36, "burn_in": 0, "apart": 1, "pull": 2.0},
    "a third is missing, half of a relaxation time is seen": {"draws": 36, "burn_in": 36, "apart": 1, "pull": 20.0},
    "half is missing, and more is seen": {"draws": 40, "burn_in": 0, "apart": 2, "pull": 20.0},
    "three draws": {"draws": 3, "burn_in": 0, "apart": 10, "pull": 20.0},
}


@pytest.mark.parametrize("units", [4, 8, 16])
@pytest.mark.parametrize("name", SETTLED)
def test_settled_chains_are_called_so(name: str, units: int) -> None:
    """At least 95 of 100 times; 300 repeats have a standard error of 1.3 %."""
    found, _ = chains(units=units, **SETTLED[name])
    assert np.mean([each.settled for each in found]) > 0.95 - 2 * 0.013


@pytest.mark.parametrize("units", [4, 8, 16])
@pytest.mark.parametrize("name", ON_THE_WAY)
def test_chains_on_their_way_are_not(name: str, units: int) -> None:
    """Of twenty directions whose φ relaxes in 1/(lr·γ) steps: 50, and 500 where γ is 2."""
    found, _ = chains(curvatures=FLAT, lr=1e-3, units=units, **ON_THE_WAY[name])
    assert np.mean([each.settled for each in found]) < 0.02


@pytest.mark.parametrize("units", [4, 8, 16])
@pytest.mark.parametrize("name", ["after burn-in", "one coordinate", "held by localization alone"])
def test_relaxation_of_settled_chains(name: str, units: int) -> None:
    """From correlations, to a factor of 2 of the times of its directions, in 9 of 10 runs."""
    found, times = chains(units=units, **SETTLED[name])
    relaxation = np.array([each.relaxation_steps for each in found])
    inside = (relaxation > times.min() / 2) & (relaxation < 2 * times.max())
    assert inside.mean() > 0.9
    assert times.min() / 1.3 < np.median(relaxation) < 1.3 * times.max()
    assert np.allclose([each.burn_in_steps for each in found if each.settled],
                       [math.log(20) * each.relaxation_steps for each in found if each.settled])  # fmt: skip


@pytest.mark.parametrize("pull", [20.0, 10.0])
def test_relaxation_of_chains_on_their_way(pull: float) -> None:
    """From the bend of the means, though they have not got there: without knowing γ, to a factor of 2 in 9 of 10."""
    time = 1 / (1e-3 * pull)
    steps = np.arange(1.0, 101.0)
    # |w − w*|² of a thousand directions from 8 chains.
    mean = 1000 / pull * -np.expm1(-steps / time)
    noise = np.random.default_rng(0)
    fits = [approach_time(mean + np.sqrt(2 / 8000) * mean * noise.normal(), steps) for _ in range(50)]
    assert np.allclose(fits, time, rtol=0.05)  # an error that all draws share does not bend the mean; the grid has 2 %
    found, _ = chains(curvatures=FLAT, lr=1e-3, pull=pull, units=16, draws=50, burn_in=0, apart=2)
    relaxation = np.array([each.relaxation_steps for each in found])
    assert ((relaxation > time / 2) & (relaxation < 2 * time)).mean() > 0.9


def test_growth_that_does_not_bend_has_no_relaxation() -> None:
    steps = np.arange(1.0, 51.0)
    assert approach_time(steps, steps) == math.inf
    assert approach_time(steps**1.5, steps) == math.inf


def test_correlation_time_of_a_first_order_recursion() -> None:
    """Of x ← r·x + noise it is −1/ln r draws, to the 3 % that 100,000 draws leave; a mean that moves is left out."""
    noise = np.random.default_rng(0)
    for ratio in (0.5, 0.9):
        x = np.zeros((50, 2000))
        x[:, 0] = noise.normal(size=50) / math.sqrt(1 - ratio**2)
        for at in range(1, 2000):
            x[:, at] = ratio * x[:, at - 1] + noise.normal(size=50)
        time = correlation_time(x + np.linspace(0, 100, 2000), np.arange(3, 6003, 3.0))
        assert time == pytest.approx(-3 / math.log(ratio), rel=0.05)


def test_what_is_missing_follows_from_the_drift() -> None:
    """Of m·(1 − exp(−t/τ)) exactly: the draws lack its mean of exp(−t/τ), whatever the burn-in and the length."""
    for burn_in, draws, time in ((0, 40, 10.0), (30, 40, 60.0), (5, 9, 3.0)):
        steps = burn_in + np.arange(1.0, draws + 1)
        curve = 7.0 * -np.expm1(-steps / time)
        window = Window(steps, draws // 2)
        drift = Drift(np.full(4, curve[draws // 2 :].mean() - curve[: draws // 2].mean()), 7.0, window)
        assert drift.missing(time) == pytest.approx(1 - curve.mean() / 7.0)
        assert window.missing(time) == pytest.approx(1 - curve.mean() / 7.0)


def test_losses_that_drift_unsettle_chains_whose_mean_loss_stays() -> None:
    """Half of the tokens rise by what the others fall: φ has nothing of it, and no token alone stands out."""
    noise = np.random.default_rng(0)
    steps, sign = np.arange(1.0, 401.0), np.where(np.arange(2000) % 2, 1.0, -1.0)

    def said(shift: float) -> Settling:
        early, late = (0.1 * sign + noise.normal(size=(8, 2000)) for _ in range(2))
        flat = 1 + noise.normal(size=(8, 400))
        return settling(flat, flat, steps, early, late + shift * sign, 0.5, math.inf)

    assert np.mean([said(0.0).settled for _ in range(100)]) > 0.9
    assert not any(said(0.2).settled for _ in range(50))


def test_the_statistics_say_so_and_warn_once() -> None:
    """Of linear regression with γ = 5 at lr 0.01, whose φ relaxes in 1.7 to 7.3 steps."""
    problem = linear_regression(seed=1, samples=20, width=4)
    model = problem.model()
    options: dict[str, Any] = {"chains": 8, "steps_between_draws": 2, "batch_size": 100, "progress": False}
    settled = pf.sample(problem.posterior(model), pf.SGLD(problem.lr), draws=30, burn_in=12, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [settled.llc(), settled.susceptibilities(), settled.influence(), settled.contributions()]
    for each in found:
        assert each["settled"].values.tolist() == [True]
        assert 1.7 / 2 < float(each["relaxation_steps"][0]) < 2 * 7.3
        assert float(each["burn_in_steps"][0]) == pytest.approx(math.log(20) * float(each["relaxation_steps"][0]))
        assert each["relaxation_steps"].attrs["units"] == each["burn_in_steps"].attrs["units"] == "steps"
    slow = dataclasses.replace(problem, localization=0.5, n_beta=0.5)
    unsettled = pf.sample(slow.posterior(model), pf.SGLD(problem.lr), draws=10, **options)
    for method in (unsettled.llc, unsettled.susceptibilities, unsettled.influence, unsettled.contributions):
        with pytest.warns(pf.UnsettledWarning, match="chains of 'full' had not settled") as caught:
            each = method()
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert each["settled"].values.tolist() == [False]
        burn_in = math.ceil(float(each["burn_in_steps"][0]) / 2)
        assert f"burn_in={burn_in} at steps_between_draws=2, or raise localization" in str(caught[0].message)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_the_first_part_ends_in_the_middle_of_the_draws(engine: Any, tmp_path: Path) -> None:
    """However many draws a kernel is given at a time; a run that goes on keeps its mark unless a new middle comes."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    x = torch.randn(12, 3)
    posterior = pf.LocalPosterior(model, pf.losses.squared_error, (x, x[:, :1]), n_beta=10.0, localization=50.0)
    options: dict[str, Any] = {"chains": 4, "batch_size": 4, "tile": 1, "engine": engine, "progress": False}
    whole = pf.sample(posterior, pf.SGLD(1e-3), draws=41, burn_in=3, **options)
    half = pf.sample(posterior, pf.SGLD(1e-3), draws=20, burn_in=3, **options)
    assert whole.early.count.tolist() == half.totals.count.tolist() == [20.0] * 4 + [0.0]
    assert torch.equal(whole.early.loss_sum, half.totals.loss_sum)
    for draws, marked in ((20, 10), (24, 10), (41, 10), (100, 50)):
        again = pf.sample(posterior, pf.SGLD(1e-3), draws=draws, burn_in=3, checkpoint=tmp_path / engine, **options)
        assert again.early.count[0] == marked
        assert again.totals.count[0] == draws


def test_pairs_are_one_unit_and_lost_chains_are_left_out() -> None:
    sampled = pf.sample(
        language_posterior(), pf.SGLD(1e-3), chains=8, draws=4, antithetic=True, batch_size=4, tile=1, progress=False
    )
    sampled.traces.phi[2:4] = torch.nan
    sampled.traces.diverged[2] = True
    assert math.isfinite(sampled.settlings[0].relaxation_steps)
    sampled.traces.diverged[:] = True
    del sampled.observed, sampled.settlings
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left that could be burned in longer
        assert sampled.llc()["settled"].values.tolist() == [False]


def said(settled: list[bool]) -> xr.Dataset:
    chi = made_up_chi(np.random.default_rng(0).normal(size=(2, 30)), 0.01)
    return chi.assign(settled=("component", settled))


def test_modes_and_plans_refuse_what_had_not_settled() -> None:
    good, bad = said([True, True]), said([True, False])
    name = str(bad["component"].values[1])
    mode = pf.modes(good, centre_data=False)[0]
    assert "unsettled" not in pf.invert(good, mode, strength=0.1).attrs
    with pytest.raises(ValueError, match=f"χ of {name} is from chains that had not settled: sample again with more"):
        pf.modes(bad)
    with pytest.raises(ValueError, match="pass unsettled=True"):
        pf.invert(bad, mode, strength=0.1)
    for attrs in (
        pf.modes(bad, unsettled=True).table.attrs, pf.invert(bad, mode, strength=0.1, unsettled=True).attrs,
    ):  # fmt: skip
        assert (attrs["unsettled"], attrs["unsettled_components"]) == (1, name)
    assert unsettled_attrs(bad.sel(component=[bad["component"].values[0]]), False) == {}
    assert unsettled_attrs(bad.drop_vars("settled"), False) == {}


def test_means_over_documents_keep_what_chains_said() -> None:
    sampled = pf.sample(
        language_posterior(), pf.SGLD(1e-3), components=pf.components(language_model(), "l1h0", "full"), chains=4,
        draws=2, batch_size=4, tile=1, progress=False,
    )  # fmt: skip
    chi = sampled.susceptibilities()
    assert chi["settled"].values.tolist() == [False, False]
    means = pf.aggregate(chi, ["a"] * 6 + ["b"] * 6)
    for name in ("settled", "relaxation_steps", "burn_in_steps"):
        xr.testing.assert_identical(means[name].variable, chi[name].variable)


def grid(verdicts: list[str], relaxation: list[float]) -> xr.Dataset:
    """Of two step sizes by two nβ, in this order."""
    shape, dims = (2, 2, 1, 1), ("lr", "n_beta", "localization", "component")
    times = np.array(relaxation).reshape(shape)
    return xr.Dataset(
        {"verdict": (dims, np.array(verdicts).reshape(shape)), "relaxation_steps": (dims, times),
         "burn_in_steps": (dims, 3 * times)},
        coords={"lr": [1e-4, 1e-3], "n_beta": [10.0, 30.0], "localization": [5.0], "component": ["full"]},
    )  # fmt: skip


def test_what_is_proposed() -> None:
    """Healthy before others, then the largest nβ, then the fastest."""
    found = proposal(grid(["on the way out", "on the way out", "healthy", "diverged"], [100.0, 80.0, 10.4, math.nan]))
    assert found == {
        "proposed_lr": 1e-3, "proposed_n_beta": 10.0, "proposed_localization": 5.0, "proposed_burn_in": 4,
        "proposed_steps_between_draws": 10,
    }  # fmt: skip
    found = proposal(grid(["on the way out", "not mixed", "negative", "on the way out"], [100.0, 80.0, 10.0, math.inf]))
    assert (found["proposed_n_beta"], found["proposed_lr"], found["proposed_burn_in"]) == (30.0, 1e-4, 3)
    assert all(math.isnan(each) for each in proposal(grid(["negative"] * 4, [1.0] * 4)).values())
