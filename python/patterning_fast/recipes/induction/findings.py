"""What the induction recipe found, in tables, sentences and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from patterning_fast.recipes.findings import Findings, Picture, Rows
from patterning_fast.recipes.templates import sentences
from patterning_fast.recipes.verification import verification_picture, verification_rows
from patterning_fast.report import figures

from .pictures import curves, heat_map, llc_picture, mode_picture, ratios_picture
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
        "Weights": weights_table(settings, found[seeds[0]], names[1:]),
        "Mean weight by domain": domain_table(found[seeds[0]], names[1:]),
        f"Modes of χ over heads, seed {seeds[0]}": modes_table(found[seeds[0]]),
        f"Components, seed {seeds[0]}": components_table(found[seeds[0]]),
        "Tokens the mode loads on most": extremes_table(found[seeds[0]]),
    }
    if len(seeds) > 1:
        tables["Circuit formed at step, by seed"] = [
            {"seed": seed} | {name: formed[name][at] for name in names} for at, seed in enumerate(seeds)
        ]
    pictures = {
        "curves": Picture(
            curves(runs, names, seeds), "Induction score of the best head over training; thin lines are single seeds."
        ),
        "chi": Picture(
            figures.chi_heat_map(*heat_map(found[seeds[0]])),
            "χ of tokens in some contexts. Red: up-weighting the token raises the component's mean loss shift; blue: "
            "it lowers it, as for tokens that the component serves.",
        ),
        "mode": Picture(
            mode_picture(found[seeds[0]]),
            "The mode taken as induction: its size, its heads beside scores measured apart from χ, its tokens.",
        ),
    }
    if len(names) > 4:
        pictures["ratios"] = Picture(
            ratios_picture(names[1:], formed, settings.train_steps),
            "When the circuit formed, over the base run of the same seed (log scale); triangles never formed it within "
            "the run. Dashed: the goals; shaded: within 10 %.",
        )
    llc = [
        {"run": name, "seed": seed, **row}
        for name in names
        for seed in seeds
        for row in runs[f"{name}, seed {seed}"]["llc"]
    ]
    if llc:
        pictures["llc"] = Picture(llc_picture(llc), "λ̂ of the whole model along training, mean and range over seeds.")
    if verified is not None:
        pictures["verification"] = Picture(
            verification_picture(verified),
            "Predicted against realised change of each head's mean loss shift, sampled again under amplifying weights.",
        )
        tables["Predicted against realised dμ"] = verification_rows(verified)
    return Findings(
        title="Patterning an induction circuit",
        claim="Re-weighting the data along the susceptibility mode that pairs induction tokens with induction heads "
        "makes the induction circuit form earlier or later (arXiv:2601.13548, §4).",
        goal="Amplified runs form the circuit at least 1.4 times as early, suppressed ones at least twice as late or "
        "not within the run, controls within 10 % of the base run.",
        verdict=sentences(TEMPLATE, "verdict", **values),
        details=sentences(TEMPLATE, "details", **values),
        seeds=seeds,
        tables=tables,
        pictures=pictures,
        data={
            "curves": history_rows(runs, names, seeds),
            "weights": weight_columns(found[seeds[0]]),
            **({"llc": llc} if llc else {}),
        },
    )


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
