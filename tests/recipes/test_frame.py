"""What recipes share: settings from files, parts that are kept, results in files, a page of results."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from matplotlib.figure import Figure

from patterning_fast.recipes.findings import Findings, Picture, results_page, write
from patterning_fast.recipes.pieces import Pieces
from patterning_fast.recipes.recipe import read_recipe
from patterning_fast.report.output import RESULTS

RECIPES = Path(__file__).parents[2] / "recipes"
SETTINGS = {"settings": {"lr": 1e-3, "seeds": [0, 1]}}


def in_its_own_process(number: int) -> dict[str, object]:
    return {"square": torch.tensor(number**2), "process": os.getpid(), "threads": torch.get_num_threads()}


def test_parts_are_computed_once(tmp_path: Path) -> None:
    calls = []

    def compute() -> dict[str, float]:
        calls.append(1)
        return {"loss": 0.5}

    for _ in range(2):
        with Pieces(tmp_path / "parts", SETTINGS) as pieces:
            assert pieces.of("a part/of it", compute) == {"loss": 0.5}
            assert pieces.core_seconds["a part/of it"] >= 0
    assert len(calls) == 1


def test_parts_in_processes(tmp_path: Path) -> None:
    with Pieces(tmp_path, SETTINGS) as pieces:
        pieces.of("two", lambda: in_its_own_process(2))
        found = pieces.map("squares", in_its_own_process, {"two": (2,), "three": (3,), "four": (4,)})
        threads = torch.get_num_threads()
        (alone,) = pieces.map("squares", in_its_own_process, {"five": (5,)}).values()
        assert torch.get_num_threads() == threads
    assert [int(each["square"]) for each in found.values()] == [4, 9, 16]  # type: ignore[call-overload]
    assert os.getpid() not in (found["three"]["process"], found["four"]["process"])
    assert found["two"]["process"] == alone["process"] == os.getpid()
    assert {each["threads"] for each in (alone, found["three"], found["four"])} == {1}


def test_parts_one_at_a_time(tmp_path: Path) -> None:
    with Pieces(tmp_path, SETTINGS, at_once=1) as pieces:
        found = pieces.map("squares", in_its_own_process, {"two": (2,), "three": (3,)})
    assert {each["process"] for each in found.values()} == {os.getpid()}


def test_a_part_that_fails_keeps_the_others(tmp_path: Path) -> None:
    with Pieces(tmp_path, SETTINGS) as pieces, pytest.raises(TypeError):
        pieces.map("squares", in_its_own_process, {"two": (2,), "none": (None,), "three": (3,)})
    assert not multiprocessing.active_children()
    with Pieces(tmp_path, SETTINGS) as pieces:
        assert int(pieces.of("two", lambda: in_its_own_process(2))["square"]) == 4  # type: ignore[call-overload]
        assert not pieces.path("none").exists()


def test_time_adds_up_over_interruptions(tmp_path: Path) -> None:
    with Pieces(tmp_path, SETTINGS) as pieces:
        pieces.started -= 100
    with Pieces(tmp_path, SETTINGS) as pieces:
        pieces.started -= 10
        assert 110 < pieces.time_spent() < 115


def test_parts_of_other_settings_are_refused(tmp_path: Path) -> None:
    with Pieces(tmp_path, SETTINGS), pytest.raises(BlockingIOError, match="another run holds"):
        Pieces(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match=r"settings\.lr: 0\.001 there, 0\.01 here"):
        Pieces(tmp_path, {"settings": {"lr": 1e-2, "seeds": [0, 1]}})


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_settings_of_every_recipe_fit(path: Path) -> None:
    full, quick = (read_recipe(path, quick) for quick in (False, True))
    assert quick.settings != full.settings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("recipe = ", "is not TOML"),
        ('recipe = "soup"', "needs recipe = one of .* it has recipe = 'soup'"),
        ('recipe = "induction"\n[oven]\nheat = 1', "it also has oven"),
        ('recipe = "induction"\n[settings]\nheat = 1', "there is no setting 'heat'; there are"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_recipe(path, quick=False)


def test_findings_in_files(tmp_path: Path) -> None:
    figure = Figure()
    figure.subplots().plot([0, 1])
    findings = Findings(
        title="A result",
        claim="It is so.",
        goal="Half.",
        said=["It came out at 0.4 of 0.5."],
        seeds=[0, 1],
        tables={"Runs": [{"run": "base", "share": 0.123456}, {"run": "other", "share": float("nan")}]},
        pictures={"line": Picture(figure, "A line.")},
        data={"weights": [{"sample": 0, "weight": 1.5}, {"sample": 1, "weight": 0.5}]},
    )
    machine = {"processor": "abacus", "threads": 2}
    made = {
        "command": "run it",
        "did_not_work": ["Less."],
        "machine": machine,
        "seconds": 100.0,
        "core_seconds": {"a": 60.0, "b": 120.0},
    }
    folder = tmp_path / "results" / "one"
    folder.mkdir(parents=True)
    write(folder, findings, made)
    assert {path.name for path in folder.iterdir()} == {RESULTS, "line.png", "weights.parquet", "report.html"}
    assert json.loads((folder / RESULTS).read_text())["tables"]["Runs"][1]["share"] is None
    assert pyarrow.parquet.read_table(folder / "weights.parquet").to_pylist() == findings.data["weights"]
    page = results_page([folder], tmp_path)
    for expected in (
        "## A result (one)", "- It came out at 0.4", "| base | 0.123 |", "| other | – |",
        "![line](results/one/line.png)", "- Less.",
        "`run it`: 2 min (3 core-minutes) on 2 threads of abacus; seeds 0, 1.",
    ):  # fmt: skip
        assert expected in page
    assert "Less." in (folder / "report.html").read_text()
