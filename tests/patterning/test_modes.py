"""Modes: planted directions are found, noise stays under its floor, and errors hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.stats import binom, t

import patterning_fast as pf
from patterning_fast.patterning import modes as modes_module
from patterning_fast.patterning import noise
from patterning_fast.patterning.modes import scales
from patterning_fast.patterning.noise import inner_products
from patterning_fast.patterning.spectrum import Spectrum
from tests.patterning.chi import made_up_chi
from tests.patterning.noisy_chi import noisy_chi, planted


def test_a_planted_mode_is_found_whatever_the_scales() -> None:
    generator = np.random.default_rng(1)
    components, data = np.array([1.0, -1.0, 0.5, -0.5]), generator.standard_normal(500)
    matrix = np.outer(components, data) + 0.05 * generator.standard_normal((4, 500))
    scales = np.array([1.0, 100.0, 0.01, 7.0])[:, None]
    found = pf.modes(made_up_chi(scales * matrix + scales))
    assert len(found) == 3
    assert abs(np.corrcoef(found[0].data.values, data)[0, 1]) > 0.99
    assert float(found.table["share"][0]) > 0.9
    assert found[0].components.values[0] * found[0].components.values[1] < 0
    assert found[0].above_floor
    loadings = found.table["component_loading"].values
    assert np.allclose(loadings @ loadings.T, np.eye(3))


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize(("components", "data"), [(3, 40), (2, 1_001), (7, 5), (5, 2)])
def test_modes_are_those_of_numpy_s_svd(
    components: int, data: int, centre: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise, "BLOCK_BYTES", 8 * components * 4 * 7)  # blocks of 7 data, and a rest
    monkeypatch.setattr(modes_module, "BLOCK_BYTES", 8 * components * 13)
    matrix = np.random.default_rng(2).standard_normal((components, data)) + 30.0
    z = (matrix - matrix.mean(1, keepdims=True)) / matrix.std(1, keepdims=True)
    if centre:
        z = z - z.mean(0)
    table = pf.modes(made_up_chi(matrix), centre_data=centre).table
    assert table.sizes["mode"] == min(components - centre, data - 1)
    expected = np.linalg.svd(z, compute_uv=False)[: table.sizes["mode"]]
    # Singular values come from squares: one of 0 is off by the root of double precision's rounding.
    np.testing.assert_allclose(table["singular_value"], expected, rtol=1e-9, atol=1e-6)
    rebuilt = np.einsum("m,mc,mz->cz", table["singular_value"], table["component_loading"], table["data_loading"])
    np.testing.assert_allclose(rebuilt, z, atol=1e-6)


def test_keeping_a_few_changes_nothing_else() -> None:
    chi = noisy_chi(np.zeros((6, 90)), 1.0, np.random.default_rng(3))
    every, few = pf.modes(chi), pf.modes(chi, keep=2)
    assert len(few) == 2
    for name in ("singular_value", "share", "signal", "component_loading", "data_loading", "above_floor"):
        np.testing.assert_allclose(few.table[name], every.table[name][:2], rtol=1e-7, atol=1e-12)
    assert few.table.attrs == every.table.attrs
    assert len(every[1:3]) == 2
    assert every[1:3][0].singular_value == every[1].singular_value
    assert len(pf.modes(chi, keep=100)) == 5


def test_float32_is_worked_in_float32() -> None:
    generator = np.random.default_rng(4)
    chi = noisy_chi(planted([60.0, 40.0], 5, 700, generator) + 10.0, 0.1, generator)
    single, double = pf.modes(chi.astype(np.float32)).table, pf.modes(chi).table
    assert single["data_loading"].dtype == np.float32
    # Products of some hundred terms, each rounded to 6e-8, about a mean some 10 times the spread.
    np.testing.assert_allclose(single["singular_value"][:2], double["singular_value"][:2], rtol=1e-5)
    np.testing.assert_allclose(single["data_loading"][:2], double["data_loading"][:2], atol=1e-5)


def test_minus_a_mode_points_the_other_way() -> None:
    mode = pf.modes(made_up_chi(np.random.default_rng(3).standard_normal((3, 40))))[0]
    assert np.array_equal((-mode).data.values, -mode.data.values)
    assert np.array_equal((-mode).components.values, -mode.components.values)
    assert (-mode).singular_value == mode.singular_value
    assert mode.components.values[np.abs(mode.components.values).argmax()] > 0


def test_draws_of_noise_have_its_size_and_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    truth = 1e3 * generator.standard_normal((3, 4000))
    chi = noisy_chi(truth, 1.0, generator, groups=7)
    chi["chi_group"][1, [2, 5]] = np.nan  # two groups that diverged
    chi["chi"] = chi["chi_group"].mean("group")
    expected = np.array([1.0, 7 / 5, 1.0])
    for rows, draws in ((2048, 6), (1, 3)):  # a draw a group but one; and groups merged to four
        monkeypatch.setattr(noise, "ROWS", rows)
        products = inner_products(chi).products
        assert len(products) == draws + 1
        sizes = np.einsum("kckc->c", products[1:, :, 1:]) / draws / 4000
        # The mean of draws × 4,000 squares scatters by √(2 / (draws × 4,000)).
        np.testing.assert_allclose(sizes, expected, rtol=5 * np.sqrt(2 / (draws * 4000)))


def test_noise_passes_its_floor_no_more_often_than_said() -> None:
    repeats = 100
    cases = [(None, 4, 0), (None, 12, 0), (10, 4, 0), (None, 4, 2), (10, 4, 2)]
    for directions, groups, rank in cases:
        passed = found = 0
        for repeat in range(repeats):
            generator = np.random.default_rng(repeat)
            truth = planted([60.0, 40.0], 6, 300, generator) if rank else np.zeros((6, 300))
            chi = noisy_chi(truth, 1.0 if rank == 0 else 0.3, generator, groups=groups, directions=directions)
            summed = inner_products(chi)
            spectrum = Spectrum.of(summed, scales(summed, chi), False)
            above = int((spectrum.modes[0] > spectrum.floor()).sum())
            found += min(above, rank)
            passed += above > rank
        # One in 20, and what chance adds to that in 1 of 1,000 tests.
        assert passed <= binom.ppf(0.999, repeats, 0.05), (directions, groups, rank)
        assert found >= 0.9 * rank * repeats, (directions, groups, rank)


def test_errors_and_intervals_hold_the_truth() -> None:
    repeats, groups = 60, 8
    truth = planted([60.0, 40.0], 8, 400, np.random.default_rng(6))
    tables = [
        pf.modes(noisy_chi(truth, 1.0, np.random.default_rng(seed), groups=groups), centre_data=False, keep=2).table
        for seed in range(repeats)
    ]
    found = xr.concat(tables, "run", data_vars="all")
    # What the estimate is of: χ without noise, in the units of χ with it.
    z = truth / np.sqrt(truth.var(1, keepdims=True) + 1.0)
    left, values, right = (each[..., :2].T for each in map(np.asarray, svd_columns(z)))
    quantile = t.ppf(0.975, groups - 1)
    inside = {
        "singular value": np.abs(found["singular_value"] - found["singular_value"].mean("run"))
        < quantile * found["singular_value_error"],
        "signal": np.abs(found["signal"] - values) < quantile * found["signal_error"],
    }
    for name, true in (("component", left), ("data", right)):
        cosine = np.abs((found[f"{name}_loading"] * true).sum("component" if name == "component" else "sample"))
        low, _, high = (found[f"{name}_cosine"].isel(quantile=at) for at in range(3))
        inside[name] = (low < cosine) & (cosine < high)
        # The interval is where the cosine is, not merely wide.
        assert float((high - low).mean()) < 0.08
    for name, hit in inside.items():
        # 95 % as nominal; intervals of cosines are for noise as large as eight groups say: 85 %.
        nominal = 0.95 if name in ("singular value", "signal") else 0.85
        assert hit.sum("run").values.min() >= binom.ppf(0.001, repeats, nominal), name
    scatter = found["singular_value"].std("run", ddof=1)
    # The spread of 60 values is known to 9 %.
    np.testing.assert_allclose(found["singular_value_error"].mean("run"), scatter, rtol=0.3)


def svd_columns(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left vectors, singular values and right vectors, those of a mode in a column."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return left, values, right.T


def test_what_is_noise_is_said_to_be_unstable() -> None:
    generator = np.random.default_rng(7)
    table = pf.modes(noisy_chi(planted([80.0], 6, 500, generator), 0.5, generator), centre_data=False).table
    assert table["above_floor"].values.tolist() == [True] + [False] * 5
    low, _, high = table["data_cosine"].values.T
    assert low[0] > 0.95
    assert (high[1:] < 0.6).all()
    assert table.attrs["modes_above_floor"] == 1


def test_the_floor_of_independent_noise_is_marchenko_and_pastur_s() -> None:
    chi = noisy_chi(np.zeros((20, 4000)), 1.0, np.random.default_rng(8), groups=16)
    table = pf.modes(chi, centre_data=False).table
    # √4,000·(1 + √(20/4,000)) = 67.7; the noise of the noisiest of 20 components is about 2 % over the mean.
    assert table.attrs["marchenko_pastur"] == pytest.approx(67.7, rel=0.04)
    assert table.attrs["noise_floor"] == pytest.approx(67.7, rel=0.03)


def test_two_groups_tell_no_floor() -> None:
    generator = np.random.default_rng(9)
    table = pf.modes(noisy_chi(planted([60.0], 4, 100, generator), 0.1, generator, groups=2)).table
    assert np.isnan(table.attrs["noise_floor"])
    assert not table["above_floor"].any()
    assert np.isfinite(table["singular_value_error"]).all()


def test_without_noise_every_mode_is_there() -> None:
    matrix = np.random.default_rng(10).integers(-9, 9, (3, 40)).astype(float)
    chi = made_up_chi(matrix, error=0.0)
    table = pf.modes(chi).table
    assert table.attrs["noise_floor"] < 1e-12  # contrasts of equal groups: rounding
    assert table["above_floor"].all()
    assert pf.modes(chi.isel(component=[0, 0])).table.attrs["noise_floor"] == 0  # and none after centring
    np.testing.assert_allclose(table["signal"], table["singular_value"])
    np.testing.assert_allclose(table["data_cosine"], 1.0)


def test_bad_chi_is_refused() -> None:
    chi = made_up_chi(np.random.default_rng(5).standard_normal((3, 40)))
    with pytest.raises(ValueError, match="of at least two"):
        pf.modes(chi.isel(component=[0]))
    with pytest.raises(ValueError, match=r"'chi_error'.* are missing"):
        pf.modes(chi.drop_vars("chi_error"))
    with pytest.raises(ValueError, match="keep must be a whole number >= 1, or None, got 0"):
        pf.modes(chi, keep=0)
    broken = chi.copy(deep=True)
    broken["chi"][1, 3] = np.nan
    with pytest.raises(ValueError, match="1 values of chi are not finite"):
        pf.modes(broken)
    broken = chi.copy(deep=True)
    broken["chi_group"][1, 0, 3] = np.nan
    with pytest.raises(ValueError, match="1 values of chi_group are not finite"):
        pf.modes(broken)
    broken = chi.copy(deep=True)
    broken["chi_group"][1, 1:] = np.nan
    with pytest.raises(ValueError, match=r"\['c1'\] has fewer than two groups"):
        pf.modes(broken)
    for level in (2.0, 0.1, 0.0):
        flat = chi.copy(deep=True)
        flat["chi"][1] = level
        with pytest.raises(ValueError, match=r"χ of \['c1'\] is the same for all data"):
            pf.modes(flat)


def test_components_without_signal_whose_repeats_are_rounding() -> None:
    """Many components, and noise in few directions: squares that are 0 come out at either side of it."""
    chi = noisy_chi(np.zeros((60, 20)), 1.0, np.random.default_rng(0), groups=4, directions=1)
    table = pf.modes(chi, keep=2).table
    assert all(np.isfinite(table[name]).all() for name in table.data_vars)
