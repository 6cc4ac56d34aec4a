"""Run a recipe: a TOML file that names a module and its settings.

A module has `Settings`, a dataclass whose fields all have defaults, and `run(settings, pieces) -> Findings`. It is
that beside the TOML file, `NAME.py` or a folder `NAME` with `__init__.py`, or one that is installed.
"""

from __future__ import annotations

import hashlib
import math
import platform
import sys
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib import import_module, invalidate_caches
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from types import ModuleType
from typing import Annotated, Any

import torch

from patterning_fast.arguments import checked
from patterning_fast.domains import Anything
from patterning_fast.durable import clear_partial, put_folder, writing
from patterning_fast.recipes.findings import summary, write
from patterning_fast.recipes.pieces import Pieces
from patterning_fast.report.output import check_output
from patterning_fast.training.weights_file import parquet

DEMO = Path(__file__).with_name("demo.toml")
EXPECTED_BYTES = 2**26
KINDS = {int: "a whole number", float: "a finite number", str: "a string", bool: "true or false"}
"""Types of settings, in words."""


@dataclass(frozen=True)
@checked
class Recipe:
    """A recipe's module and the settings to run it with."""

    module: ModuleType
    settings: Annotated[Any, Anything("of the module's own class, made by it")]
    """The module's own `Settings`, a dataclass whose fields all have defaults."""
    did_not_work: list[str]
    """What was tried at other settings, in sentences."""


@checked
def read_recipe(path: Path, quick: bool, changes: Sequence[str] = ()) -> Recipe:
    """The recipe in a TOML file, with the settings of its table `quick` where those are wanted.

    `changes` are settings of one's own, each "NAME=VALUE" with a value as TOML has it, or a string without quotes.

    Raises OSError where there is no such file, ModuleNotFoundError where a package that it needs is not installed,
    ValueError where it is not a recipe, or names settings that its module does not have or values of another type.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    unknown = sorted(content.keys() - {"recipe", "needs", "settings", "quick", "did_not_work"})
    name = content.get("recipe")
    if unknown or not isinstance(name, str):
        raise ValueError(
            f"{path} is not a recipe: it needs recipe = the name of a module, and may have tables [settings] and "
            "[quick] and lists needs and did_not_work; "
            + (f"it also has {', '.join(unknown)}" if unknown else f"it has recipe = {name!r}")
        )
    tables = [content.get(name, {}) for name in ("settings", "quick")]
    did_not_work, needs = (content.get(name, []) for name in ("did_not_work", "needs"))
    if not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{path}: settings and quick must be tables, [settings] and [quick] with a line for each")
    for key, listed in (("did_not_work", did_not_work), ("needs", needs)):
        if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
            raise ValueError(f"{path}: {key} must be a list of strings, got {listed!r}")
    if missing := [each for each in needs if find_spec(each) is None]:
        raise ModuleNotFoundError(
            f"{path} needs {' and '.join(missing)}, not installed here: pip install {' '.join(missing)}"
        )
    module = module_of(path, name)
    given = tables[0] | (tables[1] if quick else {}) | dict(map(change, changes))
    return Recipe(module, settings(path, module.Settings, given), did_not_work)


def module_of(path: Path, name: str) -> ModuleType:
    """The module that a recipe names; raises ValueError where there is none, or it is no recipe's."""
    folder = path.parent.resolve()
    top = name.partition(".")[0]
    beside = [each for each in (folder / f"{top}.py", folder / top / "__init__.py") if each.exists()]
    if beside and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))  # processes that compute parts have it too
        invalidate_caches()
    spec = find_spec(top) if all(part.isidentifier() for part in name.split(".")) else None
    if spec is None:
        raise ValueError(
            f"{path}: there is no module {name!r}: put {name}.py beside the recipe, or name one that is installed"
        )
    if beside and Path(spec.origin or "") not in beside:
        raise ValueError(f"{path}: {beside[0]} has the name of the module {spec.origin}: give it another name")
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"{path}: there is no module {name!r}") from error
    if not is_dataclass(getattr(module, "Settings", None)) or not callable(getattr(module, "run", None)):
        raise ValueError(f"{path}: module {name!r} is no recipe: it needs a dataclass Settings and a function run")
    return module


@checked
def settings(path: Path, kind: type, given: Mapping[str, object]) -> Any:
    """The settings of a recipe, each checked for its type; lists become tuples."""
    known = typing.get_type_hints(kind)
    values = {}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{path}: there is no setting {name!r}; there are {', '.join(known)}")
        try:
            values[name] = of_type(value, known[name])
        except TypeError as error:
            raise ValueError(f"{path}: {name} must be {error}, got {value!r}") from None
    return kind(**values)


