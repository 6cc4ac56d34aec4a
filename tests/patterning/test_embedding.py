"""Maps of the data by their projections on modes."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

import patterning_fast as pf
from tests.patterning.noisy_chi import noisy_chi


def two_kinds() -> pf.Modes:
    """Modes of data of two kinds, the first 30 and the others."""
    kinds = np.repeat([1.0, -1.0], 30)
    return pf.modes(noisy_chi(np.outer([1.0, 1.0, -1.0], kinds), 0.1, np.random.default_rng(1)))[:1]


def test_without_umap_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r"pip install 'patterning_fast\[umap\]'"):
        pf.embed_data(two_kinds())


@pytest.mark.skipif(importlib.util.find_spec("umap") is None, reason="needs umap-learn, an extra")
@pytest.mark.filterwarnings("ignore")  # umap's own
def test_data_that_answer_alike_lie_together() -> None:
    points = pf.embed_data(two_kinds(), neighbours=10)
    assert points.dims == ("sample", "axis")
    assert points.shape == (60, 2)
    assert points["sample"].values.tolist() == list(range(60))
    middles = points.values.reshape(2, 30, 2).mean(1)
    own = np.linalg.norm(points.values[:, None] - middles, axis=2).argmin(1)
    assert own.tolist() == [0] * 30 + [1] * 30
    np.testing.assert_array_equal(points, pf.embed_data(two_kinds(), neighbours=10))
    with pytest.raises(ValueError, match="fewer than the data, got 60 and 60"):
        pf.embed_data(two_kinds(), neighbours=60)
