"""A dataclass of settings as the options of a command: in a TOML file, typed, or by --set."""

from __future__ import annotations

import dataclasses
import inspect
import tomllib
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from patterning_fast.recipes.recipe import change, settings

SET_HELP = "any setting, such as strength=0.3; may be given again for others"


@dataclasses.dataclass(frozen=True)
class Help:
    """What `--help` says of a field of settings, in its annotation."""

    text: str


def path_of(text: str) -> Path:
    """A path that was given; an empty one would be the working directory."""
    if not text:
        raise typer.BadParameter("the path is empty")
    return Path(text)


Changes = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help=SET_HELP)]
OptionalPath = Annotated[Path | None, typer.Option(parser=path_of, metavar="PATH")]


def command_of(step: str, kind: type, work: Callable[[Path, Any], str], folder: Any) -> Callable[..., None]:
    """The function of a Typer command: an option for each field of `kind`, a folder, `--settings` and `--set`.

    `work(folder, settings)` does it and returns what to print. `folder` is the Typer parameter of its folder.
    """

    def run(folder: Path, settings_file: Path | None, changes: list[str] | None, **given: Any) -> None:
        typed = {name: value for name, value in given.items() if value is not None}
        print(work(folder, settings_from(step, kind, settings_file, typed, changes or ())))

    hints = {
        "folder": Annotated[Path, folder],
        **{each.name: option_of(kind, each) for each in dataclasses.fields(kind)},
        "settings_file": Annotated[
            Path | None,
            typer.Option("--settings", parser=path_of, metavar="FILE.toml", help="settings, as a run writes them"),
        ],
        "changes": Changes,
    }
    required = inspect.Parameter.empty
    run.__signature__ = inspect.Signature([  # type: ignore[attr-defined]
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint,
                          default=required if name == "folder" else None)
        for name, hint in hints.items()
    ])  # fmt: skip
    run.__annotations__ = hints
    return run


def option_of(kind: type, field: dataclasses.Field[Any]) -> Any:
    """The annotation that Typer reads of a field; None stands for an option that was not given."""
    hint = typing.get_type_hints(kind, include_extras=True)[field.name]
    said = next(each.text for each in typing.get_args(hint)[1:] if isinstance(each, Help))
    plain = typing.get_type_hints(kind)[field.name]
    several = typing.get_origin(plain) is tuple
    default: Any = field.default
    default = ",".join(map(str, default)) if several else str(default)
    if default:
        said += f" [{default.lower() if plain is bool else default}]"
    metavar = "LIST" if several else {str: "TEXT", int: "WHOLE", float: "NUMBER", bool: None}[plain]
    return Annotated[(list[str] if several else plain) | None, typer.Option(help=said, metavar=metavar)]


def settings_from(step: str, kind: Any, file: Path | None, typed: Mapping[str, Any], changes: Sequence[str]) -> Any:
    """Settings of a class: its defaults, then the file's, those typed and those set.

    Raises ValueError for settings there are not, or of another type; OSError where there is no such file.
    """
    plain = typing.get_type_hints(kind)
    given = {} if file is None else of_file(file)
    for name, value in (dict(typed) | dict(map(change, changes))).items():
        several = typing.get_origin(plain.get(name)) is tuple
        given[name] = listed(value, typing.get_args(plain[name])[0]) if several else value
    return settings(file or Path(f"patterning-fast {step}"), kind, given)


def of_file(file: Path) -> dict[str, Any]:
    """The settings in a TOML file: its table [settings], as runs write it, or the whole file."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not TOML: {error}") from error
    found = content.get("settings", content)
    if not isinstance(found, dict):
        raise ValueError(f"{file}: settings must be a table, [settings] with a line for each")
    return dict(found)


def listed(value: Any, each: type) -> list[Any]:
    """Values of a list that was typed: with commas between them, or given one by one."""
    parts = value if isinstance(value, list) else [value]
    cut = [one.strip() for part in parts for one in (part.split(",") if isinstance(part, str) else [part])]
    try:
        return [float(one) if each is float else one for one in cut if one != ""]
    except ValueError:
        return cut  # which is refused, by its name
