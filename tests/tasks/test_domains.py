"""Text by domain from each source, and a tokenizer of it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from patterning_fast.tasks.domains import domains
from patterning_fast.tasks.tokenizer import train_tokenizer


def test_found_text() -> None:
    found = domains("found")
    assert "import" in next(iter(found["code"]))
    assert next(iter(found["code"])) == next(iter(found["code"]))


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    for name in ("b.txt", "a.md", "picture.png"):
        (tmp_path / "letters" / name).write_text(f"Dear {name}")
    (tmp_path / "notes.txt.gz").write_bytes(gzip.compress("Nö.".encode()))
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2], "text": ["x", "y"]}), tmp_path / "table.parquet")
    (tmp_path / "picture.png").write_bytes(b"-")
    found = domains(str(tmp_path))
    expected = {"letters": ["Dear a.md", "Dear b.txt"], "notes": ["Nö."], "table": ["x", "y"]}
    for _ in range(2):
        assert {name: list(documents) for name, documents in found.items()} == expected


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'pile' is no source of text, and no folder: it must be 'found'"):
        domains("pile")
    with pytest.raises(ValueError, match="'hf:' is no source"):
        domains("hf:")
    with pytest.raises(FileNotFoundError, match=r"holds no text: give it a file"):
        domains(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="fetch it with patterning-fast data mini-pile"):
        domains(f"mini-pile:{tmp_path}")


def test_data_sets_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"text": ["one", "two", "three"], "domain": ["a", "b", "a"]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "both")
    found = domains(str(tmp_path / "both"))
    assert {name: list(documents) for name, documents in found.items()} == {"a": ["one", "three"], "b": ["two"]}
    datasets.Dataset.from_dict({"text": ["one"]}).save_to_disk(tmp_path / "alone")
    assert {name: list(documents) for name, documents in domains(str(tmp_path / "alone")).items()} == {"alone": ["one"]}
    datasets.Dataset.from_dict({"words": ["one"]}).save_to_disk(tmp_path / "other")
    with pytest.raises(ValueError, match="has no column 'text'; it has words"):
        domains(str(tmp_path / "other"))


def test_tokenizers_are_learnt_once(tmp_path: Path) -> None:
    text = {"code": ["def f(x):\n    return x\n" * 20], "verse": ["A röse is a röse.\n"] * 20}
    tokenizer = train_tokenizer(text, 270, tmp_path)
    assert tokenizer.get_vocab_size() == 270
    for documents in text.values():
        ids = tokenizer.encode(documents[0], add_special_tokens=False).ids
        assert tokenizer.decode(ids) == documents[0]
        assert len(ids) < len(documents[0].encode())
    (kept,) = tmp_path.iterdir()
    made = kept.stat().st_mtime_ns
    assert train_tokenizer(text, 270, tmp_path).get_vocab() == tokenizer.get_vocab()
    assert kept.stat().st_mtime_ns == made
    train_tokenizer(text | {"verse": ["another text, another tokenizer\n" * 20]}, 270, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_vocabularies_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="vocabulary must be more than the 256 bytes"):
        train_tokenizer({"a": ["x"]}, 256)
    with pytest.raises(ValueError, match="the text has pairs for a vocabulary of 257, not 1000"):
        train_tokenizer({"a": ["xy"]}, 1000)
