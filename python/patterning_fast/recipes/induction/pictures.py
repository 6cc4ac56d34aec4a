"""Pictures of the induction recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from patterning_fast.recipes.findings import Rows
from patterning_fast.report import charts

from .settings import GOALS
from .tables import Runs


def weight_picture(sources: Rows, found: Mapping[int, Mapping[str, Any]], formed: Mapping[str, list[float]]) -> Figure:
    """Steps to the circuit over base against the weight of what induction predicts: a name a source, a point a seed."""
    base = np.array(formed["base"])
    panels = {}
    for row in sources:
        name = row["weights by"]
        if name in formed:
            ratio = np.array(formed[name]) / base
            there = np.isfinite(ratio)
            x = np.array([each["on repeats"][name] for each in found.values()])
            if there.any():
                panels[name] = charts.Points(x[there], ratio[there])
    return charts.scatter({"": panels}, "mean ρ of what induction predicts", "step of the circuit, over base")


def curves(runs: Runs, names: Sequence[str], seeds: Sequence[int]) -> Figure:
    """Induction scores over training."""
    series = {}
    for name in names:
        histories = [runs[f"{name}, seed {seed}"]["history"] for seed in seeds]
        scores = np.array([[row["induction_score"] for row in each] for each in histories])
        series[name] = (np.array([row["step"] for row in histories[0]]), scores)
    threshold = float(series["base"][1][:, -1].mean() / 2)
    levels = {"half of the base run's final score": threshold}
    return charts.lines(series, "training step", "induction score (best head)", levels, log=False)


def ratios(names: Sequence[str], formed: Mapping[str, list[float]], steps: int) -> Figure:
    """When each run formed the circuit over its base run, a point a seed; hollow ones never did within the run."""
    base = np.array(formed["base"])
    found = {name: np.array(formed[name]) / base for name in names}
    never = {name: ~np.isfinite(each) for name, each in found.items()}
    return charts.runs(
        {name: np.where(never[name], steps / base, each) for name, each in found.items()},
        "step at which the circuit formed, over that of the base run", [1 / GOALS["amplified"], GOALS["suppressed"]],
        hollow=never, band=(1 - GOALS["control"], 1 + GOALS["control"]), log=True,
    )  # fmt: skip


def mode_picture(found: Mapping[str, Any]) -> Figure:
    """The mode taken as induction: its loadings on heads beside scores measured apart from χ."""
    rows = found["components"]
    columns = ("loading", "induction score", "previous token score")
    return charts.bars(
        [row["component"] for row in rows],
        {name: {"": (np.array([row[name] for row in rows]), 0.0)} for name in columns},
    )


def classes_picture(found: Mapping[str, Any]) -> Figure:
    """The mode's loadings on contexts by class, a point a context."""
    loading, classes = found["loading"].numpy(), np.array(found["classes"])[: len(found["loading"])]
    return charts.runs({str(name): loading[classes == name] for name in np.unique(classes)}, "loading (rms 1)", [0.0])
