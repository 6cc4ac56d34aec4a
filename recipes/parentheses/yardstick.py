"""How well a score of kinds of string tells what whole runs on random weights came to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.stats
import xarray as xr

from patterning_fast.recipes.findings import Rows

from .settings import AT_RANDOM, FIT, LOW_LOSS, OOD

BOOTSTRAPS = 500
FOLDS = 8
DRAWS = 200
"""Random scores."""


def yardstick(fit: xr.Dataset, scores: Mapping[str, xr.Dataset]) -> Rows:
    """A row a score: its rank correlation over runs with accuracy out of distribution, within unbalanced strings.

    The same with what low loss tells taken out of both, and the score's cosine with that of low loss.
    """
    unbalanced = fit["kind"].values != "balanced"
    share = (fit["count"] / fit["count"].sum()).values[unbalanced]
    rho = fit["weights"].values[:, unbalanced]
    rho = rho / (rho @ share)[:, None] * share.sum() - 1.0  # of mean 0 over unbalanced strings
    outcome = fit["outcome"].values
    by_kind = {way: score["chi"].sel(component=OOD).values[unbalanced] for way, score in scores.items()}
    directions = {way: each - each @ share / share.sum() for way, each in by_kind.items()}
    told = {way: rho @ (share * each) for way, each in directions.items()}
    easy, generator = told[LOW_LOSS], np.random.default_rng(0)
    rows = [
        {
            "scored": way,
            **with_error(each, outcome, generator),
            "r, low loss taken out": partial_rank(each, outcome, easy) if way != LOW_LOSS else float("nan"),
            "cosine with low loss": cosine(directions[way], directions[LOW_LOSS], share),
            "r with the fit, over kinds": float(scipy.stats.spearmanr(directions[way], directions[FIT]).statistic),
        }
        for way, each in told.items()
    ]
    rows.append(
        {"scored": f"{FIT}, cross-validated", **with_error(cross_validated(rho, share, outcome), outcome, generator)}
    )
    drawn = [
        scipy.stats.spearmanr(rho @ (share * generator.standard_normal(len(share))), outcome).statistic
        for _ in range(DRAWS)
    ]
    rows.append({"scored": AT_RANDOM, "rank correlation over runs": 0.0, "± error": float(np.std(drawn))})
    every = list(rows[0])
    return [{name: row.get(name, float("nan")) for name in every} for row in rows]


def cosine(one: np.ndarray, other: np.ndarray, share: np.ndarray) -> float:
    return float((share * one) @ other / np.sqrt(((share * one) @ one) * ((share * other) @ other)))


def with_error(told: np.ndarray, outcome: np.ndarray, generator: np.random.Generator) -> dict[str, Any]:
    """The rank correlation over runs, and its standard error by drawing runs again, in pairs of inverse weights."""
    pairs = np.arange(len(outcome)).reshape(2, -1)
    drawn = []
    for _ in range(BOOTSTRAPS):
        runs = pairs[:, generator.integers(0, pairs.shape[1], pairs.shape[1])].ravel()
        drawn.append(scipy.stats.spearmanr(told[runs], outcome[runs]).statistic)
    return {
        "rank correlation over runs": float(scipy.stats.spearmanr(told, outcome).statistic),
        "± error": float(np.std(drawn)),
    }


def partial_rank(told: np.ndarray, outcome: np.ndarray, given: np.ndarray) -> float:
    """The rank correlation that is left once both are freed of what the third tells."""
    one, other, third = (scipy.stats.rankdata(each) for each in (told, outcome, given))
    rest = [each - np.polyval(np.polyfit(third, each, 1), third) for each in (one, other)]
    return float(np.corrcoef(*rest)[0, 1])


def cross_validated(rho: np.ndarray, share: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """What a fit to other runs says of each run; pairs of inverse weights stay together."""
    fold = np.tile(np.arange(len(outcome) // 2) % FOLDS, 2)
    found = np.empty(len(outcome))
    design = rho * np.sqrt(share)
    for each in range(FOLDS):
        seen = fold != each
        square = design[seen].T @ design[seen]
        ridge = np.trace(square) / len(square) * np.eye(len(square))
        found[~seen] = design[~seen] @ np.linalg.solve(
            square + ridge, design[seen].T @ (outcome[seen] - outcome[seen].mean())
        )
    return found
