"""`sample` until χ is known: as much as is wanted, to the bit the run that it is, and its budget told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import patterning_fast as pf
from tests.models import language_posterior
from tests.truth.linear_regression import linear_regression

SAMPLER = pf.SGLD(1e-2)
SAMPLING: dict[str, Any] = {
    "chains": 16, "draws": 8, "burn_in": 4, "steps_between_draws": 8, "batch_size": 8, "progress": False,
}  # fmt: skip
FEW: dict[str, Any] = {"chains": 4, "draws": 4, "burn_in": 6, "steps_between_draws": 2}


def posterior() -> pf.LocalPosterior:
    problem = linear_regression(seed=1, samples=20, width=4)
    return problem.posterior(nn.Sequential(problem.model()))


def rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.mark.parametrize(("engine", "reliability", "few"), [("native", 0.97, {}), ("torch", 0.8, FEW)])
def test_it_goes_on_until_it_is_known(engine: Any, reliability: float, few: dict[str, Any]) -> None:
    """And is then the run of that many draws, to the bit."""
    options = SAMPLING | few
    known = pf.sample(posterior(), SAMPLER, reliability=reliability, engine=engine, tile=1, **options)
    assert known.attrs["stopped"] == "reached"
    draws = known.attrs["draws"]
    assert draws > options["draws"]
    chi = known.susceptibilities()
    assert float(chi["chi_reliability"][0]) >= reliability
    plain = pf.sample(posterior(), SAMPLER, engine=engine, tile=1, **options | {"draws": draws})
    np.testing.assert_array_equal(chi["chi_group"], plain.susceptibilities()["chi_group"])
    np.testing.assert_array_equal(known.traces.phi, plain.traces.phi)


def test_errors_of_named_components() -> None:
    first = pf.sample(posterior(), SAMPLER, **SAMPLING).susceptibilities()
    wanted = 0.5 * rms(first["chi_error"].sel(component="full"))
    known = pf.sample(posterior(), SAMPLER, error={"full": wanted}, **SAMPLING)
    assert rms(known.susceptibilities()["chi_error"].sel(component="full")) <= wanted
    assert 16 < known.attrs["draws"] < 200
    assert "stopped" not in pf.sample(posterior(), SAMPLER, **SAMPLING).attrs


@pytest.mark.parametrize("budget", [{"max_draws": 20}, {"max_seconds": 1e-6}])
def test_a_budget_that_is_spent_is_told(budget: dict[str, Any], tmp_path: Path) -> None:
    """And a call with more goes on from there, to the bit."""
    (name,) = budget
    options = SAMPLING | {"checkpoint": tmp_path, "reliability": 0.9999}
    with pytest.warns(UserWarning, match=rf"{name} was spent before.*full has reliability 0\.\d\d of 0\.9999 after"):
        few = pf.sample(posterior(), SAMPLER, **budget, **options)
    assert few.attrs["stopped"] == name
    assert few.attrs["draws"] == (20 if name == "max_draws" else 8)
    with pytest.warns(UserWarning, match="max_draws was spent"):
        more = pf.sample(posterior(), SAMPLER, max_draws=60, **options)
    assert more.attrs["draws"] == 60
    plain = pf.sample(posterior(), SAMPLER, **SAMPLING | {"draws": 60})
    np.testing.assert_array_equal(more.susceptibilities()["chi_group"], plain.susceptibilities()["chi_group"])


def test_what_cannot_work_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reliability needs 4 independent groups"):
        pf.sample(posterior(), SAMPLER, reliability=0.9, **SAMPLING | {"chains": 3})
    with pytest.raises(ValueError, match="error names unknown components"):
        pf.sample(language_posterior(), SAMPLER, error={"l0h0": 1.0}, **SAMPLING)
    with pytest.raises(ValueError, match="leave out traces"):
        pf.sample(posterior(), SAMPLER, reliability=0.9, traces=tmp_path / "traces", **SAMPLING)
