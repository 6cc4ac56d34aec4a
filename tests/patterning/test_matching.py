"""Matching of modes: known permutations and signs come back, and chance is told from more than chance."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.linalg import subspace_angles
from scipy.stats import kstest

import patterning_fast as pf
from patterning_fast.patterning.matching import CHANCE, DRAWS, chance_principal, p_direction, p_within
from tests.patterning.noisy_chi import noisy_chi, planted


def modes_of(loadings: np.ndarray) -> pf.Modes:
    """Modes with these loadings on data `[modes, data]`."""
    data = loadings.shape[1]
    coords = {"probe": ("sample", np.full(data, "data")), "sample": np.arange(data)}
    return pf.Modes(xr.Dataset({"data_loading": (("mode", "sample"), loadings)}, coords=coords))


def test_a_known_permutation_and_signs_come_back() -> None:
    generator = np.random.default_rng(1)
    loadings = np.linalg.qr(generator.standard_normal((200, 4)))[0].T
    order, signs = np.array([2, 0, 3, 1]), np.array([-1.0, 1.0, 1.0, -1.0])
    others = modes_of((signs[:, None] * loadings)[order])
    found = pf.match_modes(modes_of(loadings), others)
    assert found["partner"].values.tolist() == np.argsort(order).tolist()
    assert found["sign"].values.tolist() == signs.tolist()
    np.testing.assert_allclose(found["cosine"], 1.0)
    np.testing.assert_allclose(found["principal_cosine"], 1.0)
    assert (found["p_direction"] < 1e-10).all()
    assert (found["p_within"] <= 2 / (DRAWS + 1)).all()


def test_two_runs_find_the_same_modes() -> None:
    truth = planted([60.0, 40.0, 30.0], 8, 400, np.random.default_rng(2))
    ours, theirs = (
        pf.modes(noisy_chi(truth, 0.3, np.random.default_rng(seed)), centre_data=False)[:3] for seed in (3, 4)
    )
    found = pf.match_modes(ours, theirs)
    assert found["partner"].values.tolist() == [0, 1, 2]
    expected = np.cos(subspace_angles(ours.table["data_loading"].values.T, theirs.table["data_loading"].values.T))
    np.testing.assert_allclose(np.sort(found["principal_cosine"]), np.sort(expected), rtol=1e-6)
    assert (found["principal_cosine"] > found["chance_principal_cosine"]).all()
    fewer = pf.match_modes(ours, theirs[1:2])
    assert fewer["partner"].values.tolist() == [-1, 0, -1]
    assert np.isnan(fewer["cosine"].values[[0, 2]]).all()
    assert np.isnan(fewer["p_within"]).all()


def test_p_values_of_chance_are_uniform() -> None:
    generator = np.random.default_rng(5)
    vectors = generator.standard_normal((500, 30))
    cosines = vectors[:, 0] / np.linalg.norm(vectors, axis=1)
    assert kstest(p_direction(cosines, 1, 30), "uniform").pvalue > 1e-3


def test_the_same_space_with_other_axes_is_no_match_within_it() -> None:
    generator = np.random.default_rng(6)
    values = []
    for _ in range(10):
        turn = np.linalg.qr(generator.standard_normal((3, 3)))[0]
        values += p_within(turn, np.abs(turn).max(1), generator).tolist()
    assert np.mean(np.array(values) < 0.05) < 0.3


@pytest.mark.parametrize(("ours", "theirs", "data"), [(2, 3, 40), (3, 2, 40), (1, 1, 5), (4, 4, 8)])
def test_chance_principal_cosines_are_those_of_random_subspaces(ours: int, theirs: int, data: int) -> None:
    generator = np.random.default_rng(7)
    drawn = []
    for _ in range(2000):
        other = np.linalg.qr(generator.standard_normal((data, theirs)))[0]
        drawn.append(np.linalg.svd(other[:ours], compute_uv=False))
    below = np.mean(np.array(drawn) < chance_principal(ours, theirs, data, generator), 0)
    # A quantile of 1,000 draws, looked up in 2,000: 0.7 % and 0.5 %.
    np.testing.assert_allclose(below, CHANCE, atol=4 * np.hypot(0.007, 0.005))


def test_spaces_too_large_to_be_apart_are_no_match() -> None:
    assert chance_principal(3, 4, 6, np.random.default_rng(0)).tolist() == [1.0] * 3


def test_other_data_are_refused() -> None:
    generator = np.random.default_rng(8)
    modes = modes_of(np.linalg.qr(generator.standard_normal((50, 2)))[0].T)
    with pytest.raises(ValueError, match=r"50 of sample and 49 of sample; take the modes of both"):
        pf.match_modes(modes, pf.Modes(modes.table.isel(sample=slice(49))))
    with pytest.raises(ValueError, match=r"sample differs at 50 of 50"):
        pf.match_modes(modes, pf.Modes(modes.table.assign_coords(sample=np.arange(50)[::-1])))
    with pytest.raises(ValueError, match=r"probe differs at 50 of 50"):
        pf.match_modes(modes, pf.Modes(modes.table.drop_vars("probe")))
    with pytest.raises(ValueError, match=r"50 of token"):
        pf.match_modes(modes, pf.Modes(modes.table.rename(sample="token")))
