"""What a recipe found, and its files: JSON, Parquet, pictures and a report."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from patterning_fast.recipes.templates import rendered, said
from patterning_fast.report import figures
from patterning_fast.report.output import RESULTS
from patterning_fast.report.text import printable, text_table
from patterning_fast.training.weights_file import parquet

Rows = list[dict[str, Any]]
Columns = dict[str, np.ndarray]


class Picture(NamedTuple):
    """A figure and what it shows."""

    figure: Figure
    caption: str


@dataclass(kw_only=True)
class Findings:
    """What came out of a run, whichever way."""

    title: str
    claim: str
    """What the published work says."""
    goal: str
    """The figures that would count as having reproduced it."""
    verdict: list[str]
    """The outcome against the goal, in a few sentences."""
    details: list[str] = field(default_factory=list)
    """All else there is to say."""
    seeds: list[int]
    tables: dict[str, Rows]
    pictures: dict[str, Picture] = field(default_factory=dict)
    """The first is the one that matters most."""
    data: dict[str, Rows | Columns] = field(default_factory=dict)
    """Long tables, for Parquet: weights, curves, every run's end."""


def findings_of(
    template: Path,
    values: Mapping[str, Any],
    *,
    seeds: Sequence[int],
    tables: Mapping[str, Rows],
    pictures: Mapping[str, Figure],
    data: Mapping[str, Rows | Columns],
) -> Findings:
    """Findings whose words are a template's, made of values.

    Its blocks are `title`, `claim`, `goal`, `verdict`, `details`, and `about_NAME` for each picture: what it shows.
    """
    blocks = said(template, values)
    return Findings(
        **{name: " ".join(blocks[name]) for name in ("title", "claim", "goal")},
        verdict=blocks["verdict"],
        details=blocks["details"],
        seeds=list(seeds),
        tables=dict(tables),
        pictures={name: Picture(each, " ".join(blocks[f"about_{name}"])) for name, each in pictures.items()},
        data=dict(data),
    )


def write(folder: Path, findings: Findings, made: Mapping[str, Any]) -> None:
    """All files of a run in `folder`; `made` says how it was made: command, settings, machine, seconds, ....

    results.json, report.html, a PNG for each picture and a Parquet file for each long table.
    """
    images = {name: figures.png(each.figure) for name, each in findings.pictures.items()}
    record = plain({
        "title": findings.title,
        "claim": findings.claim,
        "goal": findings.goal,
        "verdict": findings.verdict,
        "details": findings.details,
        "seeds": findings.seeds,
        "tables": findings.tables,
        "pictures": {name: each.caption for name, each in findings.pictures.items()},
        **made,
    })  # fmt: skip
    content = json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    (folder / RESULTS).write_bytes(content.encode("utf-8", "backslashreplace"))  # JSON's own escapes, of surrogates
    for name, image in images.items():
        (folder / f"{name}.png").write_bytes(image)
    if findings.data:
        pa, pq = parquet()
        for name, table in findings.data.items():
            made_table = pa.table(table) if isinstance(table, Mapping) else pa.Table.from_pylist(table)
            pq.write_table(made_table, folder / f"{name}.parquet")
    shown = {name: b64encode(image).decode() for name, image in images.items()}
    (folder / "report.html").write_text(rendered("report.html.j2", found=record, images=shown), encoding="utf-8")


def summary(findings: Findings) -> str:
    """The findings for a terminal: what came out first."""
    tables = [f"{printable(name)}\n{text_table(rows)}" for name, rows in findings.tables.items()]
    said = [*findings.verdict, *findings.details]
    return "\n\n".join(["\n".join(map(printable, said)), *tables])


def plain(value: Any) -> Any:
    """The same value as JSON has it: plain numbers, and None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not np.isfinite(value) else value
