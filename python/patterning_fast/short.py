"""Results in a line, and in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import xarray as xr

SHOWN = 4
"""Names or numbers in a row."""


def listed(words: Sequence[str]) -> str:
    """The first few of some words, and how many there are beside them."""
    rest = len(words) - SHOWN
    return ", ".join(words[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def html_of(result: object, table: xr.Dataset) -> str:
    """A result for a notebook: its line, and a table that can be unfolded."""
    return f"<pre>{escape(repr(result))}</pre>{table._repr_html_()}"
