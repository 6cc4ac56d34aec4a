"""The bench of inversion: under no shape of noise is more missed than by the pseudo-inverse."""

from __future__ import annotations

import numpy as np
import pytest
from bench.inversion import COVERED, NUMBERS, RATIOS, REFUSED, SHAPES, WORSE, under_shape


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_missed_refused_and_covered(shape: str, ratio: float) -> None:
    draws = 5
    cells = [under_shape(shape, ratio, groups, draws, components=6, data=250) for groups in NUMBERS]
    for found in cells:
        assert not found["missed"] > WORSE * found["pseudo-inverse"]
        assert not found["refused, least missed"] < REFUSED
    missed, bare = (np.nanmean([each[name] for each in cells]) for name in ("missed", "pseudo-inverse"))
    assert missed < (0.1 if shape.endswith("directions") else 0.9) * bare
    covered = np.nanmean([each["covered"] for each in cells])
    # 90 intervals of 15 draws, which components of a draw may share: a standard error of up to 0.95·0.05/15, rooted.
    assert COVERED[0] - 0.06 < covered, covered
