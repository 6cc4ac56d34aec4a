"""Covariances against responses: where chains have settled they agree, and on their way out from w* they do not."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr
from torch import nn

import patterning_fast as pf
from patterning_fast.estimators.regression import Regression, regression
from patterning_fast.patterning.fluctuation_dissipation import verdict
from patterning_fast.report import figures
from tests.models import language_posterior
from tests.truth.linear_regression import LinearRegression, linear_regression

QUICK: dict[str, Any] = {"chains": 4, "draws": 3, "batch_size": 4, "tile": 2, "progress": False}
FEW: dict[str, Any] = {"chains": 4, "draws": 2, "burn_in": 1, "steps_between_draws": 2, "tile": 2}


@pytest.mark.parametrize(("first", "second", "noise"), [(12, 8, 0.5), (16, 16, 1.0)])
def test_a_regression_freed_of_noise(first: int, second: int, noise: float) -> None:
    """Of 200 pairs of estimates of slope 1.3 and correlation .8, noisy by group, 95 % intervals hold 90 to 99 %.

    Noise is that much of the signal in the mean of all groups: at 1 a plain slope would be half of the true one.
    """
    rng, found = np.random.default_rng(0), []
    truth = rng.standard_normal((2, 400))
    truth -= truth.mean(1, keepdims=True)
    truth[1] -= truth[0] * (truth[0] @ truth[1]) / (truth[0] @ truth[0])
    x, other = (each / each.std() for each in truth)
    y = 1.3 * (x + 0.75 * other)  # correlation 1/√(1 + .75²) = .8
    for _ in range(200):
        groups = [
            each
            + noise * each.std() * number**0.5 * rng.standard_normal((number, 400))
            + rng.standard_normal((number, 1))
            for each, number in ((y, first), (x, second))
        ]
        found.append(regression(*groups))
    values = np.array(found)
    bound = scipy.stats.t.ppf(0.975, min(first, second) - 1)
    for estimate, error, exact in ((0, 1, 1.3), (2, 3, 0.8)):
        inside = np.abs(values[:, estimate] - exact) < bound * values[:, error]
        assert 0.9 <= inside.mean() <= 0.995
        # A ratio is biased by the square of its denominator's relative error, as large as that of the estimate here.
        relative = values[:, estimate].std() / exact
        assert abs(values[:, estimate].mean() - exact) < exact * (4 * relative / 200**0.5 + 2 * relative**2)


def test_noise_alone_has_no_slope() -> None:
    rng = np.random.default_rng(1)
    found = [regression(rng.standard_normal((8, 50)), rng.standard_normal((8, 50))) for _ in range(50)]
    assert {verdict(each, 8, 0.25) for each in found} == {"too noisy to tell"}
    assert np.isnan(regression(rng.standard_normal((3, 50)), rng.standard_normal((8, 50)))).all()


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Regression(1.1, 0.1, 0.95, 0.1), "agree"),
        (Regression(1.1, 0.1, 1.4, 0.2), "agree"),  # by its error above 1
        (Regression(2.5, 0.2, 1.0, 0.1), "disagree"),
        (Regression(0.2, 0.1, 0.9, 0.1), "disagree"),
        (Regression(1.0, 0.1, 0.3, 0.1), "disagree"),
        (Regression(40.0, 3.0, np.nan, np.nan), "disagree"),
        (Regression(1.4, 0.2, 1.0, 0.1), "too noisy to tell"),
        (Regression(1.0, 0.4, 1.0, 0.1), "too noisy to tell"),
        (Regression(1.0, 0.1, 0.9, 0.3), "too noisy to tell"),
        (Regression(np.nan, np.nan, np.nan, np.nan), "too noisy to tell"),
    ],
)
def test_verdicts(found: Regression, expected: str) -> None:
    assert verdict(found, 8, 0.25) == expected


def compared(problem: LinearRegression, **sampling: Any) -> xr.Dataset:
    common: dict[str, Any] = {"chains": 64, "batch_size": 200, "progress": False}
    response = {"chains": 48, "draws": 12, "burn_in": 4, "steps_between_draws": 4, "tile": 48}
    model = nn.Sequential(problem.model())
    return pf.fluctuation_dissipation(
        problem.posterior(model), pf.SGLD(problem.lr), response=response, **common | sampling
    )


def test_linear_regression() -> None:
    """The slope is that of the two closed forms, 1 + K by curvature, within 4 errors; and the correlation."""
    problem, all_six = linear_regression(0), [0, 1, 2, 3, 4, 5]
    found = compared(problem, draws=60, burn_in=8, steps_between_draws=8).isel(component=0)
    by_covariance, by_response = problem.susceptibility(all_six), problem.susceptibility_by_response(all_six)
    y, x = by_covariance - by_covariance.mean(), by_response - by_response.mean()
    slope, correlation = float(x @ y / (x @ x)), float(x @ y / (x.norm() * y.norm()))
    assert 1.1 < slope < 1.4
    assert abs(float(found["slope"]) - slope) < 4 * float(found["slope_error"])
    assert abs(float(found["correlation"]) - correlation) < 4 * float(found["correlation_error"])
    assert float(found["slope_error"]) < 0.2
    assert float(found["correlation_error"]) < 0.1
    assert float(found["covariance_reliability"]) > 0.8
    assert float(found["response_reliability"]) > 0.8
    assert float(found["r_hat"]) < 1.1
    assert float(found["blind"]) < 0.3


def test_chains_on_their_way_disagree() -> None:
    """Free chains answer by half of their covariance, which grows as the square of time."""
    free = replace(linear_regression(1), n_beta=0.5, localization=0.05)
    found = compared(free, draws=200).isel(component=0)
    assert found["verdict"].item() == "disagree"
    assert float(found["slope"]) > 2


def test_a_language_model_and_its_picture(tmp_path: Path) -> None:
    """Twice from a checkpoint: the second time nothing is left to do, and the same comes out."""
    posterior = language_posterior(n_beta=100.0)
    heads = {name: pf.attention_heads(posterior.model)[name] for name in ("l1h0",)}

    def found() -> xr.Dataset:
        return pf.fluctuation_dissipation(
            posterior, pf.SGLD(2e-3), components=heads, chains=16, draws=16, burn_in=6, steps_between_draws=4,
            batch_size=12, tile=16, progress=False, tolerance=0.5, checkpoint=tmp_path / "saved",
            response={"chains": 8, "draws": 8, "burn_in": 4, "tile": 8},
        )  # fmt: skip

    result = found()
    assert result["verdict"].values.tolist() == ["agree"]
    assert (result["correlation"] > 0.9).all()
    assert result["covariance"].shape == result["response"].shape == (1, 12 * 8)
    assert {"probe", "sample", "position"} <= set(result.coords)
    xr.testing.assert_equal(found().drop_attrs(), result.drop_attrs())
    figure = figures.fluctuation_dissipation(result)
    assert figures.png(figure).startswith(b"\x89PNG")
    assert [each.get_title(loc="left").split(":")[0] for each in figure.axes] == ["l1h0"]


def test_both_are_of_the_same_phi(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of samples of L is chosen by the seed, which is another for the responses."""
    module = "patterning_fast.patterning.fluctuation_dissipation"
    taken: list[dict[str, Any]] = []
    both: dict[str, Any] = {"sample": pf.sample, "linear_response": pf.linear_response}
    for name, function in both.items():

        @functools.wraps(function)
        def noting(*given: Any, function: Any = function, **named: Any) -> Any:
            taken.append(named)
            return function(*given, **named)

        monkeypatch.setattr(f"{module}.{name}", noting)
    pf.fluctuation_dissipation(language_posterior(), pf.SGLD(1e-3), loss_samples=5, seed=3, response=FEW, **QUICK)
    response, covariance = taken
    assert torch.equal(response["loss_samples"], covariance["loss_samples"])
    assert len(covariance["loss_samples"]) == 5
    assert (response["seed"], covariance["seed"]) == (4, 3)
    assert response["batch_size"] == covariance["batch_size"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"response": {"seed": 1}}, r"response must leave seed out, got \['seed'\]; pass what both share beside it"),
        ({"response": {"chain": 8}}, "fluctuation_dissipation: response: .* did you mean chains="),
        ({"response": {"chains": 2}}, r"response\['chains'\] must be at least 4, .* got 2"),
        ({"chains": 2}, "chains must be at least 4, .* got 2"),
        ({"response": 3}, "response must be a mapping"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        pf.fluctuation_dissipation(language_posterior(), pf.SGLD(1e-3), **{"progress": False} | arguments)
