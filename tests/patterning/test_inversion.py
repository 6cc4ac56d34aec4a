"""Inversion: against numpy and scipy on random problems, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import torch
import xarray as xr

import patterning_fast as pf
from patterning_fast.patterning import response as response_module
from patterning_fast.patterning.estimates import by_datum
from patterning_fast.patterning.metric import measured
from patterning_fast.patterning.regularization import Regularization, Spectrum, spectrum
from tests.patterning.chi import made_up_chi
from tests.truth.linear_regression import linear_regression

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


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_what_the_gram_matrix_loses(condition: float) -> None:
    # Its eigenvalues are the squares of singular values: relative errors are those of doubles times condition².
    generator = np.random.default_rng(2)
    left, _ = np.linalg.qr(generator.standard_normal((4, 4)))
    ones_and_right, _ = np.linalg.qr(np.column_stack([np.ones(COUNT), generator.standard_normal((COUNT, 4))]))
    matrix = left * np.geomspace(1, 1 / condition, 4) @ ones_and_right[:, 1:].T
    wanted = 1e-3 * left.sum(1)
    target = {f"c{at}": float(each) for at, each in enumerate(wanted)}
    plan = pf.invert(made_up_chi(matrix, error=1e-11), target, negative_weights="allow", regularization="none")
    exact = np.linalg.pinv(10.0 / COUNT * matrix, rcond=1e-9) @ wanted
    apart = np.linalg.norm(plan.weights.values - 1 - exact) / np.linalg.norm(exact)
    assert apart < 20 * np.finfo(np.float64).eps * condition**2
    # Errors are under what float32 rounds off, so rows are in units of their own size.
    scaled = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    assert plan.attrs["condition_number"] == pytest.approx(np.linalg.cond(scaled), rel=1e-3)


def test_strength_is_the_rms_change() -> None:
    _, chi = random_chi()
    target = {"c1": -2.0}
    plan = pf.invert(chi, target, strength=0.2, negative_weights="allow")
    assert np.sqrt(np.mean((plan.weights.values - 1) ** 2)) == pytest.approx(0.2)
    whole = pf.invert(chi, target, negative_weights="allow").weights.values - 1
    assert np.corrcoef(plan.weights.values, whole)[0, 1] == pytest.approx(1.0)
    assert np.allclose(plan.scaled(0.5).values - 1, 0.5 * (plan.weights.values - 1))


@pytest.mark.parametrize("regularization", ["truncated", "wiener"])
@pytest.mark.parametrize("shape", [(4, COUNT), (7, 5), (1, 9)])
def test_regularised_inverses_by_singular_values(regularization: Regularization, shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(9).standard_normal(shape) / np.arange(1, shape[0] + 1)[:, None]
    chi = made_up_chi(matrix, error=0.1)
    plan = pf.invert(chi, {"c0": 0.3}, regularization=regularization, negative_weights="allow")
    found = taken(chi, regularization)
    rank = min(shape[0], shape[1] - 1)
    s, f = found.singular[:rank], found.signal[:rank]
    multiple = {
        "truncated": ((s > found.floor) | (f > 0.5)).astype(float),
        "wiener": np.maximum(1.0, f * s**2 / ((f * s) ** 2 + found.crowding[:rank])),
    }[regularization]
    assert 0 < np.count_nonzero(multiple) == plan.attrs["rank"]
    np.testing.assert_allclose(plan.predicted["inverted"][:rank], multiple, rtol=1e-9)
    # R·change is root·left·multiple·leftᵀ·root⁻¹·wanted, and what is expected of it times the signal.
    responded = 10.0 / shape[1] * (matrix - matrix.mean(1, keepdims=True)) @ (plan.weights.values - 1)
    along = found.left[:, :rank].T @ np.linalg.solve(found.root, 0.3 * np.eye(shape[0])[0])
    np.testing.assert_allclose(responded, found.root @ found.left[:, :rank] @ (multiple * along), atol=1e-6)
    expected = found.root @ found.left[:, :rank] @ (f * multiple * along)
    np.testing.assert_allclose(plan.predicted["dmu"], expected, atol=1e-6)


def taken(chi: xr.Dataset, regularization: Regularization) -> Spectrum:
    """The spectrum that weights for components are made from."""
    estimates = by_datum(chi)
    plain = response_module.response_of(estimates.chi, estimates.counts, 10.0)
    return spectrum(measured(plain, estimates, plain=regularization == "none"), regularization)


def test_blocks_threads_and_storage_change_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chi = made_up_chi(np.random.default_rng(3).standard_normal((3, 701)) + 5.0, error=0.1)
    whole = pf.invert(chi, {"c0": 4.0}, constraints=pf.Constraints(cap=3.0))
    assert whole.attrs["share_zero"] > 0
    monkeypatch.setattr(response_module, "BLOCK", 100)
    before = torch.get_num_threads()
    plans = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        plans.append(pf.invert(chi, {"c0": 4.0}, constraints=pf.Constraints(cap=3.0)))
    torch.set_num_threads(before)
    assert np.array_equal(plans[0].weights, plans[1].weights)
    assert np.allclose(plans[0].weights, whole.weights, rtol=0, atol=1e-8)
    assert np.allclose(plans[0].predicted["dmu_error"], whole.predicted["dmu_error"])
    chi.to_zarr(tmp_path / "chi.zarr", zarr_format=2)
    with xr.open_dataset(tmp_path / "chi.zarr", engine="zarr") as opened:
        from_disk = pf.invert(opened, {"c0": 4.0}, constraints=pf.Constraints(cap=3.0))
    assert np.array_equal(from_disk.weights, plans[0].weights)
    xr.testing.assert_equal(from_disk.predicted, plans[0].predicted)
    single = pf.invert(chi.astype(np.float32), {"c0": 4.0}, constraints=pf.Constraints(cap=3.0))
    assert np.allclose(single.weights, whole.weights, atol=1e-4)


def test_a_mode_s_weights_follow_its_loadings() -> None:
    _, chi = random_chi()
    mode = pf.modes(chi)[0]
    plus, minus = (pf.invert(chi, each, strength=0.1).weights.values for each in (mode, -mode))
    assert np.corrcoef(plus, mode.data.values)[0, 1] == pytest.approx(1.0)
    assert np.allclose(plus - 1, 1 - minus)


def test_a_direction_over_data_is_followed() -> None:
    matrix, chi = random_chi()
    direction = xr.DataArray(np.random.default_rng(1).standard_normal(COUNT), dims="sample")
    plan = pf.invert(chi, direction, strength=0.2)
    centred = direction.values - direction.values.mean()
    assert np.allclose(plan.weights.values - 1, 0.2 * centred / centred.std())
    assert np.allclose(plan.predicted["dmu"], response(matrix, plan.weights.values), rtol=1e-6)
    assert np.isnan(plan.predicted["asked"]).all()
    assert plan.attrs["leakage"] is None
    with pytest.raises(ValueError, match="an array over data is only a direction"):
        pf.invert(chi, direction)
    with pytest.raises(ValueError, match="the target and χ belong to different data"):
        pf.invert(chi, direction[1:], strength=0.1)
    with pytest.raises(ValueError, match="2 values of the target's direction are not finite"):
        pf.invert(chi, direction.where(direction["sample"] > 1), strength=0.1)
    with pytest.raises(ValueError, match="the same for all data"):
        pf.invert(chi, xr.full_like(direction, 0.3), strength=0.1)


def test_a_function_is_made_small() -> None:
    matrix, chi = random_chi()
    # The most that one component can be lowered by weights of that strength: along its own row of the response.
    lowered = pf.invert(chi, lambda dmu: float(dmu.sel(component="c1")), strength=0.2, negative_weights="allow")
    row = 10.0 / COUNT * (matrix[1] - matrix[1].mean())
    assert np.allclose(lowered.weights.values - 1, -0.2 * COUNT**0.5 * row / np.linalg.norm(row), atol=1e-5)
    assert float(lowered.predicted["asked"][1]) == pytest.approx(-0.2 * COUNT**0.5 * float(np.linalg.norm(row)))
    # Far inside what the strength allows, a smooth function's own minimum.
    wanted = np.array([0.1, 0.0, -0.2, 0.05])
    met = pf.invert(chi, lambda dmu: float(((dmu - wanted) ** 2).sum()), strength=1.0, negative_weights="allow")
    assert np.allclose(met.predicted["dmu"], wanted, atol=1e-4)
    with pytest.raises(ValueError, match="a function sets no bound: say how far to go"):
        pf.invert(chi, lambda dmu: float(dmu[0]))
    with pytest.raises(ValueError, match="no change of the weights makes the target's function smaller"):
        pf.invert(chi, lambda dmu: float((dmu**2).sum()), strength=0.1)
    with pytest.raises(ValueError, match="must give a finite number, got nan"):
        pf.invert(chi, lambda dmu: float("nan"), strength=0.1)
    with pytest.raises(TypeError, match=r"target must be a Mode or .*; pass \{component: change\}"):
        pf.invert(chi, "c0", strength=0.1)  # type: ignore[arg-type]


def test_between_solutions_data_simpler_for_the_favoured_gain_weight() -> None:
    generator = np.random.default_rng(4)
    difference, errors = generator.standard_normal(COUNT), generator.uniform(0.1, 1.0, (2, COUNT))

    def solution(values: np.ndarray, error: np.ndarray) -> xr.Dataset:
        variables = {"llc_contribution": ("sample", values), "llc_contribution_error": ("sample", error)}
        return xr.Dataset(variables, coords={"sample": np.arange(COUNT)})

    shared = generator.standard_normal(COUNT)
    simple, other = solution(shared, errors[0]), solution(shared + 10 * difference, errors[1])
    direction = pf.between_solutions(simple, other, "llc_contribution")
    d, noise = 10 * (difference - difference.mean()), (errors**2).sum(0)
    spread = d.var() - noise.mean()
    assert np.allclose(direction, d * spread / (spread + noise))
    _, chi = random_chi()
    assert np.corrcoef(pf.invert(chi, direction, strength=0.1).weights, direction)[0, 1] == pytest.approx(1.0)
    with pytest.raises(pf.InfeasibleTargetError, match="run more chains or draws of both"):
        pf.between_solutions(simple, solution(shared + 0.1 * difference, errors[1]), "llc_contribution")
    with pytest.raises(ValueError, match="the two solutions belong to different data"):
        pf.between_solutions(simple, other.isel(sample=slice(1, None)), "llc_contribution")
    with pytest.raises(ValueError, match=r"\['llc', 'llc_error'\] are missing"):
        pf.between_solutions(simple, other, "llc")


def test_between_solutions_takes_contributions_as_they_are() -> None:
    """Two solutions of the same data: the direction is that of the full component, or of the one named."""

    def contributions(seed: int) -> xr.Dataset:
        problem = linear_regression(seed, samples=20, width=3)  # far apart: not even their data are the same
        model = problem.model()
        mask = torch.tensor([[False, True, True]])
        return pf.sample(
            problem.posterior(model), pf.SGLD(1e-2),
            components={"some": pf.component(model, "some", {"weight": mask})} | pf.components(model, "full"),
            chains=64, draws=60, burn_in=10, steps_between_draws=4, batch_size=100, progress=False,
        ).contributions()  # fmt: skip

    favoured, other = contributions(1), contributions(2)
    for component in ("full", "some"):
        one, two = (each.sel(component=component, drop=True) for each in (favoured, other))
        expected = pf.between_solutions(one, two)
        assert dict(expected.sizes) == {"sample": 20}
        xr.testing.assert_identical(pf.between_solutions(favoured, other, component=component), expected)
    xr.testing.assert_identical(
        pf.between_solutions(favoured, other), pf.between_solutions(favoured, other, "contribution", "full")
    )
    with pytest.raises(ValueError, match=r"no estimates of component 'l0h0'; the datasets have \['some', 'full'\]"):
        pf.between_solutions(favoured, other, component="l0h0")


def test_a_plan_reports_what_it_will_do() -> None:
    _, chi = random_chi(error=0.02)
    plan = pf.invert(chi, {"c0": 6.0, "c1": -3.0}, constraints=pf.Constraints(cap=2.5))
    weights, predicted, attrs = plan.weights.values, plan.predicted, plan.attrs
    assert attrs["strength"] == pytest.approx(np.sqrt(np.mean((weights - 1) ** 2)))
    assert attrs["effective_sample_size"] == pytest.approx(COUNT**2 / np.sum(weights**2))
    assert attrs["share_zero"] == np.mean(weights == 0) > 0
    assert attrs["share_capped"] == np.mean(weights == 2.5) > 0
    assert attrs["kl_to_base"] == pytest.approx(np.mean(weights * np.log(np.maximum(weights, 1e-300))))
    assert np.isnan(predicted["leakage"][:2]).all()
    assert np.array_equal(predicted["leakage"][2:], predicted["dmu"][2:])
    assert attrs["leakage"] == pytest.approx(float(np.linalg.norm(predicted["dmu"][2:])))
    assert attrs["leakage_error"] == pytest.approx(float(np.linalg.norm(predicted["dmu_error"][2:])))
    singular = predicted["singular_value"].values
    assert attrs["rank"] == 4
    assert attrs["condition_number"] == pytest.approx(singular[0] / singular[3])
    assert pf.invert(chi, {"c0": 9.0}, negative_weights="allow").attrs["kl_to_base"] is None


def test_the_verified_range_is_unknown_until_it_has_been_verified() -> None:
    plan = pf.invert(random_chi()[1], {"c0": 1.0}, strength=0.2)
    assert plan.attrs["verified_strength"] is None
    assert plan.within_verified is None
    assert plan.verified(0.3).within_verified is True
    assert plan.verified(0.1).within_verified is False
    assert plan.attrs["verified_strength"] is None
    with pytest.raises(ValueError, match="strength must be a finite number"):
        plan.verified(float("nan"))


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
    chi = made_up_chi(matrix, error=0.1)
    assert pf.invert(chi, {"c0": 1.0}, strength=0.1, regularization="truncated").attrs["rank"] == 3
    with pytest.raises(ValueError, match=r"only .* of the target .* met: 3 of 4 directions of χ stand above"):
        pf.invert(chi, {"c2": 1.0})


def test_a_component_that_no_data_move_is_refused() -> None:
    """χ the same on all data: nothing is divided by its response of 0."""
    chi = made_up_chi(np.full((1, 6), 2.0), error=0.1)
    with pytest.raises(pf.InfeasibleTargetError, match="only 0% of the target can be expected to be met: 0 of 1"):
        pf.invert(chi, {"c0": 1.0}, strength=0.1)


def test_predicted_error_is_the_groups_scatter_and_that_of_the_square_of_noise() -> None:
    _, chi = random_chi(error=0.05)
    for target in ({"c0": 1.0}, xr.DataArray(np.arange(COUNT), dims="sample")):  # in the metric that has seen no noise
        plan = pf.invert(chi, target, strength=0.3, regularization="none")
        change = 10.0 / COUNT * (plan.weights.values - 1)
        error = (chi["chi_group"].values @ change).std(1, ddof=1) / 2
        square = chi["chi"].values @ change - plan.predicted["dmu"].values
        assert (abs(square).max() > 1e-6) == plan.attrs["made_from_chi"] == isinstance(target, dict)
        found = taken(chi, "none")
        taken_off = (1 - found.signal) * (found.left.T @ np.linalg.solve(found.root, chi["chi"].values @ change))
        known = np.sqrt((found.root @ found.left) ** 2 @ taken_off**2 / found.noise_directions)
        known = known if plan.attrs["made_from_chi"] else 0.0
        assert np.allclose(plan.predicted["dmu_error"], np.hypot(error, known))
    plan = pf.invert(chi, {"c0": 1.0}, strength=0.3)
    change = 10.0 / COUNT * (plan.weights.values - 1)
    assert 0.2 < float(plan.predicted["dmu_error"].mean()) / (0.05 * np.linalg.norm(change)) < 3


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ({"head": 1.0}, {}, r"unknown components \['head'\]; χ has \['c0', 'c1', 'c2', 'c3'\]"),
        ({"c0": 0.0}, {}, "must be finite and ask for something"),
        ({"c0": float("nan")}, {}, r"target\['c0'\] must be a finite number"),
        ({"c0": 1.0}, {"strength": 0.0}, "strength must be a finite number > 0"),
        ({"c0": 1.0}, {"strength": -1.0}, "reverse a mode with -mode"),
        ({"c0": 1.0}, {"negative_weights": "drop"}, "negative_weights must be one of"),
        ({"c0": 1.0}, {"regularization": "ridge"}, "regularization must be one of"),
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


def test_chi_with_missing_values_is_refused_with_how_to_mend_it() -> None:
    _, chi = random_chi()
    broken = chi.copy(deep=True)
    broken["chi"][1, 3] = np.nan
    broken["chi_error"][2, 5] = np.inf
    with pytest.raises(ValueError, match=r"χ of \['c1', 'c2'\] is missing \(NaN\) for 2 of 60 samples"):
        pf.invert(broken, {"c0": 0.1})
    whole = np.isfinite(broken["chi"].values + broken["chi_error"].values).all(0)
    mended = broken.isel(sample=whole)
    assert pf.invert(mended, {"c0": 0.1}).weights.size == COUNT - 2
    broken["chi"][3] = np.nan
    with pytest.raises(ValueError, match=r"χ of \['c3'\] is missing for all data .* chi.sel\(component=...\)"):
        pf.invert(broken, {"c0": 0.1})
    with pytest.raises(ValueError, match=r"\['chi_group'\] are missing"):
        pf.invert(chi.drop_vars("chi_group"), {"c0": 0.1})


def test_groups_that_lost_their_chains_are_left_out() -> None:
    _, chi = random_chi(error=0.05)
    chi["chi_group"][0, 1] = np.nan
    plan = pf.invert(chi, xr.DataArray(np.arange(COUNT), dims="sample"), strength=0.3)
    groups = chi["chi_group"].values[0, [0, 2, 3]] @ (10.0 / COUNT * (plan.weights.values - 1))
    assert float(plan.predicted["dmu_error"][0]) == pytest.approx(groups.std(ddof=1) / 3**0.5)
