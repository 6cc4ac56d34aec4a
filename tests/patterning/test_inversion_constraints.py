"""Constrained weights: every constraint holds on any problem, and the weights are the nearest that there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import patterning_fast as pf
from tests.patterning.chi import made_up_chi

COUNT = 40
N_BETA = 10.0


def problem(seed: int, components: int = 3, count: int = COUNT) -> tuple[np.ndarray, np.ndarray]:
    """χ and the response of components to weights `[components, data]`."""
    matrix = np.random.default_rng(seed).standard_normal((components, count))
    return matrix, N_BETA / count * (matrix - matrix.mean(1, keepdims=True))


def nearest(
    objective: Callable[[np.ndarray], float],
    gradient: Callable[[np.ndarray], np.ndarray],
    rows: np.ndarray,
    goal: np.ndarray,
    bounds: tuple[float, float | None],
    start: np.ndarray,
) -> np.ndarray:
    """What scipy finds."""
    solved = scipy.optimize.minimize(
        objective, start, jac=gradient, method="SLSQP", bounds=[bounds] * len(start),
        constraints={"type": "eq", "fun": lambda rho: rows @ rho - goal, "jac": lambda _: rows},
        options={"maxiter": 2000, "ftol": 1e-15},
    )  # fmt: skip
    assert solved.success, solved.message
    return np.asarray(solved.x)


def with_mean(response: np.ndarray, target: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Constraints on the response to ρ and on its mean."""
    count = response.shape[1]
    return np.vstack([response, np.full(count, 1 / count)]), np.array([*target, 1.0])


