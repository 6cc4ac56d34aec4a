"""What a recipe found, and its files: JSON, Parquet, pictures and a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure

from patterning_fast.report import figures, html
from patterning_fast.report.output import RESULTS
from patterning_fast.report.text import markdown, markdown_code, printable
from patterning_fast.training.weights_file import parquet

PREFACE = (
    "Written by `patterning-fast results` from what `patterning-fast run` left (`make results` does both). Minutes are "
    "by the clock, whatever else the machine did; core-minutes are what the run itself took."
)

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
    said: list[str]
    """The outcome against the goal, then all else there is to say, in sentences made of the figures."""
    seeds: list[int]
    tables: dict[str, Rows]
    pictures: dict[str, Picture] = field(default_factory=dict)
    data: dict[str, Rows | Columns] = field(default_factory=dict)
    """Long tables, for Parquet: weights, curves, every run's end."""


def write(folder: Path, findings: Findings, made: Mapping[str, Any]) -> None:
    """All files of a run in `folder`; `made` says how it was made: command, settings, machine, seconds, ....

    results.json, report.html, a PNG for each picture and a Parquet file for each long table.
    """
    images = {name: figures.png(each.figure) for name, each in findings.pictures.items()}
    record = {
        "title": findings.title,
        "claim": findings.claim,
        "goal": findings.goal,
        "said": findings.said,
        "seeds": findings.seeds,
        "tables": findings.tables,
        "pictures": {name: each.caption for name, each in findings.pictures.items()},
        **made,
    }
    content = json.dumps(plain(record), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    (folder / RESULTS).write_bytes(content.encode("utf-8", "backslashreplace"))  # JSON's own escapes, of surrogates
    for name, image in images.items():
        (folder / f"{name}.png").write_bytes(image)
    if findings.data:
        pa, pq = parquet()
        for name, table in findings.data.items():
            made_table = pa.table(table) if isinstance(table, Mapping) else pa.Table.from_pylist(table)
            pq.write_table(made_table, folder / f"{name}.parquet")
    (folder / "report.html").write_text(report(findings, made, images), encoding="utf-8")


def report(findings: Findings, made: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """The HTML report."""
    parts = [html.paragraph(f"Claim: {findings.claim}"), html.paragraph(f"Goal: {findings.goal}")]
    parts += [html.heading("What came out"), *map(html.paragraph, findings.said)]
    parts += [html.picture(images[name], each.caption) for name, each in findings.pictures.items()]
    for name, rows in findings.tables.items():
        parts += [html.heading(name), html.table(rows)]
    if made["did_not_work"]:
        parts += [html.heading("What did not work"), *map(html.paragraph, made["did_not_work"])]
    parts += [html.heading("How it was run"), html.paragraph(json.dumps(plain(made), ensure_ascii=False))]
    return html.page(findings.title, parts)


def summary(findings: Findings) -> str:
    """The findings for a terminal."""
    tables = [f"{printable(name)}\n{html.text_table(rows)}" for name, rows in findings.tables.items()]
    return "\n\n".join([*tables, "\n".join(map(printable, findings.said))])


def results_page(folders: Sequence[Path], beside: Path) -> str:
    """The results of several runs as Markdown for a file in the folder `beside`, made of their results.json alone."""
    parts = ["# Results", PREFACE]
    for folder in folders:
        if not folder.is_relative_to(beside):
            raise ValueError(f"{folder} is not below {beside}, where the page goes: choose another --out")
        try:
            parts += results_of(json.loads((folder / RESULTS).read_bytes()), folder, beside)
        except (UnicodeDecodeError, json.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{folder / RESULTS} is damaged, or not of a recipe ({error!r}): run the recipe again, or leave it out"
            ) from error
    return "\n\n".join(parts) + "\n"


def results_of(found: Mapping[str, Any], folder: Path, beside: Path) -> list[str]:
    """The paragraphs about one run."""
    at = quote(folder.relative_to(beside).as_posix())
    minutes, cores = found["seconds"] / 60, sum(found["core_seconds"].values()) / 60
    machine = found["machine"]
    parts = [f"## {markdown(found['title'])} ({markdown(folder.name)})"]
    parts += [f"**Claim.** {markdown(found['claim'])}", f"**Goal.** {markdown(found['goal'])}"]
    parts += ["**What came out.**", "\n".join(f"- {markdown(each)}" for each in found["said"])]
    parts += [
        f"![{markdown(name)}]({at}/{quote(name)}.png)\n\n*{markdown(caption)}*"
        for name, caption in found["pictures"].items()
    ]
    for name, rows in found["tables"].items():
        parts += [f"**{markdown(name)}**", markdown_table(rows)]
    if found["did_not_work"]:
        parts += ["**What did not work.**", "\n".join(f"- {markdown(each)}" for each in found["did_not_work"])]
    how = (
        f"{markdown_code(found['command'])}: {minutes:.0f} min"
        + (f" ({cores:.0f} core-minutes)" if cores else "")
        + f" on {machine['threads']} threads of {markdown(machine['processor'])}; "
        + f"seeds {', '.join(map(str, found['seeds']))}."
    )
    return [*parts, f"**How.** {how}"]


def markdown_table(rows: Rows) -> str:
    """Rows with the same keys as a table; floats to three digits."""
    lines = [[markdown(name) for name in rows[0]], ["---"] * len(rows[0])]
    lines += [["–" if value is None else markdown(html.shown(value)) for value in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plain(value: Any) -> Any:
    """The same value as JSON has it: plain numbers, and None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not np.isfinite(value) else value
