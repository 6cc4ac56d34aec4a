"""Pictures of modes: they can be drawn of what modes and matches are, and show what is in them."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.patches import Rectangle

import patterning_fast as pf
from patterning_fast.report import figures
from tests.patterning.noisy_chi import noisy_chi, planted


def example(groups: int, seed: int) -> pf.Modes:
    truth = planted([60.0, 40.0, 25.0], 8, 400, np.random.default_rng(0))
    return pf.modes(noisy_chi(truth, 0.4, np.random.default_rng(seed), groups=groups), centre_data=False)


@pytest.mark.parametrize("groups", [2, 6])
def test_scree(groups: int) -> None:
    modes = example(groups, 1)
    figure = figures.scree(modes)
    assert figures.png(figure).startswith(b"\x89PNG")
    levels = [np.asarray(line.get_ydata())[0] for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert levels == ([modes.table.attrs["noise_floor"]] if groups > 2 else [])


def test_matched_modes() -> None:
    matches = pf.match_modes(example(6, 1)[:3], example(6, 2)[:2])
    figure = figures.matched_modes(matches, "seed 1", "seed 2")
    assert figures.png(figure).startswith(b"\x89PNG")
    frames = [
        (round(patch.get_x() + 0.46), round(patch.get_y() + 0.46))
        for patch in figure.axes[0].patches
        if isinstance(patch, Rectangle)
    ]
    assert frames == [(column, row) for row, column in enumerate(matches["partner"].values) if column >= 0]
