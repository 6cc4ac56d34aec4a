"""Pictures of the induction recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from patterning_fast.recipes.findings import Rows
from patterning_fast.report import charts, figures

from .settings import GOALS
from .tables import token_classes


def chi_picture(found: Mapping[str, Any]) -> Figure:
    """χ of the contexts kept for showing."""
    chi = found["chi"].double()
    heads, contexts, length = chi.shape
    table = xr.Dataset(
        {"chi": (("component", "token"), chi.reshape(heads, -1).numpy())},
        coords={"component": found["heads"], "sample": ("token", np.repeat(np.arange(contexts), length))},
    )
    return figures.chi_heat_map(table, list(range(contexts)), found["shown"])


def mode_picture(found: Mapping[str, Any]) -> Figure:
    """The mode taken as induction: its size, its heads, its tokens."""
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
    """Induction scores over training."""
    series = {}
    for name in names:
        histories = [runs[f"{name}, seed {seed}"]["history"] for seed in seeds]
        scores = np.array([[row["induction_score"] for row in each] for each in histories])
        series[name] = (np.array([row["step"] for row in histories[0]]), scores)
    threshold = float(series["base"][1][:, -1].mean() / 2)
    levels = {"half of the base run's final score": threshold}
    return charts.lines(series, "training step", "induction score (best head)", levels, log=False)


def ratios_picture(names: Sequence[str], formed: Mapping[str, list[float]], steps: int) -> Figure:
    """When each run formed the circuit over its base run, a point a seed; hollow ones never did within the run."""
    base = np.array(formed["base"])
    ratios = {name: np.array(formed[name]) / base for name in names}
    never = {name: ~np.isfinite(each) for name, each in ratios.items()}
    return charts.runs(
        {name: np.where(never[name], steps / base, each) for name, each in ratios.items()},
        "step at which the circuit formed, over that of the base run", [1 / GOALS["amplified"], GOALS["suppressed"]],
        hollow=never, band=(1 - GOALS["control"], 1 + GOALS["control"]), log=True,
    )  # fmt: skip


def llc_picture(llc: Rows) -> Figure:
    """λ̂ along training of the runs that were followed."""
    series = {}
    for name in dict.fromkeys(row["run"] for row in llc):
        rows = [row for row in llc if row["run"] == name]
        steps = sorted({row["step"] for row in rows})
        values = [[row["llc"] for row in rows if row["step"] == step] for step in steps]
        series[name] = (np.array(steps), np.array(values).T)
    return charts.lines(series, "training step", "λ̂ of the whole model", {}, log=False)
