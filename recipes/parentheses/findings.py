"""What the parentheses recipe found, in tables, sentences and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import xarray as xr

from patterning_fast.recipes.findings import Findings, Rows, findings_of
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
from .tables import (
    cosine_rows,
    expected_rows,
    final,
    kind_rows,
    outcome,
    response_rows,
    run_rows,
    solution,
    weight_rows,
)

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
        "least_learned": LEARNED,
    }
    everywhere = {**answers, **{name: response.sel(component=[name]) for name in (OOD, FAILING)}}
    tables = {
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
    } | {
        f"Predicted against realised dμ at a solution of {name}": verification_rows(each)
        for name, each in verified.items()
    }
    pictures = {
        "outcomes": outcome_figure(settings, runs),
        "contributions": contribution_figure(settings, estimates, everywhere, kinds, weights),
        "response": expected_figure(expected),
    } | {f"verification_{name.replace('-', '_')}": verification_picture(each) for name, each in verified.items()}
    data = {
        "runs": run_rows(runs),
        "response_runs": response_rows(response),
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
