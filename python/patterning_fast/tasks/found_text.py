"""Real text that every machine with Python holds: four domains of different structure, and its characters."""

from __future__ import annotations

import re
import site
import string
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from patterning_fast.arguments import Count, Whole, checked

CHARACTERS = "\n" + "".join(sorted(set(string.printable) - set(string.whitespace))) + " "
"""The 96 characters of the vocabulary: printable ASCII and the newline; token ids are positions in it."""

ENOUGH_TEXT = 4_000_000
"""Characters read per domain: more than any recipe on found text draws."""


@dataclass(frozen=True)
@checked
class Contexts:
    """Contexts cut from named domains, with the hash of the text they were cut from."""

    tokens: Tensor
    """int64 `[contexts, length]`."""
    domain: np.ndarray
    """Domain name of each context, `[contexts]`."""
    text_sha256: str
    """Of all text read, so that a result can say what it was computed on."""


@checked
def decode(tokens: Tensor) -> str:
    """The text of token ids `[T]`."""
    return "".join(CHARACTERS[index] for index in tokens.tolist())


@checked
def encode(text: str) -> np.ndarray:
    """Token ids, int64 `[T]`; characters outside the vocabulary are dropped."""
    table = np.full(128, -1, dtype=np.int64)
    table[[ord(character) for character in CHARACTERS]] = np.arange(len(CHARACTERS))
    ids = table[np.frombuffer(text.encode("ascii", "ignore"), dtype=np.uint8)]
    return ids[ids >= 0]


@checked
def plain_windows(tokens: np.ndarray, count: Whole, length: Count, generator: np.random.Generator) -> np.ndarray:
    """`count` windows `[count, length]` from random places."""
    starts = generator.integers(0, len(tokens) - length, count)
    return tokens[starts[:, None] + np.arange(length)]


@checked
def domain_text(name: str) -> str:
    """Up to `ENOUGH_TEXT` characters of one domain, the same on every call on one machine."""
    parts, total = [], 0
    for part in DOMAINS[name]():
        parts.append(part)
        total += len(part)
        if total >= ENOUGH_TEXT:
            break
    if total < 100_000:
        raise ValueError(f"this machine holds only {total} characters of the domain {name!r}; 100000 are needed")
    return "".join(parts)[:ENOUGH_TEXT]


def code() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts and "test" not in path.parts:
            yield path.read_text(encoding="utf-8", errors="ignore")


def reference() -> Iterator[str]:
    from pydoc_data.topics import topics

    yield from (topics[name] for name in sorted(topics))


def metadata() -> Iterator[str]:
    for path in installed_records("*"):
        if path.name == "METADATA" or "licen" in path.name.lower() or "copying" in path.name.lower():
            yield path.read_text(encoding="utf-8", errors="ignore")


def checksums() -> Iterator[str]:
    for path in installed_records("RECORD"):
        yield from re.findall(r"sha256=([\w-]{43})", path.read_text(encoding="utf-8", errors="ignore"))


def installed_records(pattern: str) -> list[Path]:
    """Files of the `*.dist-info` folders of every site-packages folder in use, sorted."""
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    return sorted(
        path for folder in folders for path in Path(folder).glob(f"*.dist-info/**/{pattern}") if path.is_file()
    )


DOMAINS: dict[str, Callable[[], Iterator[str]]] = {
    "code": code,
    "reference": reference,
    "metadata": metadata,
    "quoted": checksums,
}
