"""How documents lie in the files of each kind of package."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import re
import sqlite3
import struct
import tarfile
import zlib
from pathlib import Path

from patterning_fast.tasks import corpora
from patterning_fast.tasks.packages import FETCHING


def test_summaries_and_pages_of_wikis(tmp_path: Path) -> None:
    path = tmp_path / "summaries.json"
    path.write_text(json.dumps({"a": {"title": "Rose", "extract": "A flower."}}))
    assert list(corpora.wiki_summaries([path])) == ["Rose\n\nA flower."]
    page = "<page><text bytes='9'>{}</text></page>"
    path.write_bytes(bz2.compress((page.format("'''Rose''' &amp; [[thorn]]\n") + page.format("#redirect [[Rose]]")
                                   + "<page><text>cut o").encode()))  # fmt: skip
    assert list(corpora.wiki_pages([path])) == ["'''Rose''' & [[thorn]]\n"]


def test_licences_without_their_headers(tmp_path: Path) -> None:
    one, header_only = tmp_path / "one.LICENSE", tmp_path / "two.LICENSE"
    one.write_text("---\nkey: one\nname: One\n---\n\nDo as you like.\n---\nOr do not.\n")
    header_only.write_text("---\nkey: two\n---\n")
    assert list(corpora.licences([one, header_only])) == ["Do as you like.\n---\nOr do not."]


def test_molecules_and_words(tmp_path: Path) -> None:
    path = tmp_path / "train.csv.gz"
    path.write_bytes(gzip.compress(("SMILES,SPLIT\n" + "".join(f"C{n},train\n" for n in range(150))).encode()))
    documents = list(corpora.molecules([path]))
    assert [len(each.split("\n")) for each in documents] == [100, 50]
    assert documents[1].startswith("C100\nC101")
    path = tmp_path / "ca01"
    path.write_text("\n\n\tThe/at jury/nn said/vbd and//cc-hl 1/2/cd ./.\n\n\n\tNo/at\n")
    assert list(corpora.tagged_words([path])) == ["The jury said and/ 1/2 .\nNo"]


def test_definitions(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "go.sqlite")
    database.execute("CREATE TABLE go_term (go_id, term, definition)")
    database.executemany(
        "INSERT INTO go_term VALUES (?, ?, ?)", [("2", "b", "B is."), ("1", "a", "A is."), ("3", "c", None)]
    )
    database.commit()
    database.close()
    assert list(corpora.definitions([tmp_path / "go.sqlite"])) == ["a: A is.", "b: B is."]


def test_lines_of_r_packages(tmp_path: Path) -> None:
    """Written as R's serialize() does: flags, length and bytes of each string, -1 for a missing one."""

    def vector(lines: list[str | None], version: int) -> bytes:
        native = struct.pack(">i", 5) + b"UTF-8" if version == 3 else b""
        packed = b"X\n" + struct.pack(">iii", version, 0, 0) + native + struct.pack(">ii", 16, len(lines))
        for line in lines:
            content = b"" if line is None else line.encode()
            packed += struct.pack(">ii", 0x40009, -1 if line is None else len(content)) + content
        return struct.pack(">I", len(packed)) + zlib.compress(packed)

    path = tmp_path / "Rdata.rdb"
    path.write_bytes(vector(["EMMA", "", "Émile"], 3) + vector(["Or not", None], 2))
    assert list(corpora.lazily_loaded_lines([path])) == ["EMMA\n\nÉmile", "Or not\n"]


def test_source_trees_and_passages(tmp_path: Path) -> None:
    path = tmp_path / "linux.tar.xz"
    with tarfile.open(path, "w:xz") as packed:
        for name, content in (("l-6.1/mm/slab.c", b"int x;"), ("l-6.1/mm/slab.h", b"-"), ("l-6.1/drivers/a.c", b"-")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    assert list(corpora.CORPORA["c_linux"].read([path])) == ["int x;"]
    path = tmp_path / "book.txt"
    paragraphs = ["x" * 1_000 + str(number) for number in range(10)]
    path.write_text("\n \n".join(paragraphs))
    documents = list(corpora.passages([path]))
    assert [len(each.split("\n\n")) for each in documents] == [4, 4, 2]
    assert "\n\n".join(documents) == "\n\n".join(paragraphs)


def test_every_corpus_can_be_asked_for() -> None:
    for name, corpus in corpora.CORPORA.items():
        assert re.fullmatch(r"[a-z_0-9]+", name)
        if corpus.package is None:
            assert next(corpus.read([]))
        else:
            assert corpus.package.manager in FETCHING
            assert (corpus.package.version is None) == (corpus.package.manager == "apt")
