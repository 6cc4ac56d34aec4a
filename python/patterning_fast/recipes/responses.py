"""Whether a recipe's χ is a response: its covariances beside the derivative of the same chains."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import patterning_fast as pf
from patterning_fast.categories import PatterningWarning
from patterning_fast.recipes.findings import Findings, Rows

TABLE = "Covariances against responses"


def comparison(
    posterior: pf.LocalPosterior, sampler: pf.SGLD, components: Mapping[str, pf.Component] | None, **sampling: Any
) -> dict[str, Rows]:
    """`fluctuation_dissipation` of some components, as rows of a report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PatterningWarning)  # the rows say what it would
        found = pf.fluctuation_dissipation(posterior, sampler, components=components, **sampling | {"progress": False})
    return {
        "rows": [
            {
                "component": str(name),
                "slope": float(found["slope"].sel(component=name)),
                "± error": float(found["slope_error"].sel(component=name)),
                "correlation": float(found["correlation"].sel(component=name)),
                "reliability of covariances": float(found["covariance_reliability"].sel(component=name)),
                "reliability of responses": float(found["response_reliability"].sel(component=name)),
                "settled": bool(found["settled"].sel(component=name)),
                "blind": float(found["blind"].sel(component=name)),
                "verdict": str(found["verdict"].sel(component=name).item()),
            }
            for name in found["component"].values
        ]
    }


def with_comparison(findings: Findings, rows: Rows, whose: str) -> Findings:
    """Findings with the comparison as a table, and what it comes to in a sentence."""
    agreeing = [str(row["component"]) for row in rows if row["verdict"] == "agree"]
    unsettled = [str(row["component"]) for row in rows if not row["settled"]]
    said = (
        f"Covariances {whose} were held against the derivative of the same chains: they agree for "
        f"{', '.join(agreeing) or 'no component'} of {len(rows)}; chains had not settled for "
        f"{', '.join(unsettled) or 'none'}."
    )
    return replace(findings, details=[*findings.details, said], tables=findings.tables | {TABLE: rows})