@checked
def change(text: str) -> tuple[str, Any]:
    """A setting's name and its value, of "NAME=VALUE"; raises ValueError for anything else."""
    name, equals, value = text.partition("=")
    if not name.strip().isidentifier() or not equals:
        raise ValueError(f"a setting is changed by NAME=VALUE, such as strength=0.3, got {text!r}")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def of_type(value: object, wanted: Any) -> Any:
    """A value of TOML as a setting has it; raises TypeError, which says what it must be."""
    if typing.get_origin(wanted) is tuple:
        each = typing.get_args(wanted)[0]
        if not isinstance(value, list):
            raise TypeError(f"a list, of values that are each {KINDS[each]}")
        return tuple(of_type(one, each) for one in value)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted or (isinstance(value, float) and not math.isfinite(value)):
        raise TypeError(KINDS[wanted])
    return value


@checked
def recipe_file(name: Path) -> Path:
    """The file of a recipe: itself, or one of the package by its bare name.

    Raises FileNotFoundError, with what there is, for a name that is neither.
    """
    if name.suffix or name.exists() or len(name.parts) > 1:
        return name
    found = DEMO.with_name(f"{name}.toml")
    if not found.exists():
        known = ", ".join(sorted(each.stem for each in DEMO.parent.glob("*.toml")))
        raise FileNotFoundError(
            f"the package has no recipe {str(name)!r}, but {known}; others are TOML files in the folder recipes of the "
            f"project's source: give the path of one, such as recipes/{name}.toml"
        )
    return found


@checked
def run_file(path: Path, out: Path | None, quick: bool, changes: Sequence[str] = ()) -> str:
    """Run the recipe of a file into the folder `out`, results/NAME if None; a summary for the terminal.

    Raises what `read_recipe` and `run` raise.
    """
    named = path.stem if path.parent == DEMO.parent else path.as_posix()
    command = command_of(f"run {quote(named)}", quick, changes)
    if out is None and path.stem.startswith("."):
        raise ValueError(f"{path.name} cannot name a folder of results: give the recipe another name, or choose --out")
    return run(
        read_recipe(path, quick, changes), out or Path("results") / (path.stem + ("-quick" if quick else "")), command
    )


@checked
def command_of(words: str, quick: bool, changes: Sequence[str]) -> str:
    """What is typed for a run."""
    return " ".join(["patterning-fast", words, *["--quick"] * quick, *(f"--set {quote(each)}" for each in changes)])


@checked
def run(recipe: Recipe, out: Path, command: str) -> str:
    """Run a recipe into the folder `out` and return a summary for the terminal.

    Parts that are done are kept in a folder `OUT.parts` until the end: the same command goes on from them.

    Raises OSError where `out` cannot be written, ValueError where `OUT.parts` are of a run with other settings, and
    what the recipe raises.
    """
    made: dict[str, Any] = {
        "settings": asdict(recipe.settings),
        "patterning_fast": version("patterning_fast"),
        "code": code_of(recipe.module),
    }
    on_cpu = getattr(recipe.settings, "device", "cpu") == "cpu"  # processes side by side would share a GPU's memory
    target = out.resolve()
    parquet()  # refused before the first step where it is not installed
    check_output(target, EXPECTED_BYTES)
    with Pieces(target.with_name(f"{target.name}.parts"), made, at_once=None if on_cpu else 1) as pieces:
        with writing("results", target):
            clear_partial(target)
        found = recipe.module.run(recipe.settings, pieces)
        made |= {
            "command": command,
            "did_not_work": recipe.did_not_work,
            "machine": {"processor": processor(), "threads": torch.get_num_threads(), "torch": str(torch.__version__)},
            "seconds": pieces.time_spent(),
            "core_seconds": pieces.core_seconds,
        }
        with writing("results", target):
            put_folder(target, lambda folder: write(folder, found, made))
        pieces.remove()
    return summary(found) + f"\n\nreport: {out / 'report.html'}"


def code_of(module: ModuleType) -> str:
    """A hash of a module's file, and of all files beside it where it is a package."""
    file = Path(str(module.__file__))
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    return hashlib.sha256(b"\0".join(each.read_bytes() for each in files)).hexdigest()[:16]


def processor() -> str:
    """The name of this machine's processor, as far as it says."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8", errors="replace").splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
