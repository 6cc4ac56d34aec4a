"""Inversion of χ with noise: what regularisation gains, what is predicted, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import xarray as xr

import patterning_fast as pf
from patterning_fast.patterning.estimates import by_datum
from patterning_fast.patterning.regularization import Regularization
from patterning_fast.patterning.response import response_of
from tests.patterning.chi import made_up_chi
from tests.patterning.noisy_chi import noisy_chi, planted

COMPONENTS, DATA, N_BETA = 12, 1200, 10.0


def noisy(
    truth: np.ndarray, error: float, generator: np.random.Generator, directions: int, groups: int = 8
) -> xr.Dataset:
    """χ with Gaussian noise of that standard error, which lies in that many directions of the data."""
    count = truth.shape[1]
    noise = groups**0.5 * error * generator.standard_normal((len(truth), groups, directions))
    if directions < count:
        noise = noise @ generator.standard_normal((directions, count)) / directions**0.5
    chi = made_up_chi(truth + noise.mean(1), error, groups, N_BETA)
    return chi.assign(
        chi_group=(("component", "group", "sample"), (truth[:, None] + noise).astype(np.float32)),
        chi_error=(("component", "sample"), noise.std(1, ddof=1) / groups**0.5),
    )


def decaying(generator: np.random.Generator) -> np.ndarray:
    """A known χ whose modes fall off as 1/k."""
    left, _ = np.linalg.qr(generator.standard_normal((COMPONENTS, COMPONENTS)))
    return left / np.arange(1, COMPONENTS + 1) @ generator.standard_normal((COMPONENTS, DATA))


def realised(truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return N_BETA / truth.shape[1] * (truth - truth.mean(1, keepdims=True)) @ (weights - 1)


@pytest.mark.parametrize("directions", [1, 7, 100])
def test_directions_that_noise_lies_in_are_counted(directions: int) -> None:
    generator = np.random.default_rng(directions)
    chi = noisy(np.zeros((40, DATA)), 1.0, generator, directions)
    # (d·d')²/(|d|²|d'|²) of 40 components, 6 pairs each, scatters by √2 of its mean: 9 % here. Directions are random
    # vectors, whose own lengths and angles take off a share of directions/data.
    expected = directions / (1 + directions / DATA)
    assert by_datum(chi).noise_directions == pytest.approx(expected, rel=0.3)
    three = chi.isel(group=slice(3))
    assert by_datum(three).noise_directions == DATA


@pytest.mark.parametrize("directions", [DATA, 200])
def test_the_regularised_inverse_beats_the_bare_one(directions: int) -> None:
    missed: dict[Regularization, list[float]] = {"wiener": [], "none": []}
    for seed in range(25):
        generator = np.random.default_rng(seed)
        truth = decaying(generator)
        chi = noisy(truth, 0.15, generator, directions)
        try:
            for regularization, each in missed.items():
                plan = pf.invert(chi, {"c3": 1.0}, negative_weights="allow", regularization=regularization)
                each.append(float(np.linalg.norm(realised(truth, plan.weights.values) - np.eye(COMPONENTS)[3])))
        except pf.InfeasibleTargetError:
            continue
    gain = np.array(missed["none"]) - np.array(missed["wiener"])
    assert len(gain) > 12
    assert gain.mean() > 4 * gain.std(ddof=1) / len(gain) ** 0.5
    assert np.mean(missed["wiener"]) < 0.75 * np.mean(missed["none"])


@pytest.mark.parametrize("regularization", ["wiener", "none"])
@pytest.mark.parametrize("directions", [DATA, 200])
def test_what_is_predicted_is_what_noise_lets_through(directions: int, regularization: Regularization) -> None:
    z, promised = [], []
    for seed in range(15):
        generator = np.random.default_rng(seed)
        truth = decaying(generator)
        chi = noisy(truth, 0.1, generator, directions)
        plan = pf.invert(chi, {"c0": 1.0}, strength=0.3, negative_weights="allow", regularization=regularization)
        happened, error = realised(truth, plan.weights.values), plan.predicted["dmu_error"]
        z.append((happened - plan.predicted["dmu"]) / error)
        promised.append((happened - realised(chi["chi"].values, plan.weights.values)) / error)
    # Student's t with the 7 degrees of freedom of 8 groups has a root mean square of 1.18. χ·change, with the noise
    # that the change was made from, promises several errors more than what happens.
    assert 0.9 < np.sqrt(np.mean(np.square(z))) < 1.5
    assert np.sqrt(np.mean(np.square(promised))) > 3


def first_mode(chi: xr.Dataset) -> pf.Mode:
    """The first of `modes(chi, centre_data=False)`, without the bootstrap of its errors."""
    values = chi["chi"].values - chi["chi"].values.mean(1, keepdims=True)
    _, singular, right = np.linalg.svd(values / values.std(1, keepdims=True), full_matrices=False)
    loadings = xr.DataArray(right[0], dims="sample", coords={"sample": chi["sample"]})
    return pf.Mode(xr.DataArray(np.ones(len(values)), dims="component"), loadings, float(singular[0]), 0.0, True)


def target_of(kind: str, chi: xr.Dataset, truth: np.ndarray, generator: np.random.Generator) -> Any:
    """A target of that kind; those from elsewhere lie partly along the truth, and know nothing of the noise of χ."""

    def contributions(values: np.ndarray) -> xr.Dataset:
        seen = values + 0.5 * generator.standard_normal(len(values))
        return xr.Dataset({"contribution": ("sample", seen), "contribution_error": ("sample", np.full(len(seen), 0.5))})

    row = truth[0] / truth[0].std()
    if kind == "components":
        return {"c0": 1.0}
    if kind == "mode":
        return first_mode(chi)
    if kind == "mode of another estimate":
        return first_mode(noisy_chi(truth, 0.2, generator, groups=8, directions=20))
    if kind == "array":
        return xr.DataArray(row + generator.standard_normal(len(row)), dims="sample")
    return pf.between_solutions(contributions(np.zeros(len(row))), contributions(row))


@pytest.mark.parametrize("kind", ["components", "mode", "mode of another estimate", "array", "between solutions"])
def test_intervals_of_predictions_cover(kind: str) -> None:
    """Of 200 repeats, 95 % intervals of every component hold what happens in 90 to 99 %, whatever the target."""
    inside = []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        truth = planted([20.0, 15.0, 12.0], 3, 150, generator)
        chi = noisy_chi(truth, 0.2, generator, groups=8, directions=(None, 20)[seed % 2])
        wanted = target_of(kind, chi, truth, generator)
        plan = pf.invert(chi, wanted, strength=0.3, negative_weights="allow")
        assert plan.attrs["made_from_chi"] == (kind in ("components", "mode"))
        apart = plan.predicted["dmu"] - realised(truth, plan.weights.values)
        inside.append(abs(apart) < scipy.stats.t.ppf(0.975, 7) * plan.predicted["dmu_error"])
    covered = np.mean(inside, 0)  # with a binomial standard error of 0.015
    assert covered.min() > 0.9, covered
    assert covered.max() < 0.99, covered
    assert abs(covered.mean() - 0.95) < 0.03, covered


def test_a_target_in_the_noise_is_refused_with_the_nearest_that_is_not() -> None:
    generator = np.random.default_rng(5)
    truth = decaying(generator)
    truth[2] += truth[1] - truth[2]  # c1 and c2 cannot be told apart
    chi = noisy(truth, 0.1, generator, DATA)
    with pytest.raises(pf.InfeasibleTargetError, match=r"only .* stand above its noise .* ask for the nearest") as info:
        pf.invert(chi, {"c1": 1.0, "c2": -1.0})
    if info.value.nearest:
        pf.invert(chi, info.value.nearest, strength=0.01)
    plan = pf.invert(chi, {"c1": 1.0, "c2": 1.0}, strength=0.1)
    assert float(plan.predicted["dmu"][1]) == pytest.approx(float(plan.predicted["dmu"][2]), rel=0.3)


def test_the_spectrum_of_noise_alone_stays_under_its_edge() -> None:
    chi = noisy(np.zeros((30, DATA)), 1.0, np.random.default_rng(6), DATA)
    estimates = by_datum(chi)
    found = spectrum(response_of(estimates.chi, estimates.counts, N_BETA), estimates, "wiener")
    # Tracy–Widom fluctuations of the largest are about components^(-2/3)·√(components/data)/2 < 1 %; errors from 8
    # groups are known to 1/√(2·7·1200) each.
    assert found.singular[0] < 1.02 * found.edge
    assert found.singular[0] > 0.93 * found.edge
    with pytest.raises(pf.InfeasibleTargetError, match="run more chains or draws"):
        pf.invert(chi, {"c0": 1.0})
