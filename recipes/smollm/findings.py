"""What the smollm recipe found: how well χ tells induction heads, in tables, sentences and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from patterning_fast.recipes.findings import Findings, Rows, findings_of
from patterning_fast.report import charts

TEMPLATE = Path(__file__).with_name("findings.j2")
KINDS = ("random tokens said twice", "text said twice", "text that goes on")
"""Of strings whose χ is estimated; the last, where no passage is said again, is the control."""
BLIND = "nβ = 0"
"""The run whose chains feel no loss."""
UNSCALED = f"{KINDS[0]} [nats²]"
"""The contrast without its unit, the spread of χ over what is said first."""
MEASURES = ("random", "text", "control", "unscaled")
"""Short names of the three kinds and of the last."""
PUBLISHED = ("l18h6", "l17h3", "l17h4", "l18h7", "l23h2")
"""Heads of SmolLM2 known to do induction before this recipe was written."""


def findings(
    heads: Mapping[str, Mapping[str, bool]],
    attention: Mapping[str, Mapping[str, Any]],
    chi: Mapping[str, Mapping[str, np.ndarray]],
    core_minutes: float,
    model: str,
    seeds: list[int],
) -> Findings:
    """What came out, by run: which heads are induction heads, attention scores, and χ of heads."""
    rows = {run: head_rows(each, attention[run]["scores"], chi[run]) for run, each in heads.items()}
    tests = {run: outcome_rows(each) for run, each in rows.items()}
    first, *_, blind = rows
    seeing = [row for run in rows if run != blind for row in rows[run]]
    values = {
        "tests": {
            run: dict(zip(("random", "text", "control", "unscaled"), each, strict=True)) for run, each in tests.items()
        },
        "induction": [row for row in rows[first] if row["induction"]],
        "others": [row for row in rows[first] if not row["induction"]],
        "attention": attention[first],
        "agreement": float(np.mean([row["r between chains"] for each in rows.values() for row in each])),
        "chains": len(next(iter(chi[first].values()))),
        "core_minutes": core_minutes,
        "model": model,
        "published": PUBLISHED,
    }
    pictures = {
        "contrast": contrast_figure(seeing),
        "contrast_without_loss": contrast_figure(rows[blind]),
        "positions": positions_figure(heads[first], chi[first]),
    }
    tables = {
        "Does the contrast tell induction heads?": [{"run": run} | row for run in rows for row in tests[run]],
        "Heads": [{"run": run} | row for run in rows for row in rows[run]],
    }
    data = {"susceptibilities": [{"run": run} | row for run, each in chi.items() for row in long_rows(each)]}
    return findings_of(TEMPLATE, values, seeds=seeds, tables=tables, pictures=pictures, data=data)


def contrasts(chi: np.ndarray) -> np.ndarray:
    """Mean χ of what is said second less that of what is said first `[chains, kinds]` in nats²; of χ
    `[chains, kinds, strings, positions]`."""
    first, second = np.split(chi, 2, axis=-1)
    return second.mean((-2, -1)) - first.mean((-2, -1))


def spread_of_first(chi: np.ndarray) -> float:
    """Standard deviation of the mean χ over what is said first [nats²]: raw χ of heads differ by unknown factors."""
    first, _ = np.split(chi.mean(0), 2, axis=-1)
    return float(first.std())


def head_rows(heads: Mapping[str, bool], scores: Mapping[str, float], chi: Mapping[str, np.ndarray]) -> Rows:
    """One row a head: its attention score, its contrast on each kind of string with the error, its reliability."""
    rows: Rows = []
    for head, induction in heads.items():
        raw, unit = contrasts(chi[head]), spread_of_first(chi[head])
        row: dict[str, Any] = {"head": head, "induction": induction, "attention score": scores[head]}
        for kind, values in zip(KINDS, raw.T / unit, strict=True):
            row[kind] = float(values.mean())
            row[f"{kind}, error"] = float(values.std(ddof=1) / np.sqrt(len(values)))
        flat = chi[head].reshape(len(raw), -1)
        between = np.corrcoef(flat)[np.triu_indices(len(flat), 1)]
        row |= {UNSCALED: float(raw[:, 0].mean()), "r between chains": float(between.mean())}
        rows.append(row)
    return rows


def outcome_rows(rows: Rows) -> Rows:
    """For each kind of string, how well the contrast tells induction heads from others, and how it goes with attention.

    The AUC is the chance that an induction head's contrast is below another's; p is Mann and Whitney's, two-sided.
    """
    found: Rows = []
    for measure in (*KINDS, UNSCALED):
        induction, others = ([row[measure] for row in rows if row["induction"] is which] for which in (True, False))
        test = stats.mannwhitneyu(others, induction)
        order = stats.spearmanr([row["attention score"] for row in rows], [row[measure] for row in rows])
        found.append(
            {
                "contrast": measure,
                "AUC": float(test.statistic) / (len(induction) * len(others)),
                "p": float(test.pvalue),
                "mean of induction heads": float(np.mean(induction)),
                "mean of others": float(np.mean(others)),
                "rank correlation with attention": float(order.statistic),
                "its p": float(order.pvalue),
            }
        )
    return found


def long_rows(chi: Mapping[str, np.ndarray]) -> Rows:
    """χ of every head, string and position, with its standard error."""
    rows: Rows = []
    for head, values in chi.items():
        mean, error = values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))
        for kind, string, position in np.ndindex(mean.shape):
            rows.append(
                {
                    "head": head,
                    "strings": KINDS[kind],
                    "string": string,
                    "position": position,
                    "chi": float(mean[kind, string, position]),
                    "chi_error": float(error[kind, string, position]),
                }
            )
    return rows


def contrast_figure(rows: Rows) -> Figure:
    """A panel for each kind of strings: the contrast of heads against their attention scores."""

    def points(kind: str, induction: bool) -> charts.Points:
        mine = [row for row in rows if row["induction"] is induction]
        x, y, error = ([row[name] for row in mine] for name in ("attention score", kind, f"{kind}, error"))
        return charts.Points(x, y, y_error=error, names=[row["head"] for row in mine] if induction else [])

    panels = {kind: {"induction heads": points(kind, True), "other heads": points(kind, False)} for kind in KINDS}
    return charts.scatter(
        panels, "attention to the token after the last occurrence", "χ said again less χ said first [sd]", symlog=True
    )


def positions_figure(heads: Mapping[str, bool], chi: Mapping[str, np.ndarray]) -> Figure:
    """A panel for each kind of strings: χ by head and position, in standard deviations of the head's."""
    means = {head: values.mean(0) for head, values in chi.items()}
    shown = np.stack([(means[head].mean(1) - means[head].mean()) / means[head].std() for head in heads])
    panels = {kind: shown[:, at] for at, kind in enumerate(KINDS)}
    return charts.maps(panels, list(heads), "position", "χ [sd]", (-1.5, 1.5))
