"""Pictures of the induction recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from patterning_fast.recipes.findings import Rows
from patterning_fast.report import figures

from .settings import GOALS
from .tables import token_classes


def heat_map(found: Mapping[str, Any]) -> tuple[xr.Dataset, list[int], list[str]]:
    """χ of the contexts kept for showing, their numbers and domains."""
    chi = found["chi"].double()
    heads, contexts, length = chi.shape
    table = xr.Dataset(
        {"chi": (("component", "token"), chi.reshape(heads, -1).numpy())},
        coords={"component": found["heads"], "sample": ("token", np.repeat(np.arange(contexts), length))},
    )
    return table, list(range(contexts)), found["shown"]


def mode_picture(found: Mapping[str, Any]) -> Figure:
    modes = found["modes"]
    loadings = np.zeros((len(modes["singular_value"]), found["data_loading"].numel()), np.float32)
    loadings[found["chosen"]] = found["data_loading"].numpy()
    table = xr.Dataset(
        {
            "singular_value": ("mode", modes["singular_value"].numpy()),
            "singular_value_error": ("mode", modes["singular_value_error"].numpy()),
            "component_loading": (("mode", "component"), modes["component_loading"].numpy()),
            "data_loading": (("mode", "token"), loadings),
        },
        coords={"component": found["heads"]},
        attrs={"noise_floor": found["noise_floor"]},
    )
    classes = {name: mask.flatten() for name, mask in token_classes(found).items()}
    return figures.mode_loadings(table, found["chosen"], found["scores"], classes)


def curves(runs: Mapping[str, Mapping[str, Any]], names: Sequence[str], seeds: Sequence[int]) -> Figure:
    """Induction scores over training: a thin line a run, their mean thick; controls in grey."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in names:
        colour, line = style(name)
        found = [runs[f"{name}, seed {seed}"]["history"] for seed in seeds]
        steps = [row["step"] for row in found[0]]
        scores = np.array([[row["induction_score"] for row in each] for each in found])
        if len(seeds) > 1:
            axes.plot(steps, scores.T, color=colour, linewidth=0.5, alpha=0.4)
        axes.plot(steps, scores.mean(0), color=colour, linestyle=line, linewidth=2, label=name)
    threshold = np.mean([runs[f"base, seed {seed}"]["history"][-1]["induction_score"] for seed in seeds]) / 2
    axes.axhline(threshold, color="#888888", linewidth=0.8)
    axes.annotate(
        "half of the base run's final score", (0, threshold), xytext=(2, 3), textcoords="offset points", fontsize=8
    )
    axes.set(xlabel="training step", ylabel="induction score (best head)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def style(name: str) -> tuple[str, Any]:
    """Colour and line of a run: one colour a kind; weaker plans and controls are broken lines."""
    kind, _, strength = name.partition(" ")
    if kind in ("amplified", "suppressed"):
        lines = {True: "-", False: (0, (1 + 10 * float(strength), 1.5))}
        return figures.COLOURS[1 if kind == "amplified" else 2], lines[float(strength) >= 0.5]
    of_controls = {
        "random": (3, "--"),
        "loss-matched": (5, "-."),
        "matched early": (4, "-."),
        "loss alone": (4, ":"),
        "length-matched": (3, "-."),
        "gradient": (4, "--"),
        "no loss": (5, ":"),
    }
    colour, line = of_controls.get(name, (0, "-"))
    return figures.COLOURS[colour], line


def ratios_picture(names: Sequence[str], formed: Mapping[str, list[float]], steps: int) -> Figure:
    """When each run formed the circuit over its base run, a point a seed."""
    figure = Figure(figsize=(8, 0.8 + 0.36 * len(names)), layout="constrained")
    axes = figure.subplots()
    base = np.array(formed["base"])
    axes.axvspan(1 - GOALS["control"], 1 + GOALS["control"], color="#eeeeee", linewidth=0)
    for goal in (1 / GOALS["amplified"], GOALS["suppressed"]):
        axes.axvline(goal, color="#888888", linewidth=0.8, linestyle="--")
    for row, name in enumerate(names):
        ratio = np.array(formed[name]) / base
        never = ~np.isfinite(ratio)
        colour = style(name)[0]
        axes.plot(ratio[~never], np.full((~never).sum(), row), "o", color=colour)
        axes.plot((steps / base)[never], np.full(never.sum(), row), ">", color=colour, fillstyle="none")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="step at which the circuit formed, over that of the base run")
    ticks = [0.4, 0.5, 0.7, 1.0, 1.4, 2.0]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def llc_picture(llc: Rows) -> Figure:
    """λ̂ along training of the runs that were followed."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["run"] for row in llc):
        rows = [row for row in llc if row["run"] == name]
        steps = sorted({row["step"] for row in rows})
        values = [[row["llc"] for row in rows if row["step"] == step] for step in steps]
        means = np.array([np.mean(each) for each in values])
        spread = np.array([(np.mean(each) - min(each), max(each) - np.mean(each)) for each in values]).T
        colour, line = style(name)
        axes.errorbar(steps, means, spread, color=colour, linestyle=line, marker="o", capsize=3, label=name)
    axes.set(xlabel="training step", ylabel="λ̂ of the whole model")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure
