"""Every sampler through `pf.sample`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import xarray as xr
from torch import Tensor

import patterning_fast as pf
from patterning_fast.samplers.langevin import Sampler
from tests.models import language_model, language_posterior
from tests.samplers.banks import SAMPLERS
from tests.truth.linear_regression import linear_regression


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_a_run_is_reproducible_and_names_its_sampler(sampler: Sampler) -> None:
    def chi() -> xr.Dataset:
        statistics = pf.sample(
            language_posterior(), sampler, components=pf.attention_heads(language_model()), chains=4, draws=3,
            batch_size=4, antithetic=True, tile=1, progress=False,
        )  # fmt: skip
        return statistics.susceptibilities()

    result = chi()
    xr.testing.assert_identical(result["chi"], chi()["chi"])
    assert result.attrs["sampler"] == repr(sampler)
    assert float(abs(result["chi"]).min()) > 0


LAWS: list[tuple[Sampler, Callable[[Tensor], Tensor]]] = [
    (pf.SGHMC(0.005, friction=0.3), lambda a: 1 / (a * (1 - 0.005 * a / (2 * (2 - 0.3))))),
    (pf.SGNHT(0.05, diffusion=3.0), lambda a: (1 - 3.0 * 0.05 / 2) / a),
]


@pytest.mark.parametrize(("sampler", "variance"), LAWS, ids=["sghmc", "sgnht"])
def test_learning_coefficients_meet_their_closed_form(sampler: Sampler, variance: Callable[[Tensor], Tensor]) -> None:
    """λ = ½·n_beta·tr(HΣ), Σ the sampler's stationary covariance in the directions of H."""
    problem = linear_regression(seed=1, samples=20, width=4)
    statistics = pf.sample(
        problem.posterior(problem.model()), sampler, chains=16, draws=25, burn_in=10, steps_between_draws=5,
        batch_size=200, progress=False,
    )  # fmt: skip
    _, hessian, _ = problem.curvature([0, 1, 2, 3])
    h = torch.linalg.eigvalsh(hessian)
    exact = 0.5 * problem.n_beta * float((h * variance(problem.n_beta * h + problem.localization)).sum())
    llc = statistics.llc().sel(component="full")
    # t with 15 degrees of freedom passes 5 once in 6,000; minibatches of 200 samples add under 1 %.
    assert abs(float(llc["llc"]) - exact) < 5 * float(llc["llc_error"])
    assert float(llc["llc_error"]) < 0.07 * exact


def test_corrected_minibatch_noise_leaves_the_posterior_s_width() -> None:
    """Minibatches of 2 widen plain SGLD's posterior; corrected chains have the learning coefficient of full batches."""
    problem = linear_regression(seed=1, samples=20, width=4)
    sampling: dict[str, Any] = {
        "chains": 32, "draws": 20, "burn_in": 10, "steps_between_draws": 4, "batch_size": 2, "progress": False,
    }  # fmt: skip
    posterior = problem.posterior(problem.model())
    exact = problem.llc([0, 1, 2, 3])
    corrected = pf.sample(posterior, pf.SGLD(problem.lr, gradient_noise_correction=True), **sampling)
    own = corrected.llc().sel(component="full")
    # t with 15 degrees of freedom passes 5 once in 6,000; what is left is the noise between coordinates.
    assert abs(float(own["llc"]) - exact) < 5 * float(own["llc_error"]) + 0.03 * exact
    plain = pf.sample(posterior, pf.SGLD(problem.lr), **sampling).llc().sel(component="full")
    assert float(plain["llc"]) > float(own["llc"]) + 5 * float(own["llc_error"])
