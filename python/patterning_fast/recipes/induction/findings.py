"""What the induction recipe found, in tables, sentences and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from patterning_fast.recipes.findings import Findings, Rows, findings_of
from patterning_fast.recipes.verification import verification_picture, verification_rows

from .pictures import chi_picture, curves, llc_picture, mode_picture, ratios_picture
from .settings import GOALS, Settings
from .tables import (
    by_heads,
    components_table,
    domain_table,
    extremes_table,
    formed_at,
    history_rows,
    modes_table,
    outcomes,
    weight_columns,
    weights_table,
)

TEMPLATE = Path(__file__).with_name("findings.j2")


def findings(
    settings: Settings,
    runs: Mapping[str, Mapping[str, Any]],
    found: Mapping[int, Mapping[str, Any]],
    verified: Mapping[str, Any] | None,
) -> Findings:
    """All that is to be said of the runs, by `NAME, seed SEED`."""
    seeds = list(settings.seeds)
    first = found[seeds[0]]
    names = ["base", *found[seeds[0]]["weights"]]
    formed = {name: [formed_at(runs, name, seed) for seed in seeds] for name in names}
    end = {name: [runs[f"{name}, seed {seed}"]["history"][-1] for seed in seeds] for name in names}
    values = (
        against_goals(settings, formed)
        | about_modes(settings, found)
        | {"radius": None if verified is None else verified["radius"]}
    )
    tables: dict[str, Rows] = {
        "Runs": outcomes(names, formed, end),
        "Weights": weights_table(settings, first, names[1:]),
        "Mean weight by domain": domain_table(first, names[1:]),
        f"Modes of χ over heads, seed {seeds[0]}": modes_table(first),
        f"Components, seed {seeds[0]}": components_table(first),
        "Tokens the mode loads on most": extremes_table(first),
    }
    if len(seeds) > 1:
        tables["Circuit formed at step, by seed"] = [
            {"seed": seed} | {name: formed[name][at] for name in names} for at, seed in enumerate(seeds)
        ]
    pictures = {
        "ratios": ratios_picture(names[1:], formed, settings.train_steps),
        "curves": curves(runs, names, seeds),
        "chi": chi_picture(first),
        "mode": mode_picture(first),
    }
    llc = [
        {"run": name, "seed": seed, **row}
        for name in names
        for seed in seeds
        for row in runs[f"{name}, seed {seed}"]["llc"]
    ]
    data: dict[str, Any] = {"curves": history_rows(runs, names, seeds), "weights": weight_columns(first)}
    if llc:
        pictures["llc"] = llc_picture(llc)
        data["llc"] = llc
    if verified is not None:
        pictures["verification"] = verification_picture(verified)
        tables["Predicted against realised dμ"] = verification_rows(verified)
    return findings_of(TEMPLATE, values, seeds=seeds, tables=tables, pictures=pictures, data=data)


def against_goals(settings: Settings, formed: Mapping[str, list[float]]) -> dict[str, Any]:
    """What came of each strength and each control, over the base runs."""
    base = np.array(formed["base"])
    strengths, controls = [], []
    for strength in settings.strengths:
        earlier = base / np.array(formed[f"amplified {strength:g}"])
        later = np.nan_to_num(np.array(formed[f"suppressed {strength:g}"]) / base, nan=np.inf)
        strengths.append({
            "strength": strength,
            "earlier": earlier[np.isfinite(earlier)],
            "amplified_good": int((np.nan_to_num(earlier) >= GOALS["amplified"]).sum()),
            "slowest": later.min(),
            "never": int(np.isinf(later).sum()),
            "suppressed_good": int((later >= GOALS["suppressed"]).sum()),
        })  # fmt: skip
    for control in settings.controls:
        ratios = np.array(formed[control]) / base
        close = int((np.abs(ratios - 1) <= GOALS["control"]).sum())
        controls.append({"name": control, "ratios": ratios[np.isfinite(ratios)].tolist(), "close": close})
    return {
        "base": base.tolist(),
        "base_formed": bool(np.isfinite(base).all()),
        "count": len(base),
        "train_steps": settings.train_steps,
        "strengths": strengths,
        "controls": controls,
        "goals": GOALS,
    }


def about_modes(settings: Settings, found: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Which mode was taken, by seed."""
    return {
        "contexts": settings.contexts,
        "modes": {
            seed: {
                "chosen": each["chosen"],
                "by_tokens": each["similarity"][each["chosen"]],
                "by_heads": by_heads(each),
                "continued": each["continued"],
                "known": len(each["predictable"]),
            }
            for seed, each in found.items()
        },
        "texts": sorted({each["text_sha256"] for each in found.values()}),
    }
