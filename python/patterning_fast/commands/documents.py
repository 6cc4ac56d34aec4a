"""Documents of a source, whatever it is: text files, JSON lines, Parquet, folders of them, or data sets of a hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patterning_fast.commands.folder import check_needs
from patterning_fast.tasks.domains import DOMAIN_COLUMNS, data_sets, of_path

FORMS = "a file .jsonl, .parquet, .txt or .bin, a folder of such files, or hf:NAME"
TABLES = (".jsonl", ".parquet")
ROWS = 1_000
"""Of a Parquet file, read at once."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Document:
    """Text, or token ids where the column has these."""

    domain: str
    content: str | list[int]


def check_source(source: str) -> None:
    """Raise ModuleNotFoundError, FileNotFoundError or ValueError for a source of data that cannot be read."""
    if not source:
        raise ValueError(f"--data is missing: give {FORMS}")
    path = Path(source)
    if source.startswith("hf:") or (path / "dataset_info.json").exists():
        check_needs(f"--data {source}", ["datasets"])
        return
    if not path.exists():
        raise FileNotFoundError(f"there is no {source}: --data takes {FORMS}")
    if any(each.suffix == ".parquet" for each in files_of(path)):
        check_needs(f"--data {source}", ["pyarrow"])


def documents(source: str, column: str) -> Iterator[Document]:
    """Documents in turn from each domain: a column, or text files. A domain is a file, or a column's value.

    Raises ValueError for rows without the column, or what is no text there; OSError for a hub out of reach.
    """
    path = Path(source)
    if source.startswith("hf:"):
        yield from of_rows(source[3:].rpartition("/")[2], from_hub(source[3:]), column)
    elif (path / "dataset_info.json").exists():
        yield from of_rows(path.name, data_sets().load_from_disk(path), column)
    else:
        found = [each for each in (of_file(file, column) for file in files_of(path)) if each is not None]
        if not found:
            raise ValueError(f"{source} holds no data that can be read: --data takes {FORMS}")
        yield from in_turn(found)


def files_of(path: Path) -> list[Path]:
    """The file; of a folder, its tables wherever they lie within, else its files and folders of text."""
    if not path.is_dir():
        return [path]
    hidden = list(path.rglob(".*"))
    inside = [each for each in sorted(path.rglob("*")) if not any(each.is_relative_to(one) for one in hidden)]
    return [each for each in inside if each.suffix in TABLES] or [each for each in inside if each.parent == path]


def of_file(file: Path, column: str) -> Iterator[Document] | None:
    """The documents of a file or of a folder of text; None where it holds none."""
    name = file.name.partition(".")[0]
    if file.suffix == ".jsonl":
        return of_rows(str(file), of_lines(file), column, name)
    if file.suffix == ".parquet":
        return of_rows(str(file), of_parquet(file), column, name)
    texts: Iterable[str] | None = of_path(file)
    return None if texts is None else (Document(name, each) for each in texts)


def in_turn(several: list[Iterator[Document]]) -> Iterator[Document]:
    """One of each, as long as there are any."""
    while several:
        left = []
        for each in several:
            for document in each:
                yield document
                left.append(each)
                break
        several = left


def of_rows(what: str, rows: Iterable[Row], column: str, name: str = "") -> Iterator[Document]:
    """What the rows of a table have in a column."""
    for number, row in enumerate(rows):
        if column not in row:
            raise ValueError(f"{what} has no column {column!r}; it has {', '.join(row)}: name one with --column")
        content = row[column]
        ids = isinstance(content, list) and all(type(each) is int for each in content)
        if not isinstance(content, str) and not ids:
            raise ValueError(
                f"{what}: {column!r} of row {number} is neither text nor a list of token ids, but "
                f"{type(content).__name__}; name another column with --column"
            )
        domain = next((row[each] for each in DOMAIN_COLUMNS if row.get(each) is not None), name or what)
        yield Document(str(domain), content)


def of_lines(file: Path) -> Iterator[Row]:
    """The objects of a file of JSON lines."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number}, is not JSON ({error.msg}): mend or remove it") from None
            if not isinstance(row, dict):
                raise ValueError(f"{file}, line {number}, is no object but {type(row).__name__}: give {{...}} a line")
            yield row


def of_parquet(file: Path) -> Iterator[Row]:
    """The rows of a Parquet file."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(ROWS):
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file} is no Parquet file that can be read ({error}): write it again") from error


def from_hub(name: str) -> Any:
    """The split "train" of a data set of the hub; raises OSError, with what to do, where it cannot be fetched."""
    try:
        return data_sets().load_dataset(name, split="train")
    except (OSError, ValueError) as error:
        raise OSError(
            f"cannot fetch the data set {name} from Hugging Face's hub ({str(error).partition(chr(10))[0][:200]}): "
            f"where there is a network, run `hf download --repo-type dataset {name} --local-dir FOLDER`, bring its "
            "Parquet files here and give --data FOLDER"
        ) from error
