"""Means by document: their values, errors that know of correlation, and inversion by them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

import patterning_fast as pf

SAMPLES, TOKENS, GROUPS = 6, 5, 8
DOCUMENTS = np.array(["b", "a", "b", "c", "a", "b"])


def correlated(seed: int, common: float = 1.0) -> xr.Dataset:
    """χ = 0 of two components, whose noise is mostly the same for all tokens of a group of chains."""
    generator = np.random.default_rng(seed)
    shape = (2, GROUPS, SAMPLES * TOKENS)
    group = common * generator.standard_normal((2, GROUPS, 1)) + 0.1 * generator.standard_normal(shape)
    error = group.std(1, ddof=1) / GROUPS**0.5
    sample, position = np.indices((SAMPLES, TOKENS)).reshape(2, -1)
    data = ("component", "token")
    return xr.Dataset(
        {
            "chi": (data, group.mean(1)),
            "chi_error": (data, error),
            "chi_group": (("component", "group", "token"), group.astype(np.float32)),
            "chi_reliability": ("component", np.ones(2)),
            "llc": ("component", np.ones(2)),
        },
        coords={
            "component": ["x", "y"],
            "probe": ("token", np.full(sample.size, "data")),
            "sample": ("token", sample),
            "position": ("token", position),
        },
        attrs={"n_beta": 10.0},
    )


@pytest.mark.parametrize("by_token", [False, True])
def test_means_and_counts(by_token: bool) -> None:
    chi = correlated(0)
    labels = np.repeat(DOCUMENTS[:, None], TOKENS, 1)
    if by_token:
        labels[0, 2:] = "c"
    order = np.random.default_rng(1).permutation(SAMPLES * TOKENS)  # data go by their coordinates, not their order
    found = pf.aggregate(chi.isel(token=order), labels if by_token else DOCUMENTS)
    assert found["document"].values.tolist() == ["a", "b", "c"]
    assert found["count"].values.tolist() == [(labels == name).sum() for name in "abc"]
    for name in "abc":
        own = chi["chi"].values[:, labels.ravel() == name].mean(1)
        assert np.allclose(found["chi"].sel(document=name), own, rtol=1e-12)
    assert "chi_reliability" not in found
    assert found["llc"].values.tolist() == [1.0, 1.0]


def test_errors_of_means_cover_where_those_of_tokens_would_not() -> None:
    """Of 50 runs of two components, whose tokens go together: √(Σ error²)/tokens would be 3 times too small."""
    values, errors = [], []
    for seed in range(50):
        found = pf.aggregate(correlated(seed), DOCUMENTS)
        values.append(found["chi"].sel(document="b").values)
        errors.append(found["chi_error"].sel(document="b").values)
    inside = abs(np.array(values)) < 2.36 * np.array(errors)  # t with 7 degrees of freedom at 95 %
    # 100 intervals: a binomial standard error of 2 %, at 4 of them.
    assert inside.mean() > 0.87
    # √(1/8) is the deviation of a mean of 8 groups; 100 errors with 7 degrees of freedom know it to 3 %.
    assert float(np.mean(errors)) == pytest.approx(8**-0.5, rel=0.12)


def test_a_component_that_has_lost_its_chains_is_nan_and_a_lost_group_is_left_out() -> None:
    chi = correlated(2)
    chi["chi"][0], chi["chi_group"][0] = np.nan, np.nan
    chi["chi_group"][1, 3] = np.nan
    found = pf.aggregate(chi, DOCUMENTS)
    assert found["chi_error"][0].isnull().all()
    left = found["chi_group"][1].dropna("group").values
    assert np.allclose(found["chi_error"][1], left.std(0, ddof=1) / 7**0.5, rtol=1e-5)


def test_inversion_by_documents_is_that_with_a_unit() -> None:
    generator = np.random.default_rng(3)
    chi = correlated(3, common=1e-3)
    signal = generator.standard_normal((2, SAMPLES * TOKENS))
    chi["chi"] = chi["chi"] + signal
    chi["chi_group"] = chi["chi_group"] + signal[:, None].astype(np.float32)
    labelled = chi.assign_coords(document=("token", DOCUMENTS[chi["sample"].values]))
    expected = pf.invert(labelled, {"x": 0.1}, unit="document", regularization="none", strength=0.1)
    plan = pf.invert(pf.aggregate(chi, DOCUMENTS), {"x": 0.1}, regularization="none", strength=0.1)
    on_samples = pf.spread_weights(plan.weights, DOCUMENTS)
    assert np.allclose(on_samples.values[chi["sample"].values], expected.weights, rtol=1e-6)
    assert abs(on_samples.values - 1).max() > 0.02


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (DOCUMENTS[:-1], r"groups of shape \[5\] do not fit the data of the estimates: want \[6\] or \[6, 5\]"),
        (np.zeros((6, 4)), r"groups of shape \[6, 4\] do not fit"),
        (np.array([0.0, 1.0, np.nan, 0.0, 1.0, 2.0]), r"1 groups have no name, the first at \[2\]"),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pf.aggregate(correlated(0), groups)


def test_estimates_that_cannot_be_averaged_are_refused() -> None:
    chi = correlated(0)
    with pytest.raises(ValueError, match="these groups have no estimates: c"):
        pf.aggregate(chi.isel(token=chi["sample"].values != 3), DOCUMENTS)
    with pytest.raises(ValueError, match="NAME_group"):
        pf.aggregate(chi.drop_vars("chi_group"), DOCUMENTS)
    two = chi.assign_coords(probe=("token", np.repeat(["p", "q"], 15)))
    with pytest.raises(ValueError, match="several probes"):
        pf.aggregate(two, DOCUMENTS)