@pytest.mark.parametrize("seed", range(3))
def test_capped_weights_are_the_nearest(seed: int) -> None:
    matrix, response = problem(seed)
    target = [2.5, 0.0, -2.0]
    plan = pf.invert(made_up_chi(matrix), {"c0": 2.5, "c2": -2.0}, constraints=pf.Constraints(cap=1.6))
    assert plan.attrs["share_capped"] > 0
    assert plan.attrs["share_zero"] > 0
    rows, goal = with_mean(response, target)
    solved = nearest(
        lambda rho: 0.5 * float(np.sum((rho - 1) ** 2)), lambda rho: rho - 1, rows, goal, (0, 1.6), np.ones(COUNT)
    )
    assert np.allclose(plan.weights, solved, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_tilted_weights_are_the_nearest_in_kl(seed: int) -> None:
    matrix, response = problem(seed)
    plan = pf.invert(made_up_chi(matrix), {"c0": 2.0, "c2": -1.5}, constraints=pf.Constraints(kl=1.0))
    weights = plan.weights.values
    rows, goal = with_mean(response, [2.0, 0.0, -1.5])
    solved = nearest(
        lambda rho: float(np.sum(rho * np.log(rho))), lambda rho: np.log(rho) + 1, rows, goal, (1e-12, None), weights
    )
    assert np.allclose(weights, solved, atol=1e-5)
    assert plan.attrs["kl_to_base"] == pytest.approx(np.mean(weights * np.log(weights)))
    # An exponential of a combination of χ, which is what the nearest in KL is.
    basis = np.vstack([matrix, np.ones(COUNT)]).T
    fitted, *_ = np.linalg.lstsq(basis, np.log(weights), rcond=None)
    assert np.allclose(basis @ fitted, np.log(weights), atol=1e-6)


def test_divergence_from_the_base_mixture_is_bounded() -> None:
    chi = made_up_chi(problem(1)[0])
    needed = pf.invert(chi, {"c0": 2.0}, constraints=pf.Constraints(kl=5.0)).attrs["kl_to_base"]
    assert pf.invert(chi, {"c0": 2.0}, constraints=pf.Constraints(kl=1.001 * needed)).attrs["kl_to_base"] == needed
    limits = pf.Constraints(kl=0.99 * needed)
    with pytest.raises(pf.InfeasibleTargetError, match="loosen the constraints") as info:
        pf.invert(chi, {"c0": 2.0}, constraints=limits)
    proposed = pf.invert(chi, info.value.nearest, constraints=limits)
    assert 0.9 * needed < proposed.attrs["kl_to_base"] <= 0.99 * needed


def test_few_weights_are_refitted_to_the_target() -> None:
    matrix, response = problem(5)
    free = pf.invert(made_up_chi(matrix), {"c1": 0.5}, negative_weights="allow").weights.values - 1
    limits = pf.Constraints(reweighted=0.25)
    change = pf.invert(made_up_chi(matrix), {"c1": 0.5}, negative_weights="allow", constraints=limits).weights - 1
    chosen = np.sort(np.argsort(-np.abs(free))[:10])
    assert np.array_equal(np.flatnonzero(change), chosen)
    rows, goal = with_mean(response, [0.0, 0.5, 0.0])
    goal[-1] = 0.0
    assert np.allclose(change[chosen], np.linalg.pinv(rows[:, chosen]) @ goal, atol=1e-6)


def planned_or_proposed(chi: xr.Dataset, options: dict[str, Any]) -> pf.Plan | None:
    """The plan, or the one that its refusal proposes, which must be possible; None where nothing is."""
    try:
        return pf.invert(chi, {"c0": 1.0}, **options)
    except pf.InfeasibleTargetError as error:
        refused = error
    assert options["negative_weights"] == "project" or options["constraints"] is not None
    if refused.strength is None:
        return None
    assert refused.strength < options["strength"]
    plan = pf.invert(chi, {"c0": 1.0}, **options | {"strength": refused.strength})
    assert plan.predicted["asked"].values.tolist() == pytest.approx(list(refused.nearest.values()))
    return plan


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    components=st.integers(1, 6),
    strength=st.floats(0.05, 2.0),
    policy=st.sampled_from(["allow", "clip", "project"]),
    cap=st.none() | st.floats(1.1, 5.0),
    kl=st.none() | st.floats(0.01, 1.0),
    reweighted=st.none() | st.floats(0.3, 1.0),
    unit=st.sampled_from([None, "document"]),
)
def test_constraints_hold(
    seed: int, components: int, strength: float, policy: str, cap: float | None, kl: float | None,
    reweighted: float | None, unit: str | None,
) -> None:  # fmt: skip
    matrix, response = problem(seed, components)
    documents = np.random.default_rng(seed).integers(0, 20, COUNT)
    chi = made_up_chi(matrix).assign_coords(document=("sample", documents))
    limits = None if policy == "clip" else pf.Constraints(cap, reweighted, None if policy == "allow" else kl)
    options = {"strength": strength, "negative_weights": policy, "constraints": limits, "unit": unit}
    plan = planned_or_proposed(chi, options)
    if plan is None:
        return
    weights = plan.weights.values
    assert weights.mean() == pytest.approx(1.0, abs=1e-7)
    assert np.isfinite(weights).all()
    if policy != "allow":
        assert weights.min() >= 0
        assert plan.attrs["kl_to_base"] is not None
    if policy != "clip":
        asked = np.zeros(components)
        asked[0] = float(plan.predicted["asked"][0])
        assert np.allclose(response @ (weights - 1), asked, atol=1e-6 * max(1.0, abs(asked[0])))
    if limits is not None:
        assert weights.max() <= (limits.cap or np.inf) * (1 + 1e-12)
        assert np.mean(weights != 1) <= (limits.reweighted or 1.0) * (1 + 1e-9)
        assert limits.kl is None or np.mean(weights * np.log(np.maximum(weights, 1e-300))) <= limits.kl * (1 + 1e-9)
    if unit is not None:
        for document in np.unique(documents):
            assert len(np.unique(weights[documents == document])) == 1
    assert plan.attrs["effective_sample_size"] == pytest.approx(weights.sum() ** 2 / np.sum(weights**2))


