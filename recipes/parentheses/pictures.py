"""Pictures of the parentheses recipe."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from patterning_fast.recipes.findings import Rows
from patterning_fast.report.figures import COLOURS

from .settings import COUNTING, HELD, LLC, NESTED, RESPONSE, Part, Settings, early, is_control, named
from .tables import answering, final, relative


def colour_of(name: str) -> str:
    return COLOURS[2] if name.startswith(NESTED) else COLOURS[1] if name.startswith(COUNTING) else COLOURS[0]


def outcome_figure(runs: Mapping[str, Part]) -> Figure:
    """Every run's accuracy out of distribution, by weights."""
    figure = Figure(figsize=(9, 0.9 + 0.42 * len(runs)), layout="constrained")
    axes = figure.subplots()
    jitter = np.random.default_rng(0)
    for at, (name, each) in enumerate(runs.items()):
        ood, learned = final(each)
        down, colour = at + jitter.uniform(-0.2, 0.2, len(ood)), colour_of(name)
        for mask, face in ((learned, colour), (~learned, "none")):
            axes.scatter(ood[mask], down[mask], s=22, facecolors=face, edgecolors=colour, alpha=0.8)
        axes.vlines(np.median(ood), at - 0.32, at + 0.32, color=colour, linewidth=2)
    axes.axvline(0.5, color="#888888", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(runs)), list(runs))
    axes.set(xlabel="accuracy out of distribution", xlim=(-0.03, 1.03), ylim=(len(runs) - 0.5, -0.5))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def contribution_figure(
    settings: Settings,
    estimates: Mapping[str, xr.Dataset],
    answers: Mapping[str, xr.Dataset],
    kinds: np.ndarray,
    weights: Mapping[str, np.ndarray],
) -> Figure:
    """Contributions and χ by kind of string beside the weights."""
    figure = Figure(figsize=(3 + 3 * (2 + len(answers)), 6.5), layout="constrained")
    widths = [1.0] * (1 + len(answers)) + [1.4]
    left, *middle, right = figure.subplots(1, 2 + len(answers), sharey=True, width_ratios=widths)
    names = [str(kind) for kind in estimates[NESTED]["kind"].values]
    places = np.arange(len(names))
    for shift, (solved, each) in zip((-0.19, 0.19), estimates.items(), strict=True):
        left.barh(
            places + shift, 1000 * each["contribution"].values[0], 0.36,
            xerr=1960 * each["contribution_error"].values[0], color=colour_of(solved), label=solved,
        )  # fmt: skip
    for axes, (name, each) in zip(middle, answers.items(), strict=True):
        mean, error = relative(each)
        axes.barh(places, 1000 * mean, 0.5, xerr=1960 * error, color="#888888")
        axes.set_xlabel(f"1000 · {answering(name)}")
    ways = (LLC, early(settings.early_steps[0]), HELD)
    shown = [named(way, name, settings.strengths[-1]) for way in ways for name in (NESTED, COUNTING)]
    shown = [name for name in shown if name in weights]
    for at, name in enumerate(shown):
        means = [float(weights[name][kinds == kind].mean()) for kind in names]
        hatch = ("", "///", "...")[at // 2]
        right.barh(
            places - 0.35 + 0.14 * at, means, 0.13, color=colour_of(name), label=name, hatch=hatch, edgecolor="white"
        )
    left.set_yticks(places, names)
    left.set_xlabel("1000 · contribution of a string to λ̂")
    right.set_xlabel("weight ρ")
    for axes in (left, *middle):
        axes.axvline(0, color="black", linewidth=0.8)
    right.axvline(1, color="black", linewidth=0.8, linestyle="--")
    for axes in (left, *middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=8)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=3, frameon=False, fontsize=8)
    return figure


def expected_figure(expected: Rows) -> Figure:
    """Predicted against realised change of accuracy, a point a weighting."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    axes.axline((0, 0), slope=1, color="#888888", linewidth=0.8)
    for label, marker, belongs in (
        ("by response of training", "o", lambda name: RESPONSE in name and HELD not in name and not is_control(name)),
        ("the same, task held", "^", lambda name: HELD in name and not is_control(name)),
        ("other ways, by hand", "s", lambda name: RESPONSE not in name and not is_control(name)),
        ("controls", "x", is_control),
    ):
        rows = [row for row in expected if belongs(row["weights"])]
        for favoured in (NESTED, COUNTING):
            own = [row for row in rows if row["weights"].startswith(favoured)]
            x, across, y, up = (
                np.array([row[name] for row in own])
                for name in ("predicted", "predicted error", "realised", "realised error")
            )
            axes.errorbar(
                x, y, 1.96 * up, 1.96 * across, fmt=marker, color=colour_of(favoured), elinewidth=0.6, markersize=5,
                label=f"{favoured}, {label}",
            )  # fmt: skip
    axes.set(xlabel="predicted change of mean OOD accuracy", ylabel="realised change")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure
