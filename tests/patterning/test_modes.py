"""Modes: planted directions are found, and the noise floor is where noise is."""

from __future__ import annotations

import numpy as np
import pytest

import patterning_fast as pf
from tests.patterning.chi import made_up_chi


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
    loadings = found.table["component_loading"].values
    assert np.allclose(loadings @ loadings.T, np.eye(3))


def test_loadings_rebuild_the_standardised_matrix() -> None:
    matrix = np.random.default_rng(2).standard_normal((3, 40))
    table = pf.modes(made_up_chi(matrix), centre_data=False).table
    rebuilt = np.einsum("m,mc,mz->cz", table["singular_value"], table["component_loading"], table["data_loading"])
    standardised = (matrix - matrix.mean(1, keepdims=True)) / matrix.std(1, keepdims=True)
    assert np.allclose(rebuilt, standardised)


def test_minus_a_mode_points_the_other_way() -> None:
    mode = pf.modes(made_up_chi(np.random.default_rng(3).standard_normal((3, 40))))[0]
    assert np.array_equal((-mode).data.values, -mode.data.values)
    assert np.array_equal((-mode).components.values, -mode.components.values)
    assert mode.components.values[np.abs(mode.components.values).argmax()] > 0


def test_noise_alone_stays_at_its_floor() -> None:
    chi = made_up_chi(np.random.default_rng(4).standard_normal((6, 5000)), error=1.0)
    table = pf.modes(chi).table
    # Singular values of pure noise of unit variance: √data·(1 ± √(components/data)), about 3.5 % either way.
    assert np.allclose(table["singular_value"] / table.attrs["noise_floor"], 1.0, atol=0.06)


def test_bad_chi_is_refused() -> None:
    chi = made_up_chi(np.random.default_rng(5).standard_normal((3, 40)))
    with pytest.raises(ValueError, match="of at least two"):
        pf.modes(chi.isel(component=[0]))
    with pytest.raises(ValueError, match=r"'chi_error'.* are missing"):
        pf.modes(chi.drop_vars("chi_error"))
    broken = chi.copy(deep=True)
    broken["chi"][1, 3] = np.nan
    with pytest.raises(ValueError, match="1 values of chi are not finite"):
        pf.modes(broken)
    flat = chi.copy(deep=True)
    flat["chi"][1] = 2.0
    with pytest.raises(ValueError, match=r"χ of \['c1'\] is the same for all data"):
        pf.modes(flat)
