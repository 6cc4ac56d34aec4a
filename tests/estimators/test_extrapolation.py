"""`extrapolate`: by hand, and on linear regression, where the bias of every step size is known."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import patterning_fast as pf
from patterning_fast.estimators.labelled import labelled
from tests.truth.linear_regression import linear_regression


def estimates(lr: float, groups: list[float], **attrs: Any) -> xr.Dataset:
    alive = torch.tensor(groups, dtype=torch.float64).isfinite().nonzero().squeeze(1)
    found = [(alive, torch.tensor(groups, dtype=torch.float64)[alive])]
    made = labelled("llc", ["full"], found, len(groups), (), {}, "learning coefficient", "1")
    return made.assign_attrs({"lr": lr, "n_beta": 2.0} | attrs)


def test_a_polynomial_is_continued_exactly_group_by_group() -> None:
    """Groups that go as c + 3·lr − 5·lr² end at c, and their errors are those of c; a group lost once is left out."""
    truth, sizes = [1.0, 4.0, 2.0, 7.0], [0.4, 0.1, 0.2]
    runs = [estimates(lr, [c + 3 * lr - 5 * lr**2 for c in truth]) for lr in sizes]
    found = pf.extrapolate(runs, "llc")
    # Values by group are float32, and weights below 3 in size.
    assert found["llc_group"].values[0] == pytest.approx(truth, abs=1e-5)
    assert float(found["llc"][0]) == pytest.approx(np.mean(truth), abs=1e-5)
    assert float(found["llc_error"][0]) == pytest.approx(np.std(truth, ddof=1) / 2, abs=1e-5)
    assert found["degrees_of_freedom"].values.tolist() == [3]
    assert found.attrs["lr"] == sizes
    runs[1] = estimates(0.1, [1.25, 4.25, np.nan, 7.25])
    assert pf.extrapolate(runs, "llc")["degrees_of_freedom"].values.tolist() == [2]
    two = pf.extrapolate([estimates(lr, [c + 3 * lr for c in truth]) for lr in (0.2, 0.1)], "llc")
    assert float(two["llc"][0]) == pytest.approx(np.mean(truth), abs=1e-5)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (estimates(0.1, [1.0, 2.0]), r"step sizes must be distinct, got \[0.1, 0.1\]"),
        (estimates(0.2, [1.0, 2.0], n_beta=3.0), r"estimates\[1\] differs from the first in n_beta"),
        (estimates(0.2, [1.0, 2.0, 3.0]), r"estimates\[1\] differs from the first in its components, data or groups"),
        (estimates(0.2, [1.0, 2.0])[["llc"]], r"estimates\[1\] lacks \['llc_group'\]"),
    ],
)
def test_what_does_not_go_together_is_refused(second: xr.Dataset, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pf.extrapolate([estimates(0.1, [1.0, 2.0]), second], "llc")


def test_linear_regression_at_no_step_size() -> None:
    """Two step sizes: the closed forms at lr → 0, which either alone misses by many errors."""
    problem = linear_regression(seed=1, samples=20, width=3)
    posterior = problem.posterior(torch.nn.Sequential(problem.model()))
    runs = [
        pf.sample(
            posterior, pf.SGLD(lr), chains=1024, draws=60, burn_in=20 * times, steps_between_draws=2 * times,
            batch_size=400, engine="native", progress=False,
        )
        for lr, times in ((0.016, 1), (0.008, 2))
    ]  # fmt: skip
    at = {lr: dataclasses.replace(problem, lr=lr) for lr in (0.0, 0.008, 0.016)}
    for name, alone, halved, truths in (
        ("llc", runs[0].llc(), runs[1].llc(), {lr: np.array([each.llc([0, 1, 2])]) for lr, each in at.items()}),
        (
            "chi",
            runs[0].susceptibilities(),
            runs[1].susceptibilities(),
            {lr: each.susceptibility([0, 1, 2]).numpy()[None] for lr, each in at.items()},
        ),
    ):
        found = pf.extrapolate([alone, halved], name)
        expected = 2 * truths[0.008] - truths[0.016]
        # t with 15 degrees of freedom passes 6 once in 40,000.
        assert float((abs(found[name] - expected) / found[f"{name}_error"]).max()) < 6
        assert float((abs(alone[name] - truths[0.0]) / alone[f"{name}_error"]).max()) > 15
        # Second order, and noise, are left of a bias of 15 % (λ̂) and 35 % (χ).
        left = np.square(found[name] - truths[0.0]).sum() ** 0.5
        assert float(left) < 0.4 * float(np.square(alone[name] - truths[0.0]).sum() ** 0.5)
