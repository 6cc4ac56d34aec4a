"""What the parentheses recipe found, in tables, sentences and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import xarray as xr

from patterning_fast.recipes.findings import Findings, Picture, Rows
from patterning_fast.recipes.templates import sentences
from patterning_fast.recipes.verification import verification_picture, verification_rows

from .pictures import contribution_figure, expected_figure, outcome_figure
from .settings import (
    BALANCE,
    BASE,
    BY_HAND,
    COUNTING,
    FAILING,
    HELD,
    LEARNED,
    LLC,
    NESTED,
    OOD,
    RESPONSE,
    SHUFFLED,
    Part,
    Settings,
    early,
    named,
)
from .tables import cosine_rows, expected_rows, final, kind_rows, outcome, solution, weight_rows

AT_LEAST, AT_MOST = 0.9, 0.1
TEMPLATE = Path(__file__).with_name("findings.j2")


def findings(
    settings: Settings,
    kinds: np.ndarray,
    chosen: Mapping[str, list[int]],
    sources: Part,
    estimates: Mapping[str, xr.Dataset],
    answers: Mapping[str, xr.Dataset],
    response: xr.Dataset,
    weights: Mapping[str, np.ndarray],
    refused: Mapping[str, str],
    runs: Mapping[str, Part],
    verified: Mapping[str, Mapping[str, Any]],
) -> Findings:
    """What came out, in tables, sentences and pictures."""
    outcomes = [outcome(name, each, runs[BASE]) for name, each in runs.items()]
    row = {each["weights"]: each for each in outcomes}
    expected = expected_rows(response, kinds, weights, runs)
    ways = [way for way in (LLC, *map(early, settings.early_steps), RESPONSE, HELD) if way not in refused]
    values = {
        "base": row[BASE],
        "hand": row[named(BY_HAND, COUNTING)],
        "against": [
            both(row, way, strength) | {"apart": apart(runs, way, strength)}
            for way in ways
            for strength in settings.strengths
        ],
        "controls": [
            both(row, way, settings.strengths[-1], control) | {"what": what}
            for way in ways
            for control, what in ((SHUFFLED, "dealt out at random"), (BALANCE, "of their means by label"))
            if f"{named(way, NESTED, settings.strengths[-1])}, {control}" in row
        ],
        "refused": refused,
        "llc": {name: each["llc"].values.tolist() for name, each in estimates.items()},
        "n_beta": settings.n_beta,
        "localization": settings.localization,
        "verified": verified,
        "agreement": in_agreement(expected),
        "at_least": AT_LEAST,
        "at_most": AT_MOST,
    }
    everywhere = {**answers, **{name: response.sel(component=[name]) for name in (OOD, FAILING)}}
    return Findings(
        title="Choosing between two algorithms for parentheses",
        claim="Data weighted by what they contribute to the learning coefficients of two solutions that fit the "
        "training data alike decide which of them training finds (arXiv:2601.13548, §5).",
        goal="Of runs on weights for Nested at least 90 % have an accuracy out of distribution above 0.5, of runs on "
        "weights for Equal-Count at most 10 %; controls are as the base runs.",
        verdict=sentences(TEMPLATE, "verdict", **values),
        details=sentences(TEMPLATE, "details", **values),
        seeds=list(range(settings.seeds)),
        tables={
            "Accuracy out of distribution": outcomes,
            "The solutions that weights are made of": [
                solution(name, seed, at, each, sources)
                for name, each in estimates.items()
                for at, seed in enumerate(chosen[name])
            ],
            "Contributions and χ by kind of string": kind_rows(kinds, estimates, everywhere),
            "Directions of weights, as cosines": cosine_rows(kinds, estimates, everywhere),
            "Weights by kind of string": weight_rows(kinds, weights),
            "What the response of training says of all weights": expected,
        }
        | {
            f"Predicted against realised dμ at a solution of {name}": verification_rows(each)
            for name, each in verified.items()
        },
        pictures={
            "outcomes": Picture(
                outcome_figure(runs),
                "Accuracy out of distribution of every run, by the weights it was trained on: 1 is Nested, 0 "
                "Equal-Count. Bars are medians; hollow points have not learned the task (test accuracy below "
                f"{LEARNED}).",
            ),
            "contributions": Picture(
                contribution_figure(settings, estimates, everywhere, kinds, weights),
                "What a kind of string contributes to λ̂ of solutions of either kind, with 95 % errors of chains; how "
                "nestedness early in training, and accuracy out of distribution and the logarithm of the error on the "
                "task at its end, answer to more of it, beyond the mean over unbalanced strings, with 95 % errors of "
                "how runs differ; the weights.",
            ),
            "response": Picture(
                expected_figure(expected),
                "Mean accuracy out of distribution of the runs on each weighting, less that of the base runs: what the "
                "response of training, fitted to other runs on weights drawn at random, predicts to first order, and "
                "what came out, with 95 % errors. For weights made of that response the prediction is too large by the "
                "square of its noise.",
            ),
        }
        | {
            f"verification {name}": Picture(
                verification_picture(each),
                f"Predicted against realised change of mean loss shift at a solution of {name}, on weights for it by "
                "λ̂, by strength.",
            )
            for name, each in verified.items()
        },
        data={
            "runs": [
                {
                    "weights": name, "seed": seed, "step": step,
                    "test accuracy": float(each["test accuracy"][seed, at]),
                    "OOD accuracy": float(each["OOD accuracy"][seed, at]),
                }
                for name, each in runs.items()
                for seed in range(settings.seeds)
                for at, step in enumerate(each["steps"])
            ],
            "response_runs": [
                {"run": int(run), **dict(zip(map(str, response["kind"].values), rho, strict=True)),
                 **dict(zip(map(str, response["component"].values), ended, strict=True))}
                for run, (rho, ended) in enumerate(
                    zip(response["weights"].values.tolist(), response["outcomes"].values.T.tolist(), strict=True)
                )
            ],
            "weights": [
                {"sample": sample, "kind": str(kinds[sample])}
                | {name: float(each[sample]) for name, each in weights.items()}
                for sample in range(len(kinds))
            ],
        },
    )  # fmt: skip


def both(row: Mapping[str, Any], way: str, strength: float, control: str = "") -> dict[str, Any]:
    """What the weights for Nested and those for Equal-Count came to."""
    end = f", {control}" if control else ""
    up, down = (row[named(way, name, strength) + end] for name in (NESTED, COUNTING))
    return {"way": way, "strength": strength, "up": up, "down": down}


def apart(runs: Mapping[str, Part], way: str, strength: float) -> float:
    """p of a difference between runs on weights for either, two-sided (Mann and Whitney)."""
    up, down = (final(runs[named(way, name, strength)])[0] for name in (NESTED, COUNTING))
    return float(scipy.stats.mannwhitneyu(up, down).pvalue)


def in_agreement(expected: Rows) -> dict[str, float]:
    """How well the response of training tells what came of all weights that are not made of it."""
    others = [row for row in expected if RESPONSE not in row["weights"]]
    predicted, realised = ([row[name] for row in others] for name in ("predicted", "realised"))
    test = scipy.stats.spearmanr(predicted, realised)
    return {"count": len(others), "rank": float(test.statistic), "p": float(test.pvalue)}
