"""Charts hold the numbers they were given, where these belong."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from patterning_fast.report import charts, figures


def drawn(figure: Figure) -> Figure:
    """The figure, which can be drawn."""
    assert figures.png(figure).startswith(b"\x89PNG")
    return figure


def test_lines_are_thin_for_runs_and_thick_for_their_mean() -> None:
    steps, scores = np.arange(3.0), np.array([[0.0, 0.2, 0.4], [0.2, 0.4, 0.8]])
    figure = drawn(
        charts.lines({"$a": (steps, scores), "b": (steps, scores[0])}, "step", "score", {"half": 0.5}, False)
    )
    widths = {line.get_linewidth(): np.asarray(line.get_ydata()) for line in figure.axes[0].lines[:3]}
    assert np.allclose(widths[2], [0.1, 0.3, 0.6])
    assert len(figure.axes[0].lines) == 2 + 1 + 1 + 1
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [r"\$a", "b"]


def test_runs_are_points_and_their_median_a_bar() -> None:
    values = {"base": np.array([0.9, 1.0, 1.4]), "amplified": np.array([0.5, 0.6, 2.0])}
    hollow = {"base": np.zeros(3, bool), "amplified": np.array([False, False, True])}
    axes = drawn(charts.runs(values, "ratio", [0.7], hollow=hollow, band=(0.9, 1.1), log=True)).axes[0]
    points = np.concatenate([np.asarray(each.get_offsets()).reshape(-1, 2) for each in axes.collections])
    assert {0.5, 0.6, 2.0, 0.9, 1.0, 1.4} <= set(np.round(points[:, 0], 6))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["base", "amplified"]
    assert axes.get_xscale() == "log"


def test_scatter_has_a_panel_a_title_and_95_percent_errors() -> None:
    points = charts.Points([1.0, 2.0], [3.0, 5.0], y_error=[0.5, 1.0], names=["l0h0", "l0h1"])
    figure = drawn(charts.scatter({"random": {"heads": points}, "text": {"heads": points}}, "x", "y", diagonal=True))
    assert [axes.get_title() for axes in figure.axes] == ["random", "text"]
    ends = [
        segment[:, 1]
        for bars in figure.axes[0].collections
        for segment in bars.get_segments()  # type: ignore[attr-defined]
        if segment[0, 1] != segment[1, 1]
    ]
    assert np.array(ends) == pytest.approx(np.array([[3 - 0.98, 3 + 0.98], [5 - 1.96, 5 + 1.96]]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["l0h0", "l0h1"]


def test_bars_and_maps_have_a_row_a_name() -> None:
    values = np.array([1.0, -2.0, 3.0])
    axes = drawn(charts.bars(["a", "b", "c"], {"χ": {"one": (values, 0.1), "other": (2 * values, 0.0)}})).axes[0]
    widths = [patch.get_width() for patch in axes.patches]  # type: ignore[attr-defined]
    assert sorted(widths) == sorted([*values, *(2 * values)])
    shown = np.arange(6.0).reshape(2, 3)
    figure = drawn(charts.maps({"first": shown, "second": -shown}, ["a", "b"], "position", "χ", (-5, 5)))
    assert np.array_equal(np.asarray(figure.axes[1].images[0].get_array()), -shown)
    assert figure.axes[0].images[0].get_clim() == (-5, 5)
