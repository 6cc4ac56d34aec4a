"""Pictures of polygons in the toy model of superposition: what replicas become, and on which weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patterning_fast.arguments import checked
from patterning_fast.report.figures import COLOURS

OTHER = "other"
MARKERS = "os^Dv*PX"
MORE_COLOURS = (*COLOURS[:3], *COLOURS[4:], "#56B4E9", "#E69F00", COLOURS[3])  # Okabe & Ito 2008, the grey last
BRIGHTEST = 4.0
"""Weights from here on look alike."""
LOWEST = -5.0
"""λ̂ below it is of chains that run away, and would flatten all else."""


class Stage(NamedTuple):
    """A replica along training."""

    steps: Sequence[float]
    loss: Sequence[float]
    llc: Sequence[float]
    llc_error: Sequence[float]
    kinds: Sequence[str]


class Tried(NamedTuple):
    """What came of plans of one kind."""

    strength: Sequence[float]
    share: Sequence[float]
    error: Sequence[float]


def colour_of(kind: str, sides: Sequence[int]) -> Any:
    """By the number of corners; grey for what is no polygon."""
    if kind == OTHER:
        return "#bbbbbb"
    at = (int(kind.rstrip("+")) - min(sides)) / max(1, max(sides) - min(sides))
    return matplotlib.colormaps["cividis"](0.05 + 0.9 * at)


@checked
def shares(panels: Mapping[str, tuple[np.ndarray, Mapping[str, np.ndarray]]]) -> Figure:
    """Shares of kinds over training, stacked, one panel a weighting: title to (steps, kind to shares).

    Hatched: some features left out have a positive bias.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.7 * columns, 2.7 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    sides = [int(kind.rstrip("+")) for _, kinds in panels.values() for kind in kinds if kind != OTHER]
    drawn: dict[str, Any] = {}
    for (title, (steps, kinds)), own in zip(panels.items(), axes.flat, strict=False):
        colours = [colour_of(kind, sides) for kind in kinds]
        areas = own.stackplot(steps, *kinds.values(), colors=colours, linewidth=0.4, edgecolor="white")
        for kind, area in zip(kinds, areas, strict=True):
            area.set_hatch("///" if kind.endswith("+") else "")
            drawn.setdefault(kind, area)
        own.set_title(title, fontsize=9)
        own.set(xlim=(float(steps[0]), float(steps[-1])), ylim=(0, 1))
    for unused in axes.flat[len(panels) :]:
        unused.set_axis_off()
    figure.supxlabel("training step", fontsize=10)
    figure.supylabel("share of replicas", fontsize=10)
    order = sorted(drawn, key=lambda kind: (kind == OTHER, -int(kind.rstrip("+") if kind != OTHER else 0), kind))
    labels = [kind if kind == OTHER else f"{kind.rstrip('+')}-gon{' (+)' if '+' in kind else ''}" for kind in order]
    figure.legend(
        [drawn[kind] for kind in order], labels, loc="outside upper center", ncols=len(order), frameon=False, fontsize=8
    )
    return figure


@checked
def stages(series: Mapping[str, Stage]) -> Figure:
    """Loss and λ̂ (95 %) of a replica of each kind along training; letters say what it was when it changed."""
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for (kind, stage), colour, marker in zip(series.items(), cycle(COLOURS), cycle(MARKERS), strict=False):
        label = f"ends as {kind}"
        above.plot(stage.steps, stage.loss, color=colour, marker=marker, markersize=4, label=label)
        error = 1.96 * np.asarray(stage.llc_error)
        below.errorbar(stage.steps, stage.llc, error, color=colour, marker=marker, markersize=4, capsize=2, label=label)
        before = ""
        for step, llc, name in zip(stage.steps, stage.llc, stage.kinds, strict=True):
            if name != before:
                below.annotate(
                    name, (step, llc), xytext=(3, 5), textcoords="offset points", fontsize=8, color=colour, clip_on=True
                )
            before = name
    above.set(ylabel="mean loss [nats]", xscale="log")
    below.set(ylabel="λ̂", xlabel="training step")
    below.set_ylim(bottom=max(LOWEST, below.get_ylim()[0]))
    above.legend(frameon=False, fontsize=8)
    plain(above, below)
    return figure


