"""What recipes share: settings from files, parts that are kept, results in files, a page of results."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from matplotlib.figure import Figure

from patterning_fast.recipes.findings import Findings, Picture, summary, write
from patterning_fast.recipes.page import DETAILS, result_pages
from patterning_fast.recipes.pieces import Pieces
from patterning_fast.recipes.recipe import read_recipe, run_file
from patterning_fast.report.output import RESULTS
from patterning_fast.report.text import label, printable
from tests.flips import flipped, random_bits

RECIPES = Path(__file__).parents[2] / "recipes"
OURS = "patterning_fast.recipes.induction"
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
        ("recipe = 1", "needs recipe = the name of a module.* it has recipe = 1"),
        ('recipe = "soup"', r"no module 'soup': put soup\.py beside the recipe, or name one that is installed"),
        ('recipe = "../soup"', "no module '../soup'"),
        ('recipe = "json"', "module 'json' is no recipe: it needs a dataclass Settings and a function run"),
        ('recipe = "tests.recipes.soup"', "there is no module 'tests.recipes.soup'"),
        ('recipe = "OURS"\n[oven]\nheat = 1', "it also has oven"),
        ('recipe = "OURS"\n[settings]\nheat = 1', "there is no setting 'heat'; there are"),
        (
            'recipe = "OURS"\n[settings]\nheads = 1.5',
            "heads must be a whole number, got 1.5",
        ),
        (
            'recipe = "OURS"\n[settings]\nheads = true',
            "heads must be a whole number, got True",
        ),
        (
            'recipe = "OURS"\n[settings]\nlr = "fast"',
            "lr must be a finite number, got 'fast'",
        ),
        ('recipe = "OURS"\n[settings]\nlr = nan', "lr must be a finite number, got nan"),
        (
            'recipe = "OURS"\n[settings]\nseeds = 1',
            "seeds must be a list, of values that are each a whole number",
        ),
        (
            'recipe = "OURS"\n[settings]\nseeds = [0, "1"]',
            "seeds must be a whole number, got .0, '1'.",
        ),
        ('recipe = "OURS"\nsettings = 3', "settings and quick must be tables"),
        ('recipe = "OURS"\nquick = ["heads"]', "settings and quick must be tables"),
        (
            'recipe = "OURS"\ndid_not_work = "this"',
            "did_not_work must be a list of strings, got 'this'",
        ),
        ('recipe = "OURS"\ndid_not_work = [1]', "did_not_work must be a list of strings"),
        ('recipe = "OURS"\n# \udcff', "is not TOML: 'utf-8' codec"),
        ('recipe = "OURS"\nneeds = "torch"', "needs must be a list of strings, got 'torch'"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(content.replace("OURS", OURS), encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        read_recipe(path, quick=False)


def test_the_recipe_of_the_documentation_runs_as_ours_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module lies beside its file, and processes that compute its parts find it there."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    page = (RECIPES.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    for language, file in (("python", "squares.py"), ("jinja", "squares.j2"), ("toml", "mine.toml")):
        (block,) = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
        (tmp_path / file).write_text(block, encoding="utf-8")
    printed = run_file(tmp_path / "mine.toml", tmp_path / "out", quick=False)
    assert "The largest is 16: the goal is met." in printed
    found = json.loads((tmp_path / "out" / RESULTS).read_bytes())
    assert [row["square"] for row in found["tables"]["Squares"]] == [1, 4, 9, 16]
    assert found["pictures"] == {"line": "Squares by number."}
    (tmp_path / "squares.py").rename(tmp_path / "torch.py")
    (tmp_path / "mine.toml").write_text('recipe = "torch"', encoding="utf-8")
    with pytest.raises(ValueError, match=r"torch\.py has the name of the module .*: give it another name"):
        read_recipe(tmp_path / "mine.toml", quick=False)


def test_settings_are_changed_by_name(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f'recipe = "{OURS}"\n[settings]\nstrength = 0.2\n[quick]\nheads = 2', encoding="utf-8")
    made = read_recipe(path, True, ["strength=0.3", "seeds = [1, 2]", "source=found", 'device="cpu"']).settings
    assert (made.strength, made.seeds, made.source, made.heads) == (0.3, (1, 2), "found", 2)
    for text, message in (
        ("strength", "changed by NAME=VALUE, such as strength=0.3, got 'strength'"), ("=3", "changed by NAME=VALUE"),
        ("charm=3", "there is no setting 'charm'"), ("strength=fast", "strength must be a finite number, got 'fast'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_recipe(path, True, [text])


def test_what_is_not_installed_is_said_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f'recipe = "{OURS}"\nneeds = ["torch", "charm", "beauty"]', encoding="utf-8")
    with pytest.raises(ModuleNotFoundError, match="needs charm and beauty, not installed here: pip install charm beau"):
        read_recipe(path, quick=True)
    path.write_text(f'recipe = "{OURS}"', encoding="utf-8")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'patterning_fast\[parquet\]'"):
        run_file(path, tmp_path / "out", quick=True)
    assert [each.name for each in tmp_path.iterdir()] == ["recipe.toml"]


@pytest.mark.parametrize("name", ["..toml", "...toml", ".toml"])
def test_names_that_would_leave_the_folder_of_results(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(f'recipe = "{OURS}"', encoding="utf-8")
    with pytest.raises(ValueError, match="cannot name a folder of results: give the recipe another name"):
        run_file(tmp_path / name, None, quick=True)


def test_findings_in_files(tmp_path: Path) -> None:
    figure = Figure()
    figure.subplots().plot([0, 1])
    findings = Findings(
        title="A result",
        claim="It is so.",
        goal="Half.",
        verdict=["It came out at 0.4 of 0.5."],
        details=["By a little."],
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
    pages = result_pages([folder], tmp_path / "results.md")
    assert list(pages) == [tmp_path / "results.md", folder / DETAILS]
    page, details = pages.values()
    for expected in (
        "## A result (one)", "\n- It came out at 0.4", "\n![line](results/one/line.png)\n",
        "[Details](results/one/README.md): 2 minutes on 2 threads of abacus, seeds 0, 1.",
    ):  # fmt: skip
        assert expected in page
    for expected in (
        "# A result (one)", "\n- It came out at 0.4", "\n- By a little.\n", "\n![line](line.png)\n",
        "\n| run | share |\n| --- | --- |\n| base | 0.123 |\n| other | – |\n", "\n- Less.\n",
        "`run it`: 2 minutes (3 core-minutes) on 2 threads of abacus; seeds 0, 1.",
    ):  # fmt: skip
        assert expected in details
    assert "By a little" not in page
    assert "Less." in (folder / "report.html").read_text()


def test_a_damaged_part_is_named_and_computed_again(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    value: dict[str, Any] = {"weights": torch.arange(20.0), "name": "a part"}
    with Pieces(folder, SETTINGS) as pieces:
        pieces.of("some", lambda: value)
        path = pieces.path("some")
    whole = path.read_bytes()
    with Pieces(folder, SETTINGS) as pieces:
        for damaged in (b"", whole[:100], whole[:-1], whole + b"\0", b"PK" + whole):
            path.write_bytes(damaged)
            with pytest.warns(UserWarning, match=rf"{path.name} is damaged .*: the part 'some' is computed again"):
                assert torch.equal(pieces.of("some", lambda: value)["weights"], torch.arange(20.0))
            assert pieces.of("some", lambda: dict[str, Any]())["name"] == "a part"


def test_no_flipped_bit_of_a_part_is_silent(tmp_path: Path) -> None:
    with Pieces(tmp_path / "parts", SETTINGS) as pieces:
        pieces.of("some", lambda: {"weights": torch.arange(50.0)})
        path = pieces.path("some")
        for bit in random_bits(path, 1000, seed=0):
            with flipped(path, bit), pytest.warns(UserWarning, match="is damaged"):
                assert pieces.kept("some") is None
        assert pieces.kept("some") is not None


def test_a_part_of_another_name_or_run_is_not_taken(tmp_path: Path) -> None:
    other = {"settings": {"lr": 1e-2, "seeds": [0, 1]}}
    with Pieces(tmp_path / "a", SETTINGS) as pieces, Pieces(tmp_path / "b", other) as others:
        pieces.of("one", lambda: 1)
        shutil.copy(pieces.path("one"), pieces.path("two"))
        shutil.copy(pieces.path("one"), others.path("one"))
        with pytest.warns(UserWarning, match="the part 'two' is computed again"):
            assert pieces.of("two", lambda: 2) == 2
        with pytest.warns(UserWarning, match="the part 'one' is computed again"):
            assert others.of("one", lambda: 3) == 3


def test_damaged_settings_and_times_are_named(tmp_path: Path) -> None:
    with Pieces(tmp_path, SETTINGS) as pieces:
        pieces.of("some", lambda: 1)
        pieces.started -= 100
    for content in (b"", b"12.5", (tmp_path / "seconds").read_bytes()[:-1]):
        (tmp_path / "seconds").write_bytes(content)
        (tmp_path / "settings").write_bytes(content)
        with pytest.warns(UserWarning, match="is damaged") as warned:
            pieces = Pieces(tmp_path, SETTINGS)
        with pieces:
            assert pieces.of("some", lambda: 2) == 1
            assert pieces.time_spent() < 100
        of_settings, of_time = (str(each.message) for each in warned)
        assert re.search("settings is damaged .*: only parts of these settings are used", of_settings)
        assert re.search("seconds is damaged .*: the time before this start is not counted", of_time)


def test_only_what_a_run_wrote_is_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(FileExistsError, match="does not hold the parts of a run; choose another --out"):
        Pieces(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with Pieces(tmp_path / "parts", SETTINGS) as pieces:
        pieces.of("some", lambda: 1)
        (tmp_path / "parts" / "notes").touch()
        pieces.remove()
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["notes"]


def test_an_unreadable_part_is_not_computed_again(tmp_path: Path) -> None:
    with Pieces(tmp_path, SETTINGS) as pieces:
        pieces.path("some").mkdir()
        with pytest.raises(OSError, match=r"cannot read .*some-.*\.pt: Is a directory; make it readable, or remove it"):
            pieces.of("some", lambda: 1)


def busy(log: str) -> None:
    with Path(log).open("a", encoding="utf-8") as file:
        print(os.getpid(), file=file)
    ends = time.monotonic() + 90
    while time.monotonic() < ends:
        torch.randn(500, 500) @ torch.randn(500, 500)


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = (
        "import pathlib, sys; from patterning_fast.recipes.pieces import Pieces; "
        "from tests.recipes.test_frame import busy\n"
        "with Pieces(pathlib.Path(sys.argv[1]) / 'parts', {}, at_once=2) as pieces:\n"
        "    pieces.map('busy', busy, {name: (sys.argv[1] + '/log',) for name in ('one', 'two')})"
    )
    run = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=RECIPES.parent)
    until(lambda: log.exists() and len(log.read_text().splitlines()) == 2, 60)
    workers = log.read_text(encoding="utf-8").split()
    assert all(map(is_running, workers))
    run.kill()
    run.wait()
    until(lambda: not any(map(is_running, workers)), 5)


def is_running(process: str) -> bool:
    """Whether it has not ended; one that has may stay in the list until its parent asks."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(true: Callable[[], bool], seconds: float) -> None:
    """Wait for something that must come to be."""
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "did not come to be"
        time.sleep(0.05)


