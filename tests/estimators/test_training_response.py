"""The response of training: what was put in is found, with errors that hold, and plans made of it are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import patterning_fast as pf

UNITS, COUNTS = ["a", "b", "c", "d"], np.array([10, 20, 30, 40])
CHI = np.array([3.0, -1.0, 2.0, -1.75])
"""Of mean 0 over the data."""


def runs(seed: int, count: int, noise: float, spread: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[runs, units]` and a linear outcome, which scatters the more the larger the first weight is."""
    generator = np.random.default_rng(seed)
    weights = np.exp(spread * generator.standard_normal((count, len(UNITS))))
    rho = weights / (weights @ COUNTS / COUNTS.sum())[:, None]
    outcome = 5.0 + (rho - 1) @ (CHI * COUNTS / COUNTS.sum())
    return weights, outcome + noise * rho[:, 0] ** 2 * generator.standard_normal(count)


def test_a_linear_response_is_found_whatever_the_scale_of_weights() -> None:
    weights, outcome = runs(0, 30, 0.0)
    scale = np.random.default_rng(1).uniform(0.5, 2.0, (30, 1))
    found = pf.training_response({"o": outcome, "minus": -outcome}, scale * weights, UNITS, COUNTS, name="kind")
    assert found["kind"].values.tolist() == UNITS
    assert found["count"].values.tolist() == COUNTS.tolist()
    # Least squares in double on 30 rows of condition number 10.
    assert np.allclose(found["chi"], np.stack([CHI, -CHI]), atol=1e-10)
    assert np.allclose(found["chi_group"].mean("group"), found["chi"], atol=1e-10)


def test_errors_cover_though_runs_scatter_unequally() -> None:
    inside = []
    for seed in range(200):
        weights, outcome = runs(seed, 60, 0.4)
        found = pf.training_response({"o": outcome}, weights, UNITS, COUNTS)
        inside.append(abs(found["chi"][0] - CHI) < 1.96 * found["chi_error"][0])
    # 200 repeats of four intervals of 95 %, which go together: a binomial error of 1.5 % for one of them, at 3 of them;
    # errors of 60 runs are themselves known to 10 %, and White's are too small by some per cent there.
    assert 0.89 < np.mean(inside) < 0.985
    assert np.mean(inside, 0).min() > 0.87


def test_errors_know_of_the_degrees_of_freedom_that_the_fit_takes() -> None:
    """Of 14 runs and 5 numbers fitted, residuals are √(9/14) of the noise; here of one size for all runs."""
    weights, plain = runs(0, 14, 0.0)
    generator = np.random.default_rng(1)
    found, errors = [], []
    for _ in range(400):
        response = pf.training_response({"o": plain + generator.standard_normal(14)}, weights, UNITS, COUNTS)
        found.append(response["chi"].values[0])
        errors.append(response["chi_error"].values[0])
    # 400 repeats know a variance to 7 %; the fit's leverages, which White's errors do not undo, differ by unit.
    ratio = np.mean(np.square(errors), 0).sum() / np.var(found, 0, ddof=1).sum()
    assert 0.8 < ratio < 1.2


def test_a_regression_answers_as_its_derivative_says_and_a_plan_is_kept() -> None:
    """Least squares on weighted data is where training ends: dw/dρ_j = −H⁻¹x_j r_j/n."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(8, generator=generator, dtype=torch.float64)

    def ended(weights: np.ndarray) -> np.ndarray:
        rho = torch.from_numpy(weights)
        found = torch.linalg.solve(x.T @ (rho[:, None] * x), x.T @ (rho * y))
        return found.numpy()

    spread = 0.01
    weights = np.exp(spread * np.random.default_rng(0).standard_normal((200, 8)))
    ends = np.stack([ended(row) for row in weights])
    response = pf.training_response({"w0": ends[:, 0], "w1": ends[:, 1]}, weights, list("abcdefgh"), np.ones(8))
    at = torch.from_numpy(ended(np.ones(8)))
    slopes = torch.linalg.solve(x.T @ x / 8, (x * (y - x @ at)[:, None]).T)  # [outcomes, data], mean 0 at the solution
    # What is left out is of the second order in the spread, 0.01 of the first.
    assert np.allclose(response["chi"], slopes, atol=0.03 * float(slopes.abs().max()))
    plan = pf.invert(response, {"w0": 1.0}, strength=0.02)
    moved = ended(plan.weights.values) - ended(np.ones(8))
    assert np.allclose(moved, plan.predicted["dmu"], atol=0.05 * abs(moved[0]))
    assert moved[0] > 0
    assert abs(moved[1]) < 0.05 * moved[0]


GOOD: dict[str, Any] = {
    "outcomes": {"o": np.arange(20.0)},
    "weights": np.random.default_rng(0).uniform(0.5, 2, (20, 4)),
    "units": UNITS,
    "counts": COUNTS,
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"weights": GOOD["weights"][:, :3]}, r"weights must be \[runs, 4\]"),
        ({"counts": [1, 2, 3]}, "as many positive counts"),
        ({"outcomes": {"o": np.arange(19.0)}}, r"each outcome must be \[20\]"),
        ({"outcomes": {}}, "outcomes must be .* not empty"),
        ({"outcomes": {"o": np.full(20, np.nan)}}, "o: not finite"),
        ({"weights": GOOD["weights"][:12], "outcomes": {"o": np.arange(12.0)}}, "need at least 13 runs, got 12"),
        ({"weights": -GOOD["weights"]}, "positive means"),
        ({"weights": np.ones((20, 4))}, "vary in 0 directions, of 3"),
    ],
)
def test_what_cannot_work_is_said(changed: dict[str, Any], said: str) -> None:
    pf.training_response(**GOOD)
    with pytest.raises(ValueError, match=said):
        pf.training_response(**GOOD | changed)
