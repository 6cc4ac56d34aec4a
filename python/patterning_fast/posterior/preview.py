"""What of a model would move, as a tree to look at."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

from patterning_fast.arguments import checked
from patterning_fast.posterior.components import Component, check_fits
from patterning_fast.posterior.naming import components
from patterning_fast.posterior.wrapped import Model

BAR = 16
"""Characters."""

MODULE, COUNT, PLAIN = "\033[36m", "\033[33m", "\033[0m"
"""Colours of a terminal."""


@dataclass
class Branch:
    """Modules and parameters by name, and how many coordinates move."""

    children: dict[str, Branch] = field(default_factory=dict)
    moving: int = 0
    size: int = 0

    def add(self, path: list[str], moving: int, size: int) -> None:
        self.moving += moving
        self.size += size
        if path:
            self.children.setdefault(path[0], Branch()).add(path[1:], moving, size)


@checked
def preview(model: Model, *what: str | Component) -> str:
    """A tree of the parameters that components move, and how much of each; in colour on a terminal.

    `print(pf.preview(model, "l0h1", "l3 mlp"))`. `what` are components, or names that `pf.components` takes. Layers
    that are alike share their lines. The environment's NO_COLOR is heeded.

    Raises ValueError for names that are none of the model's, and components of another model.
    """
    named: dict[str, Component] = {}
    for each in what:
        named |= components(model, each) if isinstance(each, str) else {each.name: each}
    parameters = dict(model.named_parameters())
    total = sum(each.numel() for each in parameters.values())
    lines: list[str] = []
    for name, component in named.items():
        check_fits(name, component, parameters)
        root = Branch()
        for parameter, index in component.coordinates.items():
            size = parameters[parameter].numel()
            root.add(parameter.split("."), size if index is None else index.numel(), size)
        lines.append(f"{name}: {root.moving:,} of {total:,} coordinates move, {root.moving / total:.3g} of all")
        lines += drawn(root, "", max(map(len, outline(root, ""))))
    text = "\n".join(lines)
    return text if coloured() else text.replace(MODULE, "").replace(COUNT, "").replace(PLAIN, "")


def coloured() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def lines_of(branch: Branch) -> Iterator[tuple[str, Branch]]:
    """Children by name: those alike and numbered in a row together, those that are alone in theirs joined by dots."""
    for (_, numbered), group in groupby(branch.children.items(), lambda each: (each[1], each[0].isdigit())):
        same = list(group)
        runs = [[same[0], same[-1]]] if numbered and len(same) > 1 else [[each, each] for each in same]
        for (first, child), (last, _) in runs:
            name = first if first == last else f"{first} to {last}, each"
            while len(child.children) == 1:
                ((inner, child),) = child.children.items()
                name += f".{inner}"
            yield name, child


def outline(branch: Branch, indent: str) -> list[str]:
    """The tree without its counts."""
    found = []
    for name, child in lines_of(branch):
        found.append(f"{indent}├─ {name}")
        found += outline(child, f"{indent}│  ")
    return found


def drawn(branch: Branch, indent: str, width: int) -> list[str]:
    """The lines of a tree; counts begin in the column after `width`."""
    found, every = [], list(lines_of(branch))
    for at, (name, child) in enumerate(every):
        last = at == len(every) - 1
        text = f"{indent}{'└─' if last else '├─'} {name}"
        if child.children:
            found.append(f"{MODULE}{text}{PLAIN}")
        else:
            filled = round(BAR * child.moving / child.size)
            bar = "▰" * filled + "▱" * (BAR - filled)
            counts = f"{child.moving:,} of {child.size:,}"
            found.append(f"{MODULE}{text.ljust(width)}{PLAIN}  {COUNT}{bar}{PLAIN}  {counts}")
        found += drawn(child, f"{indent}{'   ' if last else '│  '}", width)
    return found
