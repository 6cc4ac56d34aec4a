"""A report in one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence

from patterning_fast.arguments import checked
from patterning_fast.report.text import printable

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .7rem;border-bottom:1px solid #ddd;"
    "text-align:left}"
    "img{max-width:100%}code{background:#f3f3f3;white-space:pre-wrap}"
)


def escaped(text: str) -> str:
    """Text that is no markup, whatever it holds."""
    return html.escape(printable(text))


@checked
def page(title: str, parts: Sequence[str]) -> str:
    """A whole page from parts that are HTML already."""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escaped(title)}</title><style>{STYLE}</style>"
        f"<h1>{escaped(title)}</h1>{''.join(parts)}</html>\n"
    )


@checked
def heading(text: str) -> str:
    return f"<h2>{escaped(text)}</h2>"


@checked
def paragraph(text: str) -> str:
    return f"<p>{escaped(text)}</p>"


@checked
def picture(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode()
    text = escaped(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


@checked
def table(rows: Sequence[Mapping[str, object]]) -> str:
    """A table of rows with the same keys; floats to three digits."""
    head = "".join(f"<th>{escaped(key)}</th>" for key in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escaped(shown(value))}</td>" for value in row.values()) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


@checked
def text_table(rows: Sequence[Mapping[str, object]]) -> str:
    """The same table for a terminal."""
    cells = [list(map(printable, rows[0])), *[[shown(value) for value in row.values()] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


@checked
def shown(value: object) -> str:
    """A cell, in one line: floats to three digits, a dash for NaN."""
    if not isinstance(value, float):
        return printable(str(value))
    if math.isnan(value):
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