HOSTILE = """<script>alert("1")</script> & ' | `x` ![y](z) $\\frac{$ \n# \x1b[31m \udcff"""


class Tags(HTMLParser):
    """The tags, and the text between them, of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert {name for name, _ in attrs} <= {"lang", "charset", "alt", "src"}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_strings_of_data_become_no_markup(tmp_path: Path) -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], label=label(HOSTILE))
    axes.set_title(label(HOSTILE))
    axes.legend()
    findings = Findings(
        title=HOSTILE, claim=HOSTILE, goal=HOSTILE, verdict=[HOSTILE], details=[HOSTILE], seeds=[0],
        tables={HOSTILE: [{HOSTILE: HOSTILE, "loading": 1.0}]}, pictures={"line": Picture(figure, HOSTILE)},
    )  # fmt: skip
    made = {
        "command": f"run {HOSTILE}", "did_not_work": [HOSTILE], "machine": {"processor": HOSTILE, "threads": 2},
        "seconds": 1.0, "core_seconds": {HOSTILE: 1.0},
    }  # fmt: skip
    folder = tmp_path / "results <b>|"
    folder.mkdir()
    write(folder, findings, made)
    assert json.loads((folder / RESULTS).read_bytes())["details"] == [HOSTILE]
    parser, page = Tags(), (folder / "report.html").read_text(encoding="utf-8")
    parser.feed(page)
    assert parser.tags == {
        "html", "meta", "title", "style", "h1", "h2", "p", "table", "tr", "th", "td", "figure", "img", "figcaption",
    }  # fmt: skip
    shown = printable(HOSTILE)
    assert parser.text.count(shown) >= 10
    assert page.count("src=") == 1
    page, details = result_pages([folder], tmp_path / "results.md").values()
    lines = [*page.splitlines(), *details.splitlines()]
    marked = [re.sub(r"\\.|``+.*?``+", "", line) for line in lines if "`patterning-fast r" not in line]
    assert not any(set(line) & set("<`$") or "](z)" in line for line in marked)  # but what is escaped, or code
    assert [line.count("|") for line in marked if line.startswith("|")] == [3, 3, 3]
    assert any("](results%20%3Cb%3E%7C/line.png)" in line for line in marked)
    printed = summary(findings)
    assert "\x1b" not in printed
    assert len(printed.splitlines()) == 6


def test_results_that_are_damaged_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    for content in ("", "{", "[]", '{"title": "One"}', '{"title": 1, "seconds": "long", "core_seconds": {}}'):
        (folder / RESULTS).write_text(content, encoding="utf-8")
        with pytest.raises(
            ValueError, match=r"one/results\.json is damaged, or not of a recipe .*: run the recipe again"
        ):
            result_pages([folder], tmp_path / "results.md")
    with pytest.raises(ValueError, match=r"one is not below .*elsewhere, where the page goes: choose another --out"):
        result_pages([folder], tmp_path / "elsewhere" / "results.md")
