"""Archives of unknown hands: what they hold is read, and nothing lands where their names say."""

from __future__ import annotations

import bz2
import gzip
import io
import random
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from patterning_fast.tasks import corpora, mini_pile, packages
from patterning_fast.tasks.packages import PackageError, unpacked
from tests.flips import flipped, random_bits

Member = tuple[str, bytes, bytes]
"""Name, content or target, and kind: of tar's kinds."""
KINDS = ["wheel-1-any.whl", "words-1.tgz", "words_1_all.deb"]


def tar(members: list[Member]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as packed:
        for name, content, kind in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            if kind == tarfile.REGTYPE:
                member.size = len(content)
            else:
                member.linkname = content.decode()
            packed.addfile(member, io.BytesIO(content) if kind == tarfile.REGTYPE else None)
    return made.getvalue()


def archive(folder: Path, kind: str, members: list[Member]) -> Path:
    path = folder / kind
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
            for name, content, sort in members:
                info = zipfile.ZipInfo(name)
                mode = {tarfile.SYMTYPE: stat.S_IFLNK, tarfile.CHRTYPE: stat.S_IFCHR, tarfile.FIFOTYPE: stat.S_IFIFO}
                info.external_attr = (mode.get(sort, stat.S_IFREG) | 0o644) << 16
                wheel.writestr(info, content, zipfile.ZIP_DEFLATED)
    elif path.suffix == ".deb":
        if shutil.which("dpkg-deb") is None:
            pytest.skip("dpkg-deb is not installed")
        parts = (("debian-binary", b"2.0\n"), ("control.tar.gz", tar([])), ("data.tar.gz", tar(members)))
        packed = b"!<arch>\n"
        for name, content in parts:
            packed += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
            packed += content + b"\n" * (len(content) % 2)
        path.write_bytes(packed)
    else:
        path.write_bytes(tar(members))
    return path


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


def plain(name: str, content: bytes = b"text") -> Member:
    return name, content, tarfile.REGTYPE


@pytest.mark.parametrize("kind", KINDS)
def test_files_have_numbers_for_names(kind: str, tmp_path: Path, into: Path) -> None:
    """In the order of the names that they had."""
    members = [plain("a/b.txt", b"2"), plain("./a/a.gz", b"1"), plain("c/.. .t-x", b"3"), plain("other", b"4")]
    found = unpacked(archive(tmp_path, kind, members), "[ac]/*", into)
    assert [path.read_bytes() for path in found] == [b"1", b"2", b"3"]
    assert sorted(path.name for path in into.iterdir()) == ["0.txt", "1.gz", "2"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "{}/evil.txt", "./../evil.txt"])
