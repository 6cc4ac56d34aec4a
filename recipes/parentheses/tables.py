"""Tables of the parentheses recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.stats
import xarray as xr

from patterning_fast.recipes.findings import Rows

from .settings import BASE, CHI, COUNTING, LEARNED, LLC, NESTED, Part, is_control


def final(run: Part) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy out of distribution at the end, and which runs have learned the task."""
    return run["OOD accuracy"][:, -1].numpy(), run["test accuracy"][:, -1].numpy() >= LEARNED


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


def solution(name: str, seed: int, at: int, estimates: xr.Dataset, sources: Part) -> dict[str, Any]:
    """A solution's learning coefficient and its errors."""
    return {
        "solution": name,
        "run": seed,
        "OOD accuracy": float(sources["OOD accuracy"][seed, -1]),
        "test accuracy": float(sources["test accuracy"][seed, -1]),
        "llc": float(estimates["llc"][at]),
        "llc error": float(estimates["llc_error"][at]),
        "mean loss above w*": float(estimates["mu"][at]),
        "r_hat": float(estimates["r_hat"][at]),
    }


def kind_rows(kinds: np.ndarray, estimates: Mapping[str, xr.Dataset], answers: Mapping[str, xr.Dataset]) -> Rows:
    """Each kind of string: how many, what one contributes, and how nestedness answers to it, in thousandths."""
    columns = {
        f"1000 · contribution, {name}": (each["contribution"].values[0], each["contribution_error"].values[0])
        for name, each in estimates.items()
    }
    columns |= {f"1000 · {answering(name)}": relative(each) for name, each in answers.items()}
    return [
        {"kind": str(kind), "strings": int((kinds == kind).sum())}
        | {label: f"{1000 * mean[at]:.3g} ± {1000 * error[at]:.2g}" for label, (mean, error) in columns.items()}
        for at, kind in enumerate(estimates[NESTED]["kind"].values)
    ]


def answering(way: str) -> str:
    """What answers to data in the estimate that a way is made of."""
    return f"χ of nestedness {way.removeprefix(CHI)}" if way.startswith(CHI) else f"response of {way}"


def relative(answers: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """χ `[kinds]` beyond its mean over unbalanced strings, which is what weights are made of, and its error."""
    chi = answers["chi_group"].values[0]
    counts = np.where(answers["kind"].values == "balanced", 0, answers["count"].values)
    beyond = chi - (chi @ counts / counts.sum())[:, None]
    return beyond.mean(0), beyond.std(0, ddof=1) / np.sqrt(len(chi))


def cosine_rows(kinds: np.ndarray, estimates: Mapping[str, xr.Dataset], answers: Mapping[str, xr.Dataset]) -> Rows:
    """How alike the directions for Nested are that ways give over the strings, balanced ones left out."""
    unbalanced = estimates[NESTED]["kind"].values != "balanced"
    count = np.array([(kinds == kind).sum() for kind in estimates[NESTED]["kind"].values])[unbalanced]
    less = estimates[COUNTING]["contribution"].values[0] - estimates[NESTED]["contribution"].values[0]
    directions = {LLC: less[unbalanced]} | {name: relative(each)[0][unbalanced] for name, each in answers.items()}
    unit = {}
    for name, each in directions.items():
        centred = np.sqrt(count) * (each - each @ count / count.sum())
        unit[name] = centred / np.linalg.norm(centred)
    return [{"way": name} | {other: float(each @ unit[other]) for other in unit} for name, each in unit.items()]


def expected_rows(
    response: xr.Dataset, kinds: np.ndarray, weights: Mapping[str, np.ndarray], runs: Mapping[str, Part]
) -> Rows:
    """Of each weighting, the change of mean accuracy out of distribution that the response predicts, and what came."""
    share = response["count"].values / response["count"].values.sum()
    base, _ = final(runs[BASE])
    rows: Rows = []
    for name, each in weights.items():
        mass = share * (np.array([each[kinds == kind].mean() for kind in response["kind"].values]) / each.mean() - 1.0)
        of_runs = response["chi_group"].values[0] @ mass
        ood, _ = final(runs[name])
        rows.append(
            {
                "weights": name,
                "predicted": float(of_runs.mean()),
                "predicted error": float(of_runs.std(ddof=1) / np.sqrt(len(of_runs))),
                "realised": float(ood.mean() - base.mean()),
                "realised error": float(np.sqrt(ood.var(ddof=1) / len(ood) + base.var(ddof=1) / len(base))),
            }
        )
    return rows


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
        | {kind: float(each[kind][seed, at]) for kind in ("test accuracy", "OOD accuracy")}
        for name, each in runs.items()
        for seed in range(len(each["OOD accuracy"]))
        for at, step in enumerate(each["steps"])
    ]


def response_rows(response: xr.Dataset) -> Rows:
    """Weights by kind and outcomes of the runs on weights drawn at random."""
    kinds, outcomes = (list(map(str, response[name].values)) for name in ("kind", "component"))
    return [
        {"run": run} | dict(zip(kinds, rho, strict=True)) | dict(zip(outcomes, ended, strict=True))
        for run, (rho, ended) in enumerate(
            zip(response["weights"].values.tolist(), response["outcomes"].values.T.tolist(), strict=True)
        )
    ]
