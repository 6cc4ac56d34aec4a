"""Pages of Markdown about the results of recipes: a short one of all, and one with the details of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from patterning_fast.recipes.templates import rendered
from patterning_fast.report.output import RESULTS

DETAILS = "README.md"


def result_pages(folders: Sequence[Path], out: Path) -> dict[Path, str]:
    """Markdown by file: `out`, about the runs in some folders below it, and one file in each of these.

    Made of their results.json alone. Raises ValueError where one is damaged, or a folder is not below.
    """
    beside, runs = out.parent, []
    pages: dict[Path, str] = {}
    for folder in folders:
        if not folder.is_relative_to(beside):
            raise ValueError(f"{folder} is not below {beside}, where the page goes: choose another --out")
        try:
            found = json.loads((folder / RESULTS).read_bytes())
            about = {
                "found": found,
                "name": folder.name,
                "at": folder.relative_to(beside).as_posix(),
                "page": out.name,
                "minutes": found["seconds"] / 60,
                "core_minutes": sum(found["core_seconds"].values()) / 60,
            }
            pages[folder / DETAILS] = rendered("details.md.j2", **about)
        except (UnicodeDecodeError, json.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{folder / RESULTS} is damaged, or not of a recipe ({error!r}): run the recipe again, or leave it out"
            ) from error
        runs.append(about)
    return {out: rendered("results.md.j2", runs=runs, details=DETAILS)} | pages
