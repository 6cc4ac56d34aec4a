"""The folder of a run: what each step was told, in TOML beside what it made, and the refusal of other settings."""

from __future__ import annotations

import hashlib
import json
import tomllib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import Any

from patterning_fast.durable import make_folder, put, writing
from patterning_fast.engine.identity import differences

EXTRAS = {"transformers": "models", "gguf": "models", "accelerate": "models", "pyarrow": "parquet",
          "datasets": "datasets"}  # fmt: skip
"""Package to the extra of ours that brings it."""

INTERNAL = "(Triggered internally at"
"""In warnings of torch about itself."""


def check_needs(what: str, packages: Sequence[str]) -> None:
    """Raise ModuleNotFoundError, with what to type, where a package is not installed."""
    missing = [each for each in packages if find_spec(each) is None]
    if missing:
        extras = ",".join(dict.fromkeys(EXTRAS[each] for each in missing))
        raise ModuleNotFoundError(
            f"{what} needs {' and '.join(missing)}, not installed here: pip install 'patterning_fast[{extras}]'"
        )


def goes_on(
    file: Path, settings: Any, made_from: Mapping[str, str], left: Sequence[Path], free: Sequence[str] = ()
) -> bool:
    """Whether a step has `left` something, of these very settings, to go on from; `file` has what it was told.

    Settings that are `free` may change: they only say how far to go. Raises ValueError where others differ.
    """
    there = [each for each in left if each.exists()]
    if not there:
        return False
    found = differences(bound(read(file), free), bound(tables(settings, made_from), free))
    if found:
        raise ValueError(
            "\n  ".join([f"{file} has other settings than these:", *found])
            + "\nGive those to go on with it, name another folder, or, to do it anew, remove "
            + " and ".join(map(str, there))
        )
    return True


def write_settings(file: Path, settings: Any, made_from: Mapping[str, str]) -> None:
    """Write what a step is told as TOML, whole; raises OSError."""
    text = f"# What `patterning-fast {file.stem}` was told; --settings {file.name} says it again.\n"
    text += toml(tables(settings, made_from) | {"made_with": {"patterning_fast": version("patterning_fast")}})
    with writing("settings", file):
        make_folder(file.parent)
        put(file, partial(Path.write_text, data=text, encoding="utf-8"))


def tables(settings: Any, made_from: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    return {"settings": asdict(settings), "made_from": dict(made_from)}


def bound(told: Mapping[str, Any], free: Sequence[str]) -> dict[str, Any]:
    """What two runs of a step must have in common, as JSON has it."""
    kept = {name: each for name, each in told["settings"].items() if name not in free}
    plain: dict[str, Any] = json.loads(json.dumps({**kept, "made from": told["made_from"]}))
    return plain


def read(file: Path) -> dict[str, Any]:
    """A step's TOML; raises FileNotFoundError where that step was not run, ValueError where it is not its file."""
    if not file.exists():
        raise FileNotFoundError(f"there is no {file}: run `patterning-fast {file.stem}` first")
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
        return {name: found[name] for name in ("settings", "made_from")}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError) as error:
        raise ValueError(f"{file} is not what a run has written: name another folder, or remove it") from error


def toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables of strings, numbers, truth values and lists of them."""
    parts = [[f"[{table}]", *(f"{name} = {toml_value(each)}" for name, each in rows.items())]
             for table, rows in tables.items()]  # fmt: skip
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def toml_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def fingerprint(path: Path) -> str:
    """A few characters that tell a file from others."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@contextmanager
def noting(notes: list[str]) -> Iterator[None]:
    """Take warnings of the library into `notes`, a sentence each, in place of lines with file and number."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        yield
    notes += dict.fromkeys(f"note: {each.message}" for each in caught if INTERNAL not in str(each.message))


def next_command(step: str, folder: Path, more: str = "") -> str:
    """What to type next."""
    return f"next: patterning-fast {step} {quote(folder.as_posix())}{more}"