@checked
def columns(models: Mapping[str, np.ndarray]) -> Figure:
    """Columns of W `[2, features]` in the plane, one panel a model, numbered by feature."""
    figure = Figure(figsize=(2.5 * len(models), 2.9), layout="constrained")
    axes = figure.subplots(1, len(models), squeeze=False, sharex=True, sharey=True)[0]
    reach = 1.25 * max(float(np.abs(weight).max()) for weight in models.values())
    for own, (title, weight) in zip(axes, models.items(), strict=True):
        for feature, (across, up) in enumerate(weight.T):
            own.plot([0, across], [0, up], color=COLOURS[1], marker="o", markevery=[1], markersize=4)
            length = float(np.hypot(across, up))
            if length > 0.1:
                own.annotate(
                    str(feature + 1), (across * (1 + 0.18 / length), up * (1 + 0.18 / length)), ha="center",
                    va="center", fontsize=8,
                )  # fmt: skip
        own.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
        own.set_title(title, fontsize=9)
    return figure


@checked
def strengths(panels: Mapping[str, tuple[Mapping[str, Tried], float]], goal: float) -> Figure:
    """Share of the wanted polygon (95 %) against a plan's strength, one panel a target: plans by name, and the base."""
    figure = Figure(figsize=(3.7 * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(name for tried, _ in panels.values() for name in tried))
    for own, (title, (tried, base)) in zip(axes, panels.items(), strict=True):
        for name, each in tried.items():
            at = names.index(name)
            own.errorbar(
                each.strength, each.share, 1.96 * np.asarray(each.error), color=MORE_COLOURS[at % len(MORE_COLOURS)],
                marker=MARKERS[at % len(MARKERS)], markersize=5, capsize=2, label=name,
            )  # fmt: skip
        own.axhline(base, color="#888888", linewidth=0.9, linestyle=":", label="base run")
        own.axhline(goal, color="#888888", linewidth=0.9, label="goal")
        own.set_title(title, fontsize=9)
        own.set(ylim=(-0.02, 1.02))
    figure.supxlabel("strength: rms of ρ − 1, before weights below 0 are clipped", fontsize=10)
    axes[0].set_ylabel("share of replicas that are as wanted")
    plain(*axes)
    handles = {label: handle for own in axes for handle, label in zip(*own.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


@checked
def weight_maps(panels: Mapping[str, np.ndarray]) -> Figure:
    """Weights ρ `[features, magnitudes]`, one panel a plan."""
    figure = Figure(figsize=(3.4 * len(panels), 2.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for own, (title, weights) in zip(axes, panels.items(), strict=True):
        image = own.imshow(
            weights, aspect="auto", cmap="cividis", vmin=0, vmax=BRIGHTEST, extent=(0, 1, len(weights) + 0.5, 0.5)
        )
        own.set_title(title, fontsize=9)
        own.set(xlabel="magnitude", yticks=range(1, len(weights) + 1))
    axes[0].set_ylabel("active feature")
    figure.colorbar(image, ax=list(axes), label="weight ρ", extend="max")
    return figure


@checked
def frequencies(series: Mapping[str, tuple[np.ndarray, np.ndarray]], ylabel: str) -> Figure:
    """A share over training for several frequencies: label to (steps, shares)."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    shades = matplotlib.colormaps["cividis"](np.linspace(0, 0.9, len(series)))
    for (label, (steps, values)), colour, line in zip(series.items(), shades, cycle(("-", "--", "-.")), strict=False):
        axes.plot(steps, values, color=colour, linestyle=line, linewidth=2, label=label)
    axes.axhline(0.5, color="#888888", linewidth=0.8)
    axes.set(xlabel="training step", ylabel=ylabel, ylim=(-0.02, 1.02))
    axes.legend(frameon=False, fontsize=8)
    plain(axes)
    return figure


def plain(*panels: Axes) -> None:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
