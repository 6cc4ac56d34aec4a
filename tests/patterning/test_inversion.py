"""Inversion: against numpy and scipy on random problems, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import xarray as xr

import patterning_fast as pf
from tests.patterning.chi import made_up_chi

COUNT = 60


def random_chi(seed: int = 0, error: float = 1e-6) -> tuple[np.ndarray, xr.Dataset]:
    matrix = np.random.default_rng(seed).standard_normal((4, COUNT))
    return matrix, made_up_chi(matrix, error)


def response(matrix: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return 10.0 / COUNT * (matrix - matrix.mean(1, keepdims=True)) @ (weights - 1)


def test_least_norm_is_the_pseudo_inverse() -> None:
    matrix, chi = random_chi()
    wanted = np.array([0.3, 0.0, -0.2, 0.0])
    plan = pf.invert(chi, {"c0": 0.3, "c2": -0.2}, negative_weights="allow")
    centred = 10.0 / COUNT * (matrix - matrix.mean(1, keepdims=True))
    assert np.allclose(plan.weights.values - 1, np.linalg.pinv(centred) @ wanted)
    assert np.allclose(plan.predicted["dmu"], wanted)
    assert plan.weights.mean() == pytest.approx(1.0)
    assert plan.weights["sample"].values.tolist() == list(range(COUNT))


def test_strength_is_the_rms_change() -> None:
    _, chi = random_chi()
    target = {"c1": -2.0}
    plan = pf.invert(chi, target, strength=0.2, negative_weights="allow")
    assert np.sqrt(np.mean((plan.weights.values - 1) ** 2)) == pytest.approx(0.2)
    whole = pf.invert(chi, target, negative_weights="allow").weights.values - 1
    assert np.corrcoef(plan.weights.values, whole)[0, 1] == pytest.approx(1.0)
    assert np.allclose(plan.scaled(0.5).values - 1, 0.5 * (plan.weights.values - 1))


def test_a_mode_s_weights_follow_its_loadings() -> None:
    _, chi = random_chi()
    mode = pf.modes(chi)[0]
    plus, minus = (pf.invert(chi, each, strength=0.1).weights.values for each in (mode, -mode))
    assert np.corrcoef(plus, mode.data.values)[0, 1] == pytest.approx(1.0)
    assert np.allclose(plus - 1, 1 - minus)


@pytest.mark.parametrize("seed", range(5))
def test_projection_is_the_nearest_that_meets_the_target(seed: int) -> None:
    matrix, chi = random_chi(seed)
    target = {"c0": 5.0, "c3": -4.0}
    plan = pf.invert(chi, target, negative_weights="project")
    assert plan.attrs["share_negative_before_policy"] > 0
    weights = plan.weights.values
    assert weights.min() >= 0
    assert weights.mean() == pytest.approx(1.0)
    assert np.allclose(response(matrix, weights), [5.0, 0, 0, -4.0], atol=1e-6)
    rows = np.vstack([10.0 / COUNT * (matrix - matrix.mean(1, keepdims=True)), np.full(COUNT, 1 / COUNT)])
    solved = scipy.optimize.minimize(
        lambda rho: 0.5 * np.sum((rho - 1) ** 2), np.ones(COUNT), jac=lambda rho: rho - 1, method="SLSQP",
        bounds=[(0, None)] * COUNT, options={"maxiter": 1000, "ftol": 1e-14},
        constraints={"type": "eq", "fun": lambda rho: rows @ rho - [5.0, 0, 0, -4.0, 1.0], "jac": lambda _: rows},
    )  # fmt: skip
    assert solved.success
    assert np.allclose(weights, solved.x, atol=1e-4)


def test_clipping_keeps_weights_non_negative_with_mean_one() -> None:
    _, chi = random_chi()
    weights = pf.invert(chi, {"c0": 9.0}, negative_weights="clip").weights.values
    assert weights.min() == 0
    assert weights.mean() == pytest.approx(1.0)


def test_directions_in_the_noise_are_not_inverted() -> None:
    matrix = np.random.default_rng(1).standard_normal((4, COUNT))
    matrix[2] *= 1e-3
    plan = pf.invert(made_up_chi(matrix, error=0.1), {"c0": 1.0}, strength=0.1)
    assert plan.attrs["rank"] == 3
    with pytest.raises(ValueError, match=r"only .* of the target lies in directions of χ that stand above its noise"):
        pf.invert(made_up_chi(matrix, error=0.1), {"c2": 1.0})


def test_predicted_error_is_the_groups_scatter() -> None:
    _, chi = random_chi(error=0.05)
    plan = pf.invert(chi, {"c0": 1.0}, strength=0.3)
    change = 10.0 / COUNT * (plan.weights.values - 1)
    groups = chi["chi_group"].values @ change
    assert np.allclose(plan.predicted["dmu_error"], groups.std(1, ddof=1) / 2)
    assert 0.2 < float(plan.predicted["dmu_error"].mean()) / (0.05 * np.linalg.norm(change)) < 3


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ({"head": 1.0}, {}, r"unknown components \['head'\]; χ has \['c0', 'c1', 'c2', 'c3'\]"),
        ({"c0": 0.0}, {}, "must be finite and ask for something"),
        ({"c0": float("nan")}, {}, "must be finite and ask for something"),
        ({"c0": 1.0}, {"strength": 0.0}, "strength must be a finite number > 0"),
        ({"c0": 1.0}, {"strength": -1.0}, "reverse a mode with -mode"),
        ({"c0": 1.0}, {"negative_weights": "drop"}, "negative_weights must be one of"),
        ({"c0": 100.0}, {}, r"no non-negative weights of mean 1 (meet|come near) this target"),
    ],
)
def test_bad_targets_are_refused(target: dict[str, float], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pf.invert(random_chi()[1], target, **options)  # type: ignore[arg-type]


def test_modes_need_a_strength_and_their_own_data() -> None:
    _, chi = random_chi()
    mode = pf.modes(chi)[0]
    with pytest.raises(ValueError, match="a mode is only a direction"):
        pf.invert(chi, mode)
    with pytest.raises(ValueError, match="belong to different data"):
        pf.invert(chi.isel(sample=slice(1, None)), mode, strength=0.1)