def test_names_that_lead_out_are_refused(kind: str, name: str, tmp_path: Path, into: Path) -> None:
    name = name.format(tmp_path)
    evil = archive(tmp_path, kind, [plain("a.txt"), plain(name, b"evil")])
    with pytest.raises(PackageError, match=f"{evil.name} has a member .*, which leads out of it: it is not to trust"):
        unpacked(evil, "*", into)
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("kind", KINDS)
def test_links_and_devices_are_passed_over(kind: str, tmp_path: Path, into: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.txt").write_text("secret")
    links = [("secret.txt", str(tmp_path / "outside/secret.txt").encode(), tarfile.SYMTYPE),
             ("outside", b"../outside", tarfile.SYMTYPE)]  # fmt: skip
    devices = [("zero.txt", b"", tarfile.CHRTYPE), ("pipe.txt", b"", tarfile.FIFOTYPE)]
    if not kind.endswith(".whl"):
        links.append(("hard.txt", str(tmp_path / "outside/secret.txt").encode(), tarfile.LNKTYPE))
    evil = archive(tmp_path, kind, [*links, *devices, plain("outside/secret.txt", b"evil")])
    found = unpacked(evil, "*", into)
    assert [path.read_bytes() for path in found] == [b"evil"]
    assert [path.name for path in into.iterdir()] == ["0.txt"]
    assert (tmp_path / "outside/secret.txt").read_text() == "secret"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([plain("a.txt", bytes(3_000_000))], "unpacks to more than 1,000,000 bytes"),
        ([plain(f"{number}.txt", bytes(300_000)) for number in range(4)], "unpacks to more than 1,000,000 bytes"),
        ([plain(f"{number}.no", b"") for number in range(21)], "has more than 20 members"),
        ([plain("a.txt"), plain("./a.txt")], r"has two members './a\.txt': it is not to trust"),
        ([plain("b.no")], r"holds no \*\.txt"),
    ],
)
def test_absurd_archives_are_refused(
    kind: str, members: list[Member], message: str, tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "MOST_BYTES", 1_000_000)
    monkeypatch.setattr(packages, "MOST_MEMBERS", 20)
    with pytest.raises(PackageError, match=f"{kind} {message}"):
        unpacked(archive(tmp_path, kind, members), "*.txt", into)
    assert sum(path.stat().st_size for path in into.iterdir()) <= 1_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_archives_are_refused(kind: str, tmp_path: Path, into: Path) -> None:
    whole = archive(tmp_path, kind, [plain("a.txt", bytes(range(256)) * 100), plain("b.txt")])
    content = whole.read_bytes()
    for number, damage in enumerate((b"", b"no archive", content[: len(content) // 2])):
        whole.write_bytes(damage)
        (into / str(number)).mkdir()
        with pytest.raises(PackageError, match=f"cannot read {whole.name}|{whole.name} cannot be read"):
            unpacked(whole, "*", into / str(number))


@pytest.mark.parametrize("kind", KINDS)
def test_bits_of_archives_that_are_flipped(kind: str, tmp_path: Path, into: Path) -> None:
    """Each is noticed, or changes nothing of what is read; but for a wheel's list of members, which only pip checks."""
    path = archive(tmp_path, kind, [plain("a.txt", random.Random(0).randbytes(20_000)), plain("b.txt", b"text " * 20)])
    before = [each.read_bytes() for each in unpacked(path, "*.txt", into)]
    noticed = 0
    listed = path.read_bytes().find(b"PK\x01\x02") if path.suffix == ".whl" else path.stat().st_size
    for bit in [bit for bit in random_bits(path, 60, seed=0) if bit < 8 * listed]:
        shutil.rmtree(into)
        into.mkdir()
        with flipped(path, bit):
            try:
                assert [each.read_bytes() for each in unpacked(path, "*.txt", into)] == before, bit
            except PackageError:
                noticed += 1
    assert noticed > 20


@pytest.mark.parametrize(
    ("read", "name", "content"),
    [
        (corpora.whole_files, "a.gz", gzip.compress(bytes(10_000))),
        (corpora.passages, "a.dz", gzip.compress(bytes(10_000))),
        (corpora.wiki_pages, "a.bz2", bz2.compress(bytes(10_000))),
        (corpora.lazily_loaded_lines, "a.rdb", bytes(4) + zlib.compress(bytes(10_000))),
        (corpora.CORPORA["c_linux"].read, "a.tgz", tar([plain("l/mm/a.c", bytes(10_000))])),
        (corpora.molecules, "a.csv.gz", gzip.compress(b"SMILES\n" + b"C\n" * 9_000)),
        (corpora.molecules, "a.csv.gz", gzip.compress(b"SMILES\nC\n")[:-9]),
        (corpora.whole_files, "a.gz", b"no gzip"),
        (corpora.wiki_summaries, "a.json", b'{"a": 1}'),
        (corpora.definitions, "a.sqlite", b"no database"),
        (corpora.CORPORA["c_linux"].read, "a.tgz", b"no tar"),
    ],
)  # fmt: skip
def test_files_that_grow_or_cannot_be_read(
    read: corpora.Reader, name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (packages, corpora, mini_pile):
        monkeypatch.setattr(module, "MOST_BYTES", 5_000)
    (tmp_path / name).write_bytes(content)
    corpus = corpora.Corpus(None, "", "?", read)
    with pytest.raises(PackageError, match=r"holds? more than 5,000|its files cannot be read"):
        list(mini_pile.documents_of(corpus, [tmp_path / name]))
