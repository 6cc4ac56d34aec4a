"""Charts of runs that recipes share: lines over training, a point a run, scatter with errors, bars and maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from patterning_fast.arguments import checked
from patterning_fast.report.figures import COLOURS
from patterning_fast.report.text import label

MARKERS = "os^Dv*PX"
LINES: tuple[Any, ...] = ("-", "--", "-.", ":")
MORE_COLOURS = (*COLOURS[:3], *COLOURS[4:], "#56B4E9", "#E69F00", COLOURS[3])  # Okabe & Ito 2008, the grey last


class Points(NamedTuple):
    """Points with standard errors."""

    x: ArrayLike
    y: ArrayLike
    x_error: ArrayLike = 0.0
    y_error: ArrayLike = 0.0
    names: Sequence[str] = ()


def finish(axes: Axes, **properties: Any) -> None:
    """The look of all charts."""
    axes.set(**properties)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8)


@checked
def lines(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]], xlabel: str, ylabel: str, levels: Mapping[str, float], log: bool
) -> Figure:
    """Name to (x, y), y `[x]` or `[runs, x]`: a thin line a run, the mean thick. Levels are named lines across."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    looks = zip(cycle(MORE_COLOURS), np.repeat(LINES, len(MORE_COLOURS)), strict=False)
    for (name, (x, y)), (colour, line) in zip(series.items(), looks, strict=False):
        runs = np.atleast_2d(np.asarray(y))
        if len(runs) > 1:
            axes.plot(x, runs.T, color=colour, linewidth=0.5, alpha=0.4)
        axes.plot(x, runs.mean(0), color=colour, linestyle=str(line), linewidth=2, label=label(name))
    for name, level in levels.items():
        axes.axhline(level, color="#888888", linewidth=0.8)
        axes.annotate(
            label(name), (0, level), xycoords=("axes fraction", "data"), xytext=(2, 3), textcoords="offset points",
            fontsize=8,
        )  # fmt: skip
    finish(axes, xlabel=xlabel, ylabel=ylabel, xscale="log" if log else "linear")
    return figure


@checked
def runs(
    values: Mapping[str, ArrayLike],
    xlabel: str,
    levels: Sequence[float],
    hollow: Mapping[str, ArrayLike] | None = None,
    band: tuple[float, float] | None = None,
    log: bool = False,
) -> Figure:
    """A row a name, a point a run, a bar at the median. Hollow points are set apart; levels are broken lines."""
    figure = Figure(figsize=(8, 0.9 + 0.36 * len(values)), layout="constrained")
    axes = figure.subplots()
    jitter = np.random.default_rng(0)
    if band is not None:
        axes.axvspan(*band, color="#eeeeee", linewidth=0)
    for level in levels:
        axes.axvline(level, color="#888888", linewidth=0.8, linestyle="--")
    for row, (name, each) in enumerate(values.items()):
        x = np.asarray(each, dtype=float)
        apart = np.asarray(hollow[name] if hollow else np.zeros(len(x)), dtype=bool)
        y = row + jitter.uniform(-0.2, 0.2, len(x))
        for which, face in ((~apart, COLOURS[1]), (apart, "none")):
            axes.scatter(x[which], y[which], s=20, facecolors=face, edgecolors=COLOURS[1], alpha=0.8)
        axes.vlines(np.median(x), row - 0.32, row + 0.32, color=COLOURS[2], linewidth=2)
    axes.set_yticks(range(len(values)), [label(name) for name in values])
    finish(axes, xlabel=xlabel, xscale="log" if log else "linear", ylim=(len(values) - 0.5, -0.5))
    if log:
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
    return figure


@checked
def scatter(
    panels: Mapping[str, Mapping[str, Points]], xlabel: str, ylabel: str, diagonal: bool = False, symlog: bool = False
) -> Figure:
    """Title to name to points, with 95 % errors: a panel a title, a colour and marker a name."""
    figure = Figure(figsize=(1 + 4.5 * len(panels), 4.6), layout="constrained")
    every = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (title, groups) in zip(every, panels.items(), strict=True):
        if diagonal:
            axes.axline((0, 0), slope=1, color="#888888", linewidth=0.8)
        else:
            axes.axhline(0, color="#888888", linewidth=0.8)
        looks = zip(cycle(MORE_COLOURS[1:]), cycle(MARKERS), strict=False)
        for (name, each), (colour, marker) in zip(groups.items(), looks, strict=False):
            errors = (1.96 * np.broadcast_to(error, np.shape(each.x)) for error in (each.y_error, each.x_error))
            axes.errorbar(
                each.x, each.y, *errors, fmt=marker, color=colour, markersize=5, elinewidth=0.7, label=label(name)
            )
            for place, (text, x, y) in enumerate(zip(each.names, np.asarray(each.x), np.asarray(each.y), strict=False)):
                axes.annotate(
                    label(text), (x, y), xytext=(0, (7, -13)[place % 2]), textcoords="offset points", ha="center",
                    fontsize=7,
                )  # fmt: skip
        finish(axes, title=label(title))
        if symlog:
            axes.set_yscale("symlog", linthresh=1, linscale=1.5)
            axes.yaxis.set_major_formatter("{x:g}")
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    return figure


@checked
def bars(names: Sequence[str], panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]]) -> Figure:
    """Title to label to (values, standard errors) by name: a panel a title, a row of bars a name, 95 % errors."""
    figure = Figure(figsize=(2.5 + 3 * len(panels), 1.2 + 0.4 * len(names)), layout="constrained")
    places = np.arange(len(names))
    for axes, (title, groups) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
    ):
        width = 0.8 / len(groups)
        for at, (name, (values, errors)) in enumerate(groups.items()):
            at_height = places - 0.4 + width * (at + 0.5)
            colour = MORE_COLOURS[1 + at % (len(MORE_COLOURS) - 1)]
            error = 1.96 * np.broadcast_to(errors, len(names))
            axes.barh(at_height, values, width, xerr=error if error.any() else None, color=colour, label=label(name))
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(places, [label(name) for name in names])
        finish(axes, xlabel=title)
    axes.invert_yaxis()
    return figure


@checked
def maps(
    panels: Mapping[str, np.ndarray], ylabels: Sequence[str], xlabel: str, quantity: str, limits: tuple[float, float]
) -> Figure:
    """Title to values `[rows, columns]`, as colours between limits; two-sided where these are about 0."""
    figure = Figure(figsize=(2 + 3 * len(panels), 1.6 + 0.22 * len(ylabels)), layout="constrained")
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    colours = "RdBu_r" if limits[0] < 0 else "cividis"
    for axes, (title, values) in zip(every, panels.items(), strict=True):
        image = axes.imshow(
            values, aspect="auto", cmap=colours, vmin=limits[0], vmax=limits[1], interpolation="nearest"
        )
        axes.set_title(label(title), fontsize=9)
        axes.set_xlabel(xlabel)
    every[0].set_yticks(range(len(ylabels)), [label(name) for name in ylabels], fontsize=8)
    figure.colorbar(image, ax=list(every), label=quantity, extend="both" if limits[0] < 0 else "max")
    return figure
