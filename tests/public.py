"""What of the library is public: what it exports, and what of its tools its own modules and the benches use."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import patterning_fast as pf
from patterning_fast.interop import devinterp

ROOT = Path(__file__).parents[1]
TOOLS = ("models", "report", "tasks", "posterior.losses", "recipes.recipe", "training.side_by_side")
"""Packages without `__all__`: of their functions and classes those are public that are used outside their module."""


@functools.cache
def public() -> dict[str, Any]:
    """Functions, classes and methods by name, as `train.train` or `Statistics.llc`."""
    found = {}
    for name, each in sorted(exported().items()):
        found[name] = each
        if inspect.isclass(each):
            found |= {f"{name}.{method}": function for method, function in methods(each)}
    return found


def exported() -> dict[str, Any]:
    """Functions and classes."""
    of_package = {name: getattr(pf, name) for name in pf.__all__}
    of_ops = {f"ops.{name}": getattr(pf.ops, name) for name in pf.ops.__all__}
    of_interop = {f"interop.devinterp.{name}": getattr(devinterp, name) for name in devinterp.__all__}
    found = of_package | of_ops | of_interop | dict(tools())
    return {name: each for name, each in found.items() if inspect.isfunction(each) or inspect.isclass(each)}


def tools() -> Iterator[tuple[str, Any]]:
    used = used_outside()
    for package in TOOLS:
        top = importlib.import_module(f"patterning_fast.{package}")
        modules = [each.name for each in pkgutil.walk_packages(getattr(top, "__path__", []), f"{top.__name__}.")]
        for name in modules or [top.__name__]:
            module = importlib.import_module(name)
            for own, each in vars(module).items():
                if getattr(each, "__module__", "") == name and (name, own) in used:
                    yield f"{name.removeprefix('patterning_fast.')}.{own}", each


def used_outside() -> set[tuple[str, str]]:
    """Module and name of all that one file uses of another."""
    used = set()
    for path in [each for folder in ("python", "recipes", "bench") for each in (ROOT / folder).rglob("*.py")]:
        tree, modules = ast.parse(path.read_text(encoding="utf-8")), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("patterning_fast"):
                for each in node.names:
                    used.add((str(node.module), each.name))
                    modules[each.asname or each.name] = f"{node.module}.{each.name}"
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                used.add((modules[node.value.id], node.attr))
    return used


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    """The public methods that a class has of us."""
    for base in cls.__mro__:
        if base.__module__.startswith("patterning_fast") and not issubclass(base, BaseException):
            for name, member in vars(base).items():
                function = member.__func__ if isinstance(member, staticmethod | classmethod) else member
                if not name.startswith("_") and inspect.isfunction(function) and name != "domains":
                    yield name, function
