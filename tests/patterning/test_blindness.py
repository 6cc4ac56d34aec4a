"""A plan says where the χ that it is made from is geometry of a Gaussian ball, with hardly a loss in it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr

import patterning_fast as pf
from tests.patterning.noisy_chi import noisy_chi, planted


def chi(blind: list[float], error: list[float]) -> xr.Dataset:
    """χ of three components that says so."""
    known = noisy_chi(planted([60.0, 40.0, 25.0], 3, 200, np.random.default_rng(0)), 0.1, np.random.default_rng(1))
    return known.assign(blind=("component", blind), blind_error=("component", error)).assign_attrs(n_beta=10.0)


def plan(of: xr.Dataset) -> pf.Plan:
    return pf.invert(of, pf.modes(of)[0], strength=0.1)


def test_a_plan_from_blind_chi_says_so() -> None:
    blind = chi([0.95, 0.3, 1.02], [0.1, 0.1, 0.2])
    names = [str(blind["component"].values[at]) for at in (0, 2)]
    with pytest.warns(
        UserWarning, match=rf"χ of \['{names[0]}', '{names[1]}'\] is geometry .*0\.95.* raise n_beta"
    ) as told:
        found = plan(blind)
    assert found.attrs["blind"] == names
    assert told[0].filename == __file__


@pytest.mark.parametrize(
    ("blind", "error"),
    [(0.85, 0.01), (0.95, 0.3), (np.nan, np.nan), (-3.0, 0.1), (2.1, 0.2)],
    ids=["the loss has a part", "not known", "no estimate", "no minimum", "steps too long"],
)
def test_what_is_not_blind_is_not_called_so(blind: float, error: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plan(chi([blind] * 3, [error] * 3)).attrs["blind"] == []


def test_chi_that_does_not_say() -> None:
    known = chi([1.0] * 3, [0.1] * 3)
    for silent in (known.drop_vars("blind"), known.drop_vars("blind_error")):
        assert plan(silent).attrs["blind"] == []
