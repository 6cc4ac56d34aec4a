"""Text by domain, wherever it comes from: found on the machine, fetched from packages, or a data set of the user's."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from patterning_fast.arguments import checked
from patterning_fast.tasks import found_text, mini_pile

TEXT = (".txt", ".txt.gz", ".md", ".rst")
SOURCES = "'found', 'mini-pile', 'mini-pile:FOLDER', 'hf:NAME', or a folder of text or Parquet files"
DOMAIN_COLUMNS = ("domain", "source")
"""Of a data set: the first that it has tells its domains apart."""


@dataclass(frozen=True)
class Documents:
    """Documents that are read anew each time they are gone through."""

    read: Callable[[], Iterator[str]]

    def __iter__(self) -> Iterator[str]:
        return self.read()


@checked
def domains(source: str) -> dict[str, Iterable[str]]:
    """Domain to its documents, which can be gone through more than once.

    `source` is one of:
        "found": what every machine with Python holds.
        "mini-pile", "mini-pile:FOLDER": what `patterning-fast data mini-pile` has brought.
        "hf:NAME": the split "train" of a data set of Hugging Face's hub; needs the package `datasets`.
        a folder: of a data set that `datasets` has saved, or with a text file, a Parquet file or a folder of text files
        for each domain, which is named after it.
    Data sets and Parquet files have documents in a column `text`, and may name their domains in `domain` or `source`.

    Raises ValueError for anything else, FileNotFoundError where nothing is there, ImportError where a package is
    missing.
    """
    kind, _, rest = source.partition(":")
    if source == "found":
        return {name: Documents(read) for name, read in found_text.DOMAINS.items()}
    if kind == "mini-pile":
        return dict(mini_pile.cached(Path(rest) if rest else mini_pile.default_cache()))
    if kind == "hf" and rest:
        return of_data_set(rest.rpartition("/")[2], data_sets().load_dataset(rest, split="train"))
    folder = Path(source)
    if not folder.is_dir():
        raise ValueError(f"{source!r} is no source of text, and no folder: it must be {SOURCES}")
    if (folder / "dataset_info.json").exists():
        return of_data_set(folder.name, data_sets().load_from_disk(folder))
    found = {entry.name.partition(".")[0]: documents for entry in sorted(folder.iterdir())
             if (documents := of_path(entry)) is not None}  # fmt: skip
    if not found:
        raise FileNotFoundError(f"{folder} holds no text: give it a file (*.txt, *.txt.gz, *.parquet) for each domain")
    return found


def data_sets() -> Any:
    """The package `datasets`."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError("data sets of Hugging Face need the package datasets: pip install datasets") from error
    return datasets


def of_data_set(name: str, rows: Any) -> dict[str, Iterable[str]]:
    """The domains of a data set, by the column that tells them apart; one of its own name without such a column."""
    if "text" not in rows.column_names:
        raise ValueError(f"the data set {name!r} has no column 'text'; it has {', '.join(rows.column_names)}")
    column = next((each for each in DOMAIN_COLUMNS if each in rows.column_names), None)
    if column is None:
        return {name: Documents(lambda: (row["text"] for row in rows))}

    def of_domain(domain: str) -> Iterator[str]:
        return (row["text"] for row in rows if row[column] == domain)

    return {domain: Documents(partial(of_domain, domain)) for domain in rows.unique(column)}


@checked
def of_path(path: Path) -> Iterable[str] | None:
    """The documents of a file or folder; None where it holds no text."""
    if path.suffix == ".parquet":
        return mini_pile.Documents(path)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    texts = [file for file in files if file.name.endswith(TEXT) and file.is_file()]
    return Documents(lambda: map(text_of, texts)) if texts else None


def text_of(path: Path) -> str:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8", "replace")
