"""The parts that commands share: options, TOML, samples."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import patterning_fast as pf
from patterning_fast.cli import STEPS, main
from patterning_fast.commands.documents import Document, documents
from patterning_fast.commands.estimate import EstimateSettings
from patterning_fast.commands.folder import toml
from patterning_fast.commands.options import settings_from
from patterning_fast.commands.samples import cut, of_token_file
from patterning_fast.recipes.recipe import DEMO, read_recipe, recipe_file


@pytest.mark.parametrize("step", [step[0] for step in STEPS])
def test_help_has_every_setting(step: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([step, "--help"]) == 0
    said = capsys.readouterr().out
    for each in fields(next(kind for name, kind, *_ in STEPS if name == step)):
        assert f"--{each.name.replace('_', '-')}" in said
    assert "--set" in said


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for each in ("estimate", "modes", "plan", "verify", "train", "report", "demo", "run", "results", "data", "doctor"):
        assert f"\n  {each} " in said
    assert "..." not in said.partition("Commands:")[2]  # every line is whole


def test_what_is_set_counts_more_than_what_is_typed_and_that_more_than_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[settings]\nlr = 0.5\nn_beta = 1\nseed = 7\ncomponents = ["embed"]\n[made_from]\n')
    found = settings_from(
        "estimate", EstimateSettings, file, {"n_beta": 2.0, "seed": 8}, ["seed=9", "components=l0h0,l1"]
    )
    assert (found.lr, found.n_beta, found.seed, found.components) == (0.5, 2.0, 9, ("l0h0", "l1"))


def test_toml_says_what_it_was_given() -> None:
    given: dict[str, dict[str, Any]] = {
        "settings": {"a": 'quote " and \\ and\nline \x7f ä', "b": 1e-5, "c": True, "d": [1.5, 2.0], "e": [], "f": -3},
        "made_from": {},
    }
    assert tomllib.loads(toml(given)) == given


def letters(text: str) -> list[int]:
    return [ord(each) for each in text]


def test_first_pieces_come_before_second_ones() -> None:
    texts = [Document("one", "abcdefghij"), Document("two", "x"), Document("two", "klmnopq"), Document("one", "rs")]
    found = cut(texts, letters, count=5, length=2).decoded(chr)
    lengths = found.table["length"].values
    said = ["".join(row[:size]) for row, size in zip(found.table["text"].values, lengths, strict=True)]
    assert said == ["abc", "def", "klm", "nop", "rs"]
    assert found.table["document"].values.tolist() == ["one/0", "one/0", "two/1", "two/1", "one/2"]
    data = found.data()
    assert data["input_ids"].tolist()[4] == [ord("r"), ord("s"), 0]
    assert data["attention_mask"].sum(1).tolist() == [3, 3, 3, 3, 2]
    assert cut(texts, letters, count=2, length=2).table["document"].values.tolist() == ["one/0", "two/1"]


def test_no_more_is_read_than_is_needed() -> None:
    def endless() -> Iterator[Document]:
        while True:
            yield Document("one", "abc" * 10)

    assert len(cut(endless(), letters, count=3, length=4)) == 3


@pytest.mark.parametrize("kind", ["uint16", "uint32"])
def test_token_files_are_read_where_they_lie(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    tokens = np.arange(103, dtype=kind)
    tokens.tofile(path)
    found = of_token_file(path, kind, count=3, length=9, vocabulary=103)
    assert found.table["input_ids"].values[:, 0].tolist() == [0, 40, 90]
    assert found.table["input_ids"].values[2].tolist() == list(range(90, 100))
    assert "attention_mask" not in found.data()
    with pytest.raises(ValueError, match="holds the token 99, and the model knows 99"):
        of_token_file(path, kind, count=3, length=9, vocabulary=99)


def test_folders_give_their_tables_or_their_text(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.txt").write_text("two")
    assert list(documents(str(tmp_path), "text")) == [Document("a", "one"), Document("b", "two")]
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "d.jsonl").write_text("no")
    pq.write_table(pa.table({"body": ["x", "y"], "source": ["wiki", None]}), tmp_path / "b" / "train.parquet")
    (tmp_path / "e.jsonl").write_text('{"body": [1, 2]}\n\n')
    found = list(documents(str(tmp_path), "body"))  # in turn from each
    assert found == [Document("wiki", "x"), Document("e", [1, 2]), Document("train", "y")]


def test_samples_are_what_the_loss_takes() -> None:
    data = cut([Document("one", "abcd"), Document("one", "ef")], letters, count=4, length=3).data()
    assert pf.losses.causal_lm.present(data).tolist() == [[True] * 3, [True, False, False]]  # type: ignore[attr-defined]


def test_recipes_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    named = read_recipe(recipe_file(Path("induction")), quick=False)
    assert named.settings.seeds == (0, 1, 2, 3, 4, 5)
    assert recipe_file(Path("demo")) == DEMO
    assert recipe_file(Path("recipes/own.toml")) == Path("recipes/own.toml")
    assert main(["run", "dance"]) == 1
    said = capsys.readouterr().err
    assert "the package has no recipe 'dance', but demo, induction; others are TOML files in the folder" in said
    assert main(["run", "induction", "--set", "strength=strong"]) == 1
    assert "strength must be a finite number, got 'strong'" in capsys.readouterr().err
