"""Pictures of the parentheses recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from patterning_fast.recipes.findings import Rows
from patterning_fast.report import charts

from .settings import (
    ADJOINT,
    BALANCE,
    BASE,
    CHI,
    COUNTING,
    LLC,
    LOW_LOSS,
    NESTED,
    SHUFFLED,
    Part,
    Settings,
    named,
)
from .tables import final, relative

SHOWN = (ADJOINT, CHI, LOW_LOSS, LLC)


def outcome_figure(settings: Settings, runs: Mapping[str, Part]) -> Figure:
    """Accuracies out of distribution of the base runs, of those on the weights that matter and of their controls."""
    names = [BASE, *(named(way, name, settings.strengths[-1]) for way in SHOWN for name in (NESTED, COUNTING))]
    names += [f"{named(ADJOINT, NESTED, settings.strengths[-1])}, {control}" for control in (SHUFFLED, BALANCE)]
    ends = {name: final(runs[name]) for name in names if name in runs}
    return charts.runs(
        {name: ood for name, (ood, _) in ends.items()}, "accuracy out of distribution", [0.5],
        hollow={name: ~learned for name, (_, learned) in ends.items()},
    )  # fmt: skip


def score_figure(scores: Mapping[str, xr.Dataset]) -> Figure:
    """The scores of kinds of string, a panel a way."""
    kinds = [str(kind) for kind in next(iter(scores.values()))["kind"].values]
    return charts.bars(kinds, {way: {"": relative(scores[way])} for way in SHOWN if way in scores})


def yardstick_figure(rows: Rows) -> Figure:
    """How well each score tells what whole runs came to."""
    names = [row["scored"] for row in rows]
    values, errors = (np.array([row[name] for row in rows]) for name in ("rank correlation over runs", "± error"))
    return charts.bars(names, {"rank correlation over runs": {"": (values, errors)}})


def llc_figure(solutions: Sequence[Mapping[str, float | str]]) -> Figure:
    """λ̂ of solutions of either kind against their accuracy out of distribution."""
    groups = {}
    for name in (NESTED, COUNTING):
        mine = [row for row in solutions if row["solution"] == name]
        x, y, error = ([float(row[key]) for row in mine] for key in ("OOD accuracy", "llc", "llc_error"))
        groups[name] = charts.Points(x, y, y_error=error)
    return charts.scatter({"": groups}, "accuracy out of distribution", "λ̂")
