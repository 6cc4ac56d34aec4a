"""Chains move under weights as χ says: on linear regression in closed form, on superposition and a small LM."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.stats
import torch
from torch import nn

import patterning_fast as pf
from patterning_fast.models.superposition import TiedAutoencoder
from tests.models import language_posterior
from tests.truth.linear_regression import linear_regression

REPEATS = 50
SAMPLING: dict[str, Any] = {
    "chains": 32, "draws": 20, "burn_in": 8, "steps_between_draws": 8, "batch_size": 200, "progress": False,
}  # fmt: skip


def test_error_bars_of_regression_cover() -> None:
    """Over 50 repeats: 95 % intervals of predicted and realised hold what closed forms say of each."""
    problem = linear_regression(seed=2, samples=20, width=3)
    posterior = problem.posterior(nn.Sequential(problem.model()))
    direction = problem.susceptibility([0, 1, 2])
    sampler, predicted_z, realised_z = pf.SGLD(problem.lr), [], []
    for repeat in range(REPEATS):
        chi = pf.sample(posterior, sampler, seed=2 * repeat, **SAMPLING).susceptibilities()
        plan = pf.invert(chi, {"full": 1.0}, strength=0.3)
        checked = pf.verify(plan, posterior, sampler, fractions=[1.0], seed=2 * repeat + 1, **SAMPLING)
        full = checked.isel(strength=0, component=0)
        rho = torch.from_numpy(plan.weights.values)
        linear = problem.n_beta / 20 * float(direction @ (rho - 1))
        exact = problem.realised_response(rho, [0, 1, 2])
        predicted_z.append((float(full["predicted"]) - linear) / float(full["predicted_error"]))
        realised_z.append((float(full["realised"]) - exact) / float(full["realised_error"]))
        assert abs(exact) > 5 * float(full["realised_error"])
    for z in (predicted_z, realised_z):
        inside = np.abs(z) < scipy.stats.t.ppf(0.975, 15)
        # 43 of 50 and fewer have a chance of 1 % at 95 %.
        assert inside.sum() > 43
        assert abs(np.mean(z)) < 0.6  # 4 standard errors of a mean of 50


def test_superposition_moves_as_predicted() -> None:
    torch.manual_seed(0)
    model, x = TiedAutoencoder(5), torch.rand(30, 5) * (torch.rand(30, 5) < 0.4)
    pf.train(model, (x, x), pf.losses.squared_error, steps=1500, batch_size=30, lr=1e-2, progress=False)
    posterior = pf.LocalPosterior(model, pf.losses.squared_error, (x, x), n_beta=60.0, localization=60.0)
    sampler, sampling = pf.SGLD(2e-3), SAMPLING | {"steps_between_draws": 20, "chains": 64}
    statistics = pf.sample(posterior, sampler, **sampling)
    assert statistics.attrs["engine"] == "native"
    plan = pf.invert(statistics.susceptibilities(), {"full": -1.0}, strength=0.2)
    checked = pf.verify(plan, posterior, sampler, seed=1, **sampling)
    assert float(abs(checked["z"][0]).max()) < 5
    assert checked["verdict"].values[0] == "kept"
    assert float(checked["realised"].sel(component="full")[-1]) < 0


def test_a_small_language_model_moves_as_predicted() -> None:
    posterior = language_posterior(n_beta=100.0)
    sampling: dict[str, Any] = {"chains": 16, "draws": 12, "burn_in": 4, "steps_between_draws": 4, "progress": False}
    sampler = pf.SGLD(2e-3)
    chi = pf.linear_response(posterior, sampler, chains=16, progress=False)
    plan = pf.invert(chi, {"full": 1.0}, strength=0.2, regularization="none")
    checked = pf.verify(plan, posterior, sampler, fractions=[0.5, 1.0], seed=1, **sampling)
    assert checked["verdict"].values.tolist() == ["kept", "kept"]
    assert float(abs(checked["z"]).max()) < 5
    assert float(checked["realised"][-1, 0]) > 3 * float(checked["realised_error"][-1, 0])
