"""Tables of the parentheses recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
import xarray as xr

from patterning_fast.recipes.findings import Rows

from .settings import BASE, LEARNED, OOD, Part, is_control
from .weights import mean_of_unbalanced


def final(run: Part) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy out of distribution at the end, and which runs have learned the task."""
    return run[OOD][:, -1].numpy(), run["test accuracy"][:, -1].numpy() >= LEARNED


def outcome(name: str, run: Part, base: Part) -> dict[str, Any]:
    """How the runs of a weighting ended, and whether that differs from the base runs."""
    (ood, learned), (base_ood, _) = final(run), final(base)
    above, base_above = int((ood > 0.5).sum()), int((base_ood > 0.5).sum())
    counts = [[above, len(ood) - above], [base_above, len(base_ood) - base_above]]
    same = name == BASE
    return {
        "weights": name,
        "runs": len(ood),
        "above 0.5": above / len(ood),
        "have learned": int(learned.sum()),
        "of these above 0.5": float((ood[learned] > 0.5).mean()) if learned.any() else float("nan"),
        "median": float(np.median(ood)),
        "least": float(ood.min()),
        "most": float(ood.max()),
        "p Mann–Whitney": float("nan") if same else float(scipy.stats.mannwhitneyu(ood, base_ood).pvalue),
        "p Fisher": float("nan") if same else float(scipy.stats.fisher_exact(counts).pvalue),
    }


def solution_rows(
    chosen: Mapping[str, Sequence[int]], sources: Part, coefficients: Mapping[str, Mapping[str, Any]]
) -> Rows:
    """λ̂ of every solution, with its error."""
    return [
        {"solution": name, "run": at}
        | {kind: float(sources[kind][at, -1]) for kind in (OOD, "test accuracy")}
        | {key: each for key, each in coefficients[f"λ̂ of {name}, run {at}"].items() if key != "contribution"}
        for name, runs in chosen.items()
        for at in runs
    ]


def score_rows(scores: Mapping[str, xr.Dataset]) -> Rows:
    """The score of each kind of string in every way, in standard deviations over unbalanced strings."""
    first = next(iter(scores.values()))
    columns = {way: relative(score) for way, score in scores.items()}
    return [
        {"kind": str(kind), "strings": int(first["count"][at])}
        | {way: f"{mean[at]:.2f} ± {error[at]:.2f}" for way, (mean, error) in columns.items()}
        for at, kind in enumerate(first["kind"].values)
    ]


def relative(score: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """A score by kind beyond its mean over unbalanced strings, and its error, in standard deviations over these."""
    beyond = score["chi"].values[0] - mean_of_unbalanced(score)
    counts = np.where(score["kind"].values == "balanced", 0, score["count"].values)
    spread = np.sqrt((beyond**2 * counts).sum() / counts.sum())
    return beyond / spread, score["chi_error"].values[0] / spread


def weight_rows(kinds: np.ndarray, weights: Mapping[str, np.ndarray]) -> Rows:
    """Mean weights of each kind of string, where kinds tell weights."""
    own = {name: each for name, each in weights.items() if not is_control(name)}
    return [
        {"kind": str(kind)} | {name: float(each[kinds == kind].mean()) for name, each in own.items()}
        for kind in np.unique(kinds)
    ]


def run_rows(runs: Mapping[str, Part]) -> Rows:
    """Accuracies of every run at every step they were measured at."""
    return [
        {"weights": name, "seed": seed, "step": step}
        | {kind: float(each[kind][seed, at]) for kind in ("test accuracy", OOD)}
        for name, each in runs.items()
        for seed in range(len(each[OOD]))
        for at, step in enumerate(each["steps"])
    ]


def fit_rows(fit: xr.Dataset) -> Rows:
    """Weights by kind and outcome of the runs on weights drawn at random."""
    kinds = list(map(str, fit["kind"].values))
    return [
        {"run": run} | dict(zip(kinds, rho, strict=True)) | {OOD: float(ended)}
        for run, (rho, ended) in enumerate(zip(fit["weights"].values.tolist(), fit["outcome"].values, strict=True))
    ]
