"""`calibrate`: a grid of settings in one bank, and what it says of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import patterning_fast as pf
from patterning_fast.report import figures
from tests.models import language_model, language_posterior
from tests.truth.linear_regression import linear_regression

GRID: dict[str, Any] = {"lr": [1e-4, 1e-3], "n_beta": [1.0, 30.0], "localization": [10.0, 300.0]}


def test_a_setting_s_chains_are_those_of_sample_alone() -> None:
    sampling: dict[str, Any] = {
        "components": pf.components(language_model(), "l1h0", "full"), "chains": 2, "draws": 3, "batch_size": 4,
        "tile": 1, "progress": False,
    }  # fmt: skip
    grid = pf.calibrate(language_posterior(), pf.SGLD(1.0), **GRID, **sampling)
    assert dict(grid.sizes) == {"lr": 2, "n_beta": 2, "localization": 2, "component": 2}
    for lr, n_beta, localization in ((1e-4, 30.0, 10.0), (1e-3, 1.0, 300.0)):
        posterior = language_posterior(n_beta=n_beta, localization=localization)
        alone = pf.sample(posterior, pf.SGLD(lr), **sampling).llc()
        here = grid.sel(lr=lr, n_beta=n_beta, localization=localization)
        assert here["llc"].values.tolist() == alone["llc"].values.tolist()
        assert here["llc_error"].values.tolist() == alone["llc_error"].values.tolist()


def test_verdicts() -> None:
    """On a quadratic the largest curvature sets the step size that diverges; few draws from w* are on the way."""
    problem = linear_regression(seed=1, samples=20, width=4)
    posterior = problem.posterior(problem.model())
    stiffest = float(torch.linalg.eigvalsh(problem.x.T @ problem.x / 20).max())
    unstable = 4.5 / (problem.n_beta * stiffest + problem.localization)
    sampling: dict[str, Any] = {"chains": 4, "batch_size": 400, "progress": False}
    grid = pf.calibrate(posterior, pf.SGLD(1.0), lr=[unstable * 1e-4, unstable * 0.2, unstable], draws=200, **sampling)
    verdicts = grid["verdict"].sel(component="full").values[:, 0, 0].tolist()
    assert verdicts == ["on the way out", "healthy", "diverged"]
    assert grid["diverged"].values.ravel().tolist() == [0.0, 0.0, 1.0]
    assert grid["settled"].values.ravel().tolist() == [False, True, False]
    assert grid.attrs["proposed_lr"] == unstable * 0.2
    # φ relaxes in 1/(lr·a) steps, a from the localization to the stiffest: 0.2 of 4.5 over the latter is the lr.
    fastest, slowest = 1 / (0.2 * 4.5), 1 / (0.2 * unstable * problem.localization)
    assert fastest / 2 < float(grid["relaxation_steps"].values.ravel()[1]) < 2 * slowest
    assert np.isnan(grid["llc"].values.ravel()[2])
    assert len(figures.png(figures.calibration(grid))) > 10_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": []}, "lr must be a list of finite numbers > 0, not empty"),
        ({"lr": [0.0]}, r"lr\[0\] must be a finite number > 0"),
        ({"n_beta": [-1.0]}, r"n_beta\[0\] must be a finite number >= 0"),
        ({"n_beta": [0.0], "localization": [0.0]}, "both 0 at a setting"),
    ],
)
def test_bad_grids_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pf.calibrate(language_posterior(), pf.SGLD(1.0), **GRID | changes)
