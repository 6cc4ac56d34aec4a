"""A recipe of parts that take no time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from patterning_fast.recipes.findings import Findings
from patterning_fast.recipes.pieces import Pieces

PARTS = ("one", "other")


@dataclass(frozen=True)
class Settings:
    log: str
    """A file that gets a line for each part that is computed."""
    factor: int = 2


def part(settings: Settings, name: str) -> dict[str, float]:
    with Path(settings.log).open("a", encoding="utf-8") as log:
        print(name, file=log)
    return {"length": settings.factor * len(name)}


def run(settings: Settings, pieces: Pieces) -> Findings:
    found = {name: pieces.of(name, partial(part, settings, name)) for name in PARTS}
    rows = [{"part": name, **each} for name, each in found.items()]
    return Findings(
        title="Lengths", claim="Words have them.", goal="All.", verdict=["All."], seeds=[0], tables={"Lengths": rows},
    )  # fmt: skip
