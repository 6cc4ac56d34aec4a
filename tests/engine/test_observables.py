"""Observables of the user's own: their closed forms on linear regression, and that they change nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import patterning_fast as pf
from tests.models import language_posterior, tokens
from tests.truth.linear_regression import linear_regression

SAMPLING: dict[str, Any] = {"chains": 6, "draws": 4, "batch_size": 4, "tile": 1, "progress": False}
SGLD = pf.SGLD(1e-3)


def norm(model: nn.Module) -> Tensor:
    return next(model.parameters()).square().sum()


class Interrupted(Exception):
    pass


class InterruptedNorm:
    """`norm`, which is interrupted at some call."""

    def __init__(self, call: int | None = None) -> None:
        self._left = call

    def __call__(self, model: nn.Module) -> Tensor:
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                raise Interrupted
        return norm(model)


def test_a_linear_observable_of_regression() -> None:
    """O = a·(w − w*): E[O] = 0 and χ_O(z_j) = −Cov[O, l_j − L] = −r_j·aᵀΣx_j, as L has no slope at w*."""
    problem = linear_regression(seed=5, samples=12, width=3)
    model = problem.model()
    solution, along = model.weight.detach().clone(), torch.tensor([1.0, -2.0, 0.5])

    def shift(model: nn.Module) -> Tensor:
        return (next(model.parameters()) - solution)[0] @ along + 7.0

    statistics = pf.sample(
        problem.posterior(model), pf.SGLD(problem.lr), observables={"shift": shift}, chains=64, draws=24, burn_in=10,
        steps_between_draws=4, batch_size=200, progress=False,
    )  # fmt: skip
    assert statistics.attrs["engine"].startswith("torch: observables (shift)")
    x, _, sigma = problem.curvature([0, 1, 2])
    residual = (problem.x @ solution.T - problem.y).double().flatten()
    exact = -residual * (x @ sigma @ along.double())
    chi = statistics.susceptibilities("shift").isel(component=0)
    z = (chi["chi"].values - exact.numpy()) / chi["chi_error"].values
    assert np.abs(z).max() < 5  # of 12, as Student's t of 16 groups
    assert chi["chi_error"].mean() < 0.2 * float(exact.abs().mean())
    mean = statistics.observed_means().isel(component=0)
    assert abs(float(mean["shift"]) - 7.0) < 4 * float(mean["shift_error"]) < 0.2
    assert mean["shift"].attrs["at_center"] == 7.0
    influence = statistics.influence("shift").isel(component=0)
    # −Cov[O, l] is χ but for Cov[O, L], which is 0.
    np.testing.assert_allclose(influence["influence"], exact, atol=5 * float(influence["influence_error"].max()))
    spread = statistics.diagnostics().isel(component=0)
    assert float(spread["observable_r_hat"].sel(observable="shift")) < 1.1


def test_phi_and_the_kernel_stay_what_they_are() -> None:
    """The user's observables stand between φ and the losses; all else keeps its bits."""
    posterior = language_posterior()
    options = SAMPLING | {"components": pf.components(posterior.model, "heads", "full"), "loss_kernel": True}
    without = pf.sample(posterior, SGLD, **options)
    watched = pf.sample(posterior, SGLD, observables={"norm": norm, "phi again": mean_loss}, **options)
    for method in ("llc", "susceptibilities", "influence", "loss_kernel"):
        expected, found = getattr(without, method)(), getattr(watched, method)()
        for name in expected:
            np.testing.assert_array_equal(found[name].values, expected[name].values, err_msg=name)
    again = watched.susceptibilities("phi again")
    for name in ("chi", "chi_drift", "chi_two_chain"):
        expected = without.susceptibilities()[name].values
        # φ itself, by another way: float32 rounding of a loss of 2.4 against fluctuations of 0.01.
        np.testing.assert_allclose(again[name], expected, atol=1e-3 * np.abs(expected).max())


def mean_loss(model: nn.Module) -> Tensor:
    return pf.losses.next_token(model, tokens()).mean()


def test_a_plan_of_an_observable_is_verified_on_it(tmp_path: Path) -> None:
    posterior = language_posterior(n_beta=100.0)
    observables = {"norm": norm}
    options = SAMPLING | {"observables": observables, "chains": 8, "traces": tmp_path / "t.zarr"}
    chi = pf.sample(posterior, SGLD, **options).susceptibilities("norm")
    direction = chi["chi"].isel(component=0, drop=True)
    plan = pf.invert(chi, direction, strength=0.1, unsettled=True)
    assert plan.attrs["observable"] == "norm"
    del options["traces"]
    checked = pf.verify(plan, posterior, SGLD, fractions=[1.0], **options)
    before = pf.sample(posterior, SGLD, **options).observed_means()["norm"]
    after = pf.sample(posterior.reweighted(plan.weights), SGLD, **options).observed_means()["norm"]
    np.testing.assert_allclose(checked["realised"][0], after - before, atol=1e-5)
    with pytest.raises(ValueError, match="'norm' was not observed, but phi"):
        pf.verify(plan, posterior, SGLD, fractions=[1.0], **SAMPLING)
    with pytest.raises(ValueError, match="traces hold phi, and the plan is of 'norm'"):
        pf.importance_check(plan, tmp_path / "t.zarr")


def test_an_interrupted_run_resumes(tmp_path: Path) -> None:
    posterior, options = language_posterior(), SAMPLING | {"observables": {"norm": InterruptedNorm()}}
    expected = pf.sample(posterior, SGLD, **options).susceptibilities("norm")
    options |= {"checkpoint": tmp_path, "checkpoint_seconds": 0}
    with pytest.raises(Interrupted):
        pf.sample(posterior, SGLD, **options | {"observables": {"norm": InterruptedNorm(1 + 2 * 6 + 3)}})
    found = pf.sample(posterior, SGLD, **options)
    np.testing.assert_array_equal(found.susceptibilities("norm")["chi"], expected["chi"])
    assert bool(found.diagnostics()["observables"].notnull().all())
    with pytest.raises(ValueError, match=r"observables\.norm"):
        pf.sample(posterior, SGLD, **options | {"observables": {"norm": mean_loss}})


def test_an_observable_that_breaks_stops_its_chain_alone() -> None:
    posterior, calls = language_posterior(), []

    def breaks(model: nn.Module) -> Tensor:
        calls.append(1)
        return torch.tensor(float("nan") if len(calls) == 3 else 1.0)  # a constant, whose R̂ is not known

    with torch.no_grad():
        statistics = pf.sample(posterior, SGLD, observables={"breaks": breaks}, engine="torch", **SAMPLING)
    assert int(statistics.diagnostics()["diverged"].sum()) == 1
    assert bool(statistics.susceptibilities()["chi"].notnull().all())


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda model: 1.0, TypeError, "must return a tensor of one number, got float"),
        (lambda model: torch.ones(2), TypeError, r"must return a tensor of one number, got \[2\]"),
        (lambda model: torch.tensor(float("inf")), ValueError, "is inf at w"),
    ],
)
def test_what_is_no_observable(function: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pf.sample(language_posterior(), SGLD, observables={"bad": function}, **SAMPLING)
    with pytest.raises(ValueError, match="'phi' is the name of"):
        pf.sample(language_posterior(), SGLD, observables={"phi": function}, **SAMPLING)
