"""What the induction recipe found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from patterning_fast.recipes.findings import Findings, Rows, findings_of
from patterning_fast.recipes.responses import TABLE
from patterning_fast.recipes.verification import verification_picture, verification_rows

from .pictures import classes_picture, curves, mode_picture, ratios, weight_picture
from .settings import CONTROLS, GOALS, ON_THE_WAY, SOURCES, Settings
from .tables import Runs, formed_at, history_rows, mode_table, run_table, source_table, weight_columns

TEMPLATE = Path(__file__).with_name("findings.j2")


def findings(
    settings: Settings,
    runs: Runs,
    found: Mapping[int, Mapping[str, Any]],
    checks: Mapping[int, Mapping[str, Any]],
    agreement: Rows,
) -> Findings:
    """All that is to be said of the runs."""
    seeds = list(settings.seeds)
    first = found[seeds[0]]
    heads = [row for each in found.values() for row in each["components"]]
    names = ["base", "amplified", "suppressed", *settings.retrained]
    formed = {name: [formed_at(runs, name, seed) for seed in seeds] for name in names}
    sources = source_table(found, formed)
    rows = run_table(runs, names, seeds, formed)
    tables = (
        {
            "Runs": rows,
            "Sources of weights": sources,
            "Circuit formed at step, by seed": [
                {"seed": seed} | {name: formed[name][at] for name in names} for at, seed in enumerate(seeds)
            ],
            f"Heads, seed {seeds[0]}": first["components"],
            f"Modes of χ by context, seed {seeds[0]}": mode_table(first),
            "Contexts the mode loads on most, either way": first["extremes"],
        }
        | ({TABLE: agreement} if agreement else {})
        | (
            {f"Plans on the way, seed {seeds[0]}": runs[f"{ON_THE_WAY}, seed {seeds[0]}"]["decisions"]}
            if ON_THE_WAY in names
            else {}
        )
        | {f"Predicted against realised dμ, seed {seed}": verification_rows(each) for seed, each in checks.items()}
    )
    pictures = {
        "ratios": ratios(names[1:], formed, settings.train_steps),
        "weights": weight_picture(sources, found, formed),
        "curves": curves(runs, names, seeds),
        "mode": mode_picture(first),
        "classes": classes_picture(first),
    }
    for verified in list(checks.values())[:1]:
        pictures["verification"] = verification_picture(verified)
    values = against_goals(settings, formed) | {
        "found": found,
        "rows": {row["run"]: row for row in rows},
        "sources": {row["weights by"]: row for row in sources},
        "source_words": SOURCES,
        "control_words": CONTROLS,
        "reliability": {seed: [row["chi_reliability"] for row in each["components"]] for seed, each in found.items()},
        "blind": [row["blind"] for row in heads if np.isfinite(row["blind"])],
        "settled": all(row["settled"] for row in heads),
        "radii": {seed: each["radius"] for seed, each in checks.items()},
        "agreeing": [row["component"] for row in agreement if row["verdict"] == "agree"],
        "compared": len(agreement),
        "settings": settings,
    }
    data: dict[str, Any] = {"curves": history_rows(runs, names, seeds), "weights": weight_columns(first)}
    return findings_of(TEMPLATE, values, seeds=seeds, tables=tables, pictures=pictures, data=data)


def against_goals(settings: Settings, formed: Mapping[str, list[float]]) -> dict[str, Any]:
    """What came of the mode, and of each other source and control, over the base runs."""
    base = np.array(formed["base"])
    earlier = base / np.array(formed["amplified"])
    later = np.nan_to_num(np.array(formed["suppressed"]) / base, nan=np.inf)
    others = []
    for name in settings.retrained:
        ratio = np.array(formed[name]) / base
        close = int((np.abs(ratio - 1) <= GOALS["control"]).sum())
        others.append({
            "name": name, "control": name in CONTROLS, "ratios": ratio[np.isfinite(ratio)].tolist(), "close": close,
        })  # fmt: skip
    return {
        "goals": GOALS,
        "base": base.tolist(),
        "base_formed": bool(np.isfinite(base).all()),
        "count": len(base),
        "earlier": earlier[np.isfinite(earlier)].tolist(),
        "amplified_good": int((np.nan_to_num(earlier) >= GOALS["amplified"]).sum()),
        "slowest": float(later.min()),
        "never": int(np.isinf(later).sum()),
        "suppressed_good": int((later >= GOALS["suppressed"]).sum()),
        "others": others,
    }
