"""Every warning of the library has a category of its own, and its own are exported."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import patterning_fast as pf
from patterning_fast import categories

OWN = {name for name, each in vars(categories).items() if isinstance(each, type)}


def category(call: ast.Call) -> str:
    """What a call of `warnings.warn` names."""
    given = call.args[1] if len(call.args) > 1 else next((e.value for e in call.keywords if e.arg == "category"), None)
    return ast.unparse(given) if given else "none"


def warned() -> dict[str, str]:
    """The category of every warning, by where it is given."""
    package = Path(pf.__file__).parent
    return {
        f"{path.relative_to(package)}:{node.lineno}": category(node)
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("warnings.warn", "warn")
    }


def test_every_warning_has_a_category_of_the_library() -> None:
    found = warned()
    assert len(found) >= 10
    assert {place: each for place, each in found.items() if each not in OWN - {"PatterningWarning"}} == {}
    assert OWN - {"PatterningWarning"} == set(found.values()), "categories that nothing uses"


@pytest.mark.parametrize("name", sorted(OWN))
def test_categories_are_exported_under_one_base(name: str) -> None:
    assert name in pf.__all__
    assert issubclass(getattr(pf, name), pf.PatterningWarning)
    assert issubclass(pf.PatterningWarning, UserWarning)
