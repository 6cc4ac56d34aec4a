"""`intervals`: by hand on a dataset of few numbers. Their coverage is tested in `tests/truth`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import patterning_fast as pf
from patterning_fast.estimators.labelled import labelled

GROUPS = torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 8.0]], dtype=torch.float64)


def estimates() -> xr.Dataset:
    found = [
        (torch.arange(3), GROUPS[0]),
        (torch.tensor([0, 2]), GROUPS[1, :2]),
        (torch.arange(0), torch.empty(0, dtype=torch.float64)),
    ]
    return labelled("llc", ["a", "b", "c"], found, 3, (), {}, "learning coefficient", "1")


def test_an_interval_is_the_quantile_of_t_times_the_error() -> None:
    """4.3027 and 12.706 are the 97.5 % quantiles of Student's t with 2 and 1 degrees of freedom, from tables."""
    found = estimates()
    ends = pf.intervals(found, "llc")
    assert found["degrees_of_freedom"].values.tolist() == [2, 1, 0]
    half = 4.3027 * GROUPS[0].std() / 3**0.5
    assert ends["upper"].values[0] == pytest.approx(float(3 + half), rel=1e-4)
    assert ends["lower"].values[0] == pytest.approx(float(3 - half), rel=1e-4)
    assert ends["upper"].values[1] == ends["lower"].values[1] == 5.0
    assert np.isnan(ends["lower"].values[2])
    assert ends["upper"].attrs["units"] == "1"
    assert float(pf.intervals(found, "llc", 0.5)["upper"][0]) < float(ends["upper"][0])
    wider = pf.intervals(found.assign(llc_bias_error=("component", [0.5, np.nan, 0.1])), "llc")
    assert (wider["upper"] - ends["upper"]).values[:2] == pytest.approx([0.5, 0.0])
    assert (ends["lower"] - wider["lower"]).values[:2] == pytest.approx([0.5, 0.0])


def test_a_name_without_an_error_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"an interval of 'chi' needs \['chi', 'chi_error'\], which the estimates lack"
    ):
        pf.intervals(estimates())