@pytest.mark.parametrize("seed", range(6))
def test_a_target_is_refused_only_if_no_weights_meet_it(seed: int) -> None:
    # scipy's linear programme says how much of the target the non-negative weights of mean 1 can meet.
    matrix, response = problem(seed)
    target = np.array([1.0, 0.0, -0.5])
    rows, _ = with_mean(response, [0.0] * 3)
    solved = scipy.optimize.linprog(
        np.append(np.zeros(COUNT), -1.0), A_eq=np.hstack([rows, -np.append(target, 0.0)[:, None]]),
        b_eq=[0, 0, 0, 1.0], bounds=[(0, None)] * (COUNT + 1),
    )  # fmt: skip
    most = float(-solved.fun)
    asked = {"c0": 1.0, "c2": -0.5}
    met = pf.invert(made_up_chi(matrix), {name: 0.97 * most * each for name, each in asked.items()})
    assert np.allclose(response @ (met.weights.values - 1), 0.97 * most * target, atol=1e-5)
    with pytest.raises(
        pf.InfeasibleTargetError, match=r"of it can be met: lower it to strength=.* or \{'c0': "
    ) as info:
        pf.invert(made_up_chi(matrix), {name: 1.03 * most * each for name, each in asked.items()})
    assert 0.7 * most < info.value.nearest["c0"] <= most


def test_a_unit_s_weights_are_those_of_its_means() -> None:
    generator = np.random.default_rng(3)
    means, sizes = generator.standard_normal((3, 12)), generator.integers(1, 6, 12)
    documents = generator.permutation(np.repeat(np.arange(12), sizes))
    matrix = means[:, documents] + generator.standard_normal((3, len(documents)))
    chi = made_up_chi(matrix).assign_coords(document=("sample", documents))
    target = {"c0": 0.2, "c1": -0.1}
    plan = pf.invert(chi, target, negative_weights="allow", unit="document")
    member = documents == np.arange(12)[:, None]
    rows, _ = with_mean(N_BETA / len(documents) * (matrix - matrix.mean(1, keepdims=True)), [0.0] * 3)
    # Least Σ_tokens (ρ − 1)², with ρ − 1 = memberᵀ·change: in change·√size the norm is plain.
    grouped = rows @ member.T / np.sqrt(sizes)
    solved = np.linalg.pinv(grouped) @ np.array([0.2, -0.1, 0.0, 0.0]) / np.sqrt(sizes)
    assert np.allclose(plan.weights.values - 1, solved[documents], atol=1e-8)
    assert plan.weights["document"].values.tolist() == documents.tolist()
    assert plan.attrs["unit"] == "document"
    with pytest.raises(
        ValueError, match=r"unit 'domain' is no coordinate .* \['document', 'probe', 'sample'\]; add it"
    ):
        pf.invert(chi, target, unit="domain")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cap": 1.0}, "cap must be a finite number > 1"),
        ({"cap": float("nan")}, "cap must be a finite number > 1"),
        ({"reweighted": 0.0}, "reweighted must be a finite number"),
        ({"reweighted": 1.1}, "reweighted must be a finite number"),
        ({"kl": 0.0}, "kl must be a finite number > 0"),
    ],
)
def test_bad_constraints_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pf.Constraints(**options)


def test_constraints_and_policies_must_agree() -> None:
    chi = made_up_chi(problem(0)[0])
    with pytest.raises(ValueError, match="clipped weights keep to no constraints"):
        pf.invert(chi, {"c0": 1.0}, negative_weights="clip", constraints=pf.Constraints(cap=2.0))
    with pytest.raises(ValueError, match="weights near in KL are not negative"):
        pf.invert(chi, {"c0": 1.0}, negative_weights="allow", constraints=pf.Constraints(kl=0.1))
    with pytest.raises(ValueError, match="not a single unit of it"):
        pf.invert(chi, {"c0": 1.0}, constraints=pf.Constraints(reweighted=0.01))
    with pytest.raises(pf.InfeasibleTargetError, match=r"within Constraints\(.*kl=0.01\) .* loosen the constraints"):
        pf.invert(chi, {"c0": 4.0}, constraints=pf.Constraints(kl=0.01))
