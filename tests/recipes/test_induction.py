"""The induction recipe at toy size: complete results or none."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from patterning_fast.cli import main
from patterning_fast.recipes.controls import dealt_out, non_negative
from patterning_fast.recipes.induction.findings import TEMPLATE, about_modes, against_goals
from patterning_fast.recipes.induction.runs import begun, initial_model, trained
from patterning_fast.recipes.induction.settings import Settings
from patterning_fast.recipes.induction.tables import crossing
from patterning_fast.recipes.induction.text import text_of
from patterning_fast.recipes.induction.weights import by_gradient
from patterning_fast.recipes.recipe import DEMO, read_recipe, run
from patterning_fast.recipes.templates import said as said_by
from patterning_fast.tasks.induction import repeated_strings

pytestmark = pytest.mark.filterwarnings("ignore:χ of .* is geometry of a Gaussian ball")  # as of a toy run

COMMAND = [sys.executable, "-m", "patterning_fast.cli", "demo", "--quick", "--out"]
QUICK = read_recipe(DEMO, quick=True).settings
RECIPES = Path(__file__).parents[2] / "recipes"
FILES = {
    "results.json",
    "weights.parquet",
    "curves.parquet",
    "curves.png",
    "chi.png",
    "mode.png",
    "ratios.png",
    "report.html",
}


def test_quick_demo_writes_everything(tmp_path: Path) -> None:
    """On a terminal of ASCII, without a home to write to; into a log of few lines."""
    out = tmp_path / "new" / "demo"
    surroundings = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "HOME": "/proc/nobody"}
    done = subprocess.run([*COMMAND, str(out)], env=os.environ | surroundings, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"\r" not in done.stderr
    assert len(done.stderr) < 2000
    assert done.stderr.isascii()
    printed = done.stdout.decode("ascii")
    assert "mean rho" in printed
    assert {path.name for path in out.iterdir()} == FILES
    assert list(out.parent.iterdir()) == [out]
    results = json.loads((out / "results.json").read_text())
    assert [row["run"] for row in results["tables"]["Runs"]] == ["base", "amplified 0.3", "suppressed 0.3", "random"]
    assert pyarrow.parquet.read_table(out / "curves.parquet").num_rows == 4 * 5
    weights = pyarrow.parquet.read_table(out / "weights.parquet").to_pydict()
    for name in ("amplified 0.3", "suppressed 0.3", "random"):
        assert len(weights[name]) == 128 * 32
        assert np.mean(weights[name]) == pytest.approx(1.0, abs=1e-6)
        assert min(weights[name]) >= 0
    assert sorted(weights["random"]) == sorted(weights["amplified 0.3"])
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "mean ρ" in page
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r"<(script|link|iframe)|(src|href)=.?http", page)  # nothing beside the file itself
    assert "over base" in printed
    # A second run replaces the first; a folder of something else is left alone.
    assert main(["demo", "--quick", "--out", str(out), "--seed", "1"]) == 0
    assert json.loads((out / "results.json").read_text())["seeds"] == [1]


def test_folders_of_others_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 1
    assert "is not a folder of earlier results; choose another --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody can write to: /proc")
def test_a_read_only_place_is_refused_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    assert main(["demo", "--quick", "--out", "/proc/demo"]) == 1
    assert "cannot write 64 MiB of results to /proc/demo: " in capsys.readouterr().err
    assert time.monotonic() - started < 1.0


def test_a_full_disk_is_refused_before_any_work(tmp_path: Path) -> None:
    """A limit on file size stands for the full disk: the system refuses the space either way."""
    result = subprocess.run(
        [*COMMAND, str(tmp_path / "demo")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "cannot write 64 MiB of results to" in result.stderr
    assert "base runs" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("parts", "stage"), [(0, "training"), (1, "sampling"), (2, "retraining")])
def test_ctrl_c_leaves_parts_to_go_on_from(
    parts: int, stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = subprocess.Popen(
        [*COMMAND, str(tmp_path / "demo")],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        # Shells start what runs in the background deaf to Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "demo.parts" / "settings").exists() or len(list(tmp_path.glob("demo.parts/*.pt"))) < parts:
        assert process.poll() is None, f"ended before {stage}"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"interrupted: the same command goes on from the parts that are done" in said
    assert [path.name for path in tmp_path.iterdir()] == ["demo.parts"]
    if stage == "retraining":
        assert main(["demo", "--quick", "--out", str(tmp_path / "demo")]) == 0
        assert "base runs" not in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_control_deals_weights_out_within_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(30, 7, generator=generator)
    classes = torch.randint(4, (30, 7), generator=generator)
    found = dealt_out(weights, 1, classes)
    assert not torch.equal(found, weights)
    for number in range(4):
        own = classes == number
        assert torch.equal(found[own].sort().values, weights[own].sort().values)
        assert abs(float(torch.corrcoef(torch.stack((found[own], weights[own])))[0, 1])) < 0.5


def test_non_negative_weights_of_a_strength() -> None:
    direction = torch.randn(5000, generator=torch.Generator().manual_seed(0)).double()
    rho = non_negative(direction, 0.8)
    assert float(rho.mean()) == pytest.approx(1.0)
    assert float((rho - 1).square().mean().sqrt()) == pytest.approx(0.8, rel=1e-6)
    assert float(rho.min()) == 0.0


def test_gradient_weights_prefer_the_loss_they_are_made_for() -> None:
    """Data that are the strings with repeats themselves: their repeats, whose mean loss it is, weigh more."""
    settings = QUICK
    repeats = repeated_strings(torch.arange(96), 32, settings.length, seed=2)
    rho = by_gradient(initial_model(settings, 96, 0), repeats.tokens, repeats, 0.3)
    assert float(rho[repeats.repeats()].mean()) > float(rho[~repeats.repeats()].mean()) + 0.05


def test_text_of_domains_with_chi_on_some_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU recipe's way through, at toy size: tokens of domains, and weights for contexts that χ is not of."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = tmp_path / "text"
    text.mkdir()
    for name, phrase in (
        ("prose", "the quick brown fox jumps over the lazy dog, said {}. "),
        ("sums", "{} + 1 > {}\n"),
    ):
        (text / f"{name}.txt").write_text("".join(phrase.format(number, number) for number in range(2000)))
    file = tmp_path / "small.toml"
    quick = (RECIPES / "induction-gpu.toml").read_text().partition("[quick]")[2]
    file.write_text(
        f'recipe = "patterning_fast.recipes.induction"\n[settings]{quick}'.replace('"found"', json.dumps(str(text)))
    )
    made = read_recipe(file, quick=False)
    run(made, tmp_path / "out", "by hand")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["run"] for row in results["tables"]["Weights"]] == [
        "amplified 0.3", "suppressed 0.3", "random", "loss alone", "no loss"
    ]  # fmt: skip
    for row in results["tables"]["Weights"]:
        assert row["mean ρ"] == pytest.approx(1.0, abs=1e-6)
        if row["run"] == "loss alone":
            assert row["ρ: seen before"] == pytest.approx(1.0, abs=0.2)
            assert 0.05 < row["strength α"] < 0.3
        else:
            assert row["strength α"] == pytest.approx(0.3, rel=1e-4)
    assert {row["domain"] for row in results["tables"]["Mean weight by domain"]} == {"prose", "sums"}
    weights = pyarrow.parquet.read_table(tmp_path / "out" / "weights.parquet")
    assert weights.num_rows == made.settings.chi_contexts * (made.settings.length - 1)
    _, counts = np.unique(weights["loss alone"].to_numpy(), return_counts=True)
    assert counts.max() > 0.1 * weights.num_rows  # what induction predicts has one weight
    assert read_recipe(RECIPES / "induction-gpu.toml", quick=False).settings.source == "mini-pile"


def test_the_model_of_the_early_step_is_the_base_run_s() -> None:
    settings = replace(QUICK, train_steps=10, early_step=10)
    text = text_of(settings, 0)
    early = begun(settings, text, 0).state_dict()
    base = trained(settings, 0, None, False)["parameters"]
    assert all(torch.equal(early[name], base[name]) for name in base)
    later = trained(replace(QUICK, train_steps=12), 0, None, False)["parameters"]
    assert not all(torch.equal(early[name], later[name]) for name in base)


def history(scores: list[float]) -> list[dict[str, float]]:
    return [{"step": 10.0 * index, "induction_score": score} for index, score in enumerate(scores)]


def test_crossing_is_interpolated() -> None:
    assert crossing(history([0.0, 0.2, 0.6, 0.4]), 0.3) == pytest.approx(12.5)
    assert crossing(history([0.0, 0.1]), 0.3) != crossing(history([0.0, 0.1]), 0.3)  # NaN


def test_words_say_what_the_table_says() -> None:
    nan = float("nan")
    settings = Settings(seeds=(0, 1))
    formed = {
        "base": [100.0, 200.0],
        "amplified 0.3": [50.0, 160.0],
        "suppressed 0.3": [nan, 300.0],
        "random": [105.0, 250.0],
    }

    def said(**changes: list[float]) -> str:
        values = against_goals(settings, formed | changes) | about_modes(settings, {}) | {"radius": None}
        return " ".join(said_by(TEMPLATE, values)["verdict"])

    text = said()
    assert "formed the circuit at step 100, 200 of 1500" in text
    assert "amplified runs formed it 1.25 to 2.00 times as early (goal 1.4: 1 of 2 seeds)" in text
    assert "1.50 times as late at least, 1 of 2 never within the run (goal 2: 1 of 2)" in text
    assert "Control random: 1.05 to 1.25 times the base run's step; within 10% in 1 of 2 seeds" in text
    assert "never within the run (goal 2: 2 of 2)" in said(**{"suppressed 0.3": [nan, nan]})
    assert "nothing can be said" in said(base=[100.0, nan])
