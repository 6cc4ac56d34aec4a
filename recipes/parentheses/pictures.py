"""Pictures of the parentheses recipe."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from patterning_fast.recipes.findings import Rows
from patterning_fast.report import charts

from .settings import BALANCE, BASE, COUNTING, HELD, LLC, NESTED, SHUFFLED, Part, Settings, early, is_control, named
from .tables import final, relative


def outcome_figure(settings: Settings, runs: Mapping[str, Part]) -> Figure:
    """Accuracies out of distribution of the base runs, of those on the weights that matter and of their controls."""
    held = [named(HELD, name, settings.strengths[-1]) for name in (NESTED, COUNTING)]
    by_llc = [named(LLC, name, settings.strengths[-1]) for name in (NESTED, COUNTING)]
    names = [BASE, *held, *by_llc, *(f"{held[0]}, {control}" for control in (SHUFFLED, BALANCE))]
    ends = {name: final(runs[name]) for name in names if name in runs}
    return charts.runs(
        {name: ood for name, (ood, _) in ends.items()}, "accuracy out of distribution", [0.5],
        hollow={name: ~learned for name, (_, learned) in ends.items()},
    )  # fmt: skip


def contribution_figure(
    settings: Settings,
    estimates: Mapping[str, xr.Dataset],
    answers: Mapping[str, xr.Dataset],
    kinds: np.ndarray,
    weights: Mapping[str, np.ndarray],
) -> Figure:
    """Contributions and χ by kind of string beside the weights."""
    names = [str(kind) for kind in estimates[NESTED]["kind"].values]
    panels = {
        "contribution to λ̂, thousandths": {
            name: tuple(1000 * each[variable].values[0] for variable in ("contribution", "contribution_error"))
            for name, each in estimates.items()
        },
        "response, standard deviations": {
            name: tuple(part / mean.std() for part in (mean, error))
            for name, (mean, error) in ((name, relative(each)) for name, each in answers.items())
        },
        "weight ρ": {
            name: (np.array([weights[name][kinds == kind].mean() for kind in names]), 0.0)
            for way in (LLC, early(settings.early_steps[0]), HELD)
            if (name := named(way, NESTED, settings.strengths[-1])) in weights
        },
    }
    return charts.bars(names, panels)


def expected_figure(expected: Rows) -> Figure:
    """Predicted against realised change of accuracy, a point a weighting."""
    groups: dict[str, list[dict[str, float]]] = {}
    for row in expected:
        name = row["weights"]
        kind = "controls" if is_control(name) else name.split(", ", 1)[1].rpartition(",")[0] or "by hand"
        groups.setdefault(kind, []).append(row)
    columns = ("predicted", "realised", "predicted error", "realised error")
    points = {name: charts.Points(*([row[each] for row in rows] for each in columns)) for name, rows in groups.items()}
    return charts.scatter({"": points}, "predicted change of mean OOD accuracy", "realised change", diagonal=True)
