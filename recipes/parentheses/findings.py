"""What the parentheses recipe found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import xarray as xr

from patterning_fast.recipes.findings import Findings, Rows, findings_of
from patterning_fast.recipes.responses import TABLE

from .pictures import llc_figure, outcome_figure, score_figure, yardstick_figure
from .settings import (
    BALANCE,
    BASE,
    BY_HAND,
    CONTROLLED,
    COUNTING,
    FIT,
    LEARNED,
    NESTED,
    SHUFFLED,
    Part,
    Settings,
    named,
)
from .tables import final, fit_rows, outcome, run_rows, score_rows, solution_rows, weight_rows
from .yardstick import yardstick

AT_LEAST, AT_MOST = 0.9, 0.1
TEMPLATE = Path(__file__).with_name("findings.j2")


def findings(
    settings: Settings,
    kinds: np.ndarray,
    scores: Mapping[str, xr.Dataset],
    weights: Mapping[str, np.ndarray],
    refused: Mapping[str, str],
    runs: Mapping[str, Part],
    sources: Part,
    chosen: Mapping[str, list[int]],
    coefficients: Mapping[str, Mapping[str, Any]],
    adjoint: Mapping[str, Any],
    agreement: Rows,
    seconds: Mapping[str, float],
) -> Findings:
    """What came out, in tables, sentences and pictures."""
    outcomes = [outcome(name, each, runs[BASE]) for name, each in runs.items()]
    row = {each["weights"]: each for each in outcomes}
    held = yardstick(scores[FIT], scores)
    solved = solution_rows(chosen, sources, coefficients)
    by_kind = {name: [each["llc"] for each in solved if each["solution"] == name] for name in chosen}
    values = {
        "base": row[BASE],
        "hand": row[named(BY_HAND, COUNTING)],
        "against": [
            both(row, way, strength) | {"apart": apart(runs, way, strength)}
            for way in scores
            for strength in settings.strengths
            if named(way, NESTED, strength) in row
        ],
        "controls": [
            both(row, CONTROLLED, settings.strengths[-1], control) | {"what": what}
            for control, what in ((SHUFFLED, "dealt out at random"), (BALANCE, "of their means by label"))
            if CONTROLLED not in refused
        ],
        "refused": refused,
        "yardstick": {each["scored"]: each for each in held},
        "llc": by_kind,
        "llc_p": float(scipy.stats.mannwhitneyu(*by_kind.values()).pvalue),
        "second": {name: of_second_order(solved, name) for name in ("λ of the loss", "λ of margins")},
        "llc_settled": sum(bool(each["settled"]) for each in solved),
        "solved": len(solved),
        "settings": settings,
        "growth": np.quantile(adjoint["growth"].numpy(), (0.5, 1.0)).tolist(),
        "halves": float(adjoint["agreement"][0]),
        "seconds": seconds,
        "at_least": AT_LEAST,
        "at_most": AT_MOST,
        "least_learned": LEARNED,
    }
    tables = {
        "Accuracy out of distribution": outcomes,
        "How well scores of kinds tell what whole runs came to": held,
        "λ̂ of solutions": solved,
        "Scores of kinds of string, in standard deviations over unbalanced strings": score_rows(scores),
        "Weights by kind of string": weight_rows(kinds, weights),
        TABLE: agreement,
    }
    pictures = {
        "outcomes": outcome_figure(settings, runs),
        "yardstick": yardstick_figure(held),
        "scores": score_figure(scores),
        "llc": llc_figure(solved),
    }
    data = {
        "runs": run_rows(runs),
        "random_runs": fit_rows(scores[FIT]),
        "weights": [
            {"sample": sample, "kind": str(kind)} | {name: float(each[sample]) for name, each in weights.items()}
            for sample, kind in enumerate(kinds)
        ],
    }
    seeds = range(settings.seeds)
    return findings_of(TEMPLATE, values, seeds=seeds, tables=tables, pictures=pictures, data=data)


def both(row: Mapping[str, Any], way: str, strength: float, control: str = "") -> dict[str, Any]:
    """What the weights for Nested and those for Equal-Count came to."""
    end = f", {control}" if control else ""
    up, down = (row[named(way, name, strength) + end] for name in (NESTED, COUNTING))
    return {"way": way, "strength": strength, "up": up, "down": down}


def of_second_order(solved: Rows, name: str) -> dict[str, Any]:
    """The medians of a λ over solutions of each kind, whether they differ, and how much larger it is at a larger nβ."""
    columns = [each for each in solved[0] if each.startswith(name)]
    values = {
        kind: np.array([[row[each] for each in columns] for row in solved if row["solution"] == kind])
        for kind in (NESTED, COUNTING)
    }
    every = np.concatenate(list(values.values()))
    return {
        "medians": {kind: float(np.median(each[:, 0])) for kind, each in values.items()},
        "p": float(scipy.stats.mannwhitneyu(*(each[:, 0] for each in values.values())).pvalue),
        "colder": float(np.median(every[:, 1] / every[:, 0])),
    }


def apart(runs: Mapping[str, Part], way: str, strength: float) -> float:
    """p of a difference between runs on weights for either, two-sided (Mann and Whitney)."""
    up, down = (final(runs[named(way, name, strength)])[0] for name in (NESTED, COUNTING))
    return float(scipy.stats.mannwhitneyu(up, down).pvalue)
