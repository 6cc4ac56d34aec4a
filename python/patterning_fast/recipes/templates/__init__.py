"""Text made of data: Jinja2 templates, those of the library and those of recipes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

import jinja2

from patterning_fast.report import text

HERE = Path(__file__).parent


def environment(folder: Path, in_markup: bool) -> jinja2.Environment:
    """Templates of a folder. A name that is not given is an error, and markup holds no markup of data."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        autoescape=in_markup,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {
        "printable": text.printable,
        "markdown": text.markdown,
        "code": text.markdown_code,
        "shown": text.shown,
        "quoted": quote,
        "median": median,
        "percent": percent,
        "percents": percents,
        "listed": listed,
        "spanned": spanned,
    }
    return found


def rendered(template: str, **values: Any) -> str:
    """A template of the library, with values."""
    return environment(HERE, in_markup=".html" in template).get_template(template).render(values)


def said(template: Path, values: Mapping[str, Any]) -> dict[str, list[str]]:
    """The paragraphs of a recipe's template, by block: they are apart by an empty line, lines of one are joined."""
    found = environment(template.parent, in_markup=False).get_template(template.name)
    context = found.new_context(dict(values))
    texts = {name: "".join(block(context)) for name, block in found.blocks.items()}
    return {
        name: [" ".join(each.split()) for each in text.split("\n\n") if each.strip()] for name, text in texts.items()
    }


def percent(share: float) -> str:
    return f"{share:.0%}"


def percents(shares: Iterable[float]) -> str:
    return ", ".join(f"{share:.1%}" for share in shares)


def listed(values: Iterable[object]) -> str:
    """Values in a row: "1, 2 and 3"."""
    *most, end = list(map(str, values)) or ["none"]
    return f"{', '.join(most)} and {end}" if most else end


def spanned(values: Iterable[float]) -> str:
    """From the least to the most: "0.98 to 1.31"."""
    every = list(values)
    return f"{min(every):.2f} to {max(every):.2f}" if every else "–"
