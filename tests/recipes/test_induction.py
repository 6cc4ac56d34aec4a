"""The induction recipe at toy size: complete results or none."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import xarray as xr

from patterning_fast.cli import main
from patterning_fast.recipes.induction import QUICK, History, crossing, in_words, initial_model, train_side_by_side
from patterning_fast.tasks.found_text import found_text_contexts
from patterning_fast.tasks.induction import repeated_strings

COMMAND = [sys.executable, "-m", "patterning_fast.cli", "demo", "--quick", "--out"]
FILES = {"results.json", "susceptibilities.nc", "weights.nc", "curves.png", "chi.png", "mode.png", "report.html"}


def test_quick_demo_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "demo"
    assert main(["demo", "--quick", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == FILES
    assert list(out.parent.iterdir()) == [out]
    results = json.loads((out / "results.json").read_text())
    assert [row["run"] for row in results["runs"]] == ["base", "amplified", "suppressed", "random"]
    assert len(results["histories"]["random"]) == 5
    assert results["runs"][3]["final training loss"] is not None
    chi = xr.open_dataset(out / "susceptibilities.nc", engine="scipy")
    assert chi["chi"].shape == (5, 128 * 32)
    weights = xr.open_dataset(out / "weights.nc", engine="scipy")
    for name in ("amplified", "suppressed", "random"):
        assert float(weights[name].mean()) == pytest.approx(1.0)
        assert float(weights[name].min()) >= 0
    assert sorted(weights["random"].values) == sorted(weights["amplified"].values)
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"<(script|link|iframe)|(src|href)=.?http", page)  # nothing beside the file itself
    assert "relative to base" in printed
    assert results["text_sha256"] in page
    # A second run replaces the first; a folder of something else is left alone.
    assert main(["demo", "--quick", "--out", str(out), "--seed", "1"]) == 0
    assert json.loads((out / "results.json").read_text())["recipe"]["seed"] == 1


def test_folders_of_others_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 1
    assert "is not a folder of earlier results; choose another --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody can write to: /proc")
def test_a_read_only_place_is_refused_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    assert main(["demo", "--quick", "--out", "/proc/demo"]) == 1
    assert "cannot write in /proc" in capsys.readouterr().err
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
    assert "has no room for 4 MiB of results" in result.stderr
    assert "training" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["training the base run", "sampling", "amplified"])
def test_ctrl_c_leaves_nothing_behind(stage: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, str(tmp_path / "demo")],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        # Shells start what runs in the background deaf to Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert isinstance(process.stderr, io.BufferedReader)
    seen = b""
    while stage.encode() not in seen:
        read = process.stderr.read1(4096)
        assert read, f"ended before {stage}: {seen.decode()}"
        seen += read
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"interrupted: nothing was written" in rest
    assert list(tmp_path.iterdir()) == []


def test_runs_side_by_side_are_those_run_alone() -> None:
    contexts = found_text_contexts(QUICK.contexts, QUICK.length, QUICK.shares, seed=1)
    strings = repeated_strings(torch.arange(96), 8, QUICK.length, seed=2)
    start = initial_model(QUICK, 0)
    threads = torch.get_num_threads()

    def train(*names: str) -> list[History]:
        runs = train_side_by_side(QUICK, start, contexts, strings, dict.fromkeys(names), 0)
        return [history[1:] for _, history in runs.values()]

    (alone,) = train("alone")
    assert train("one", "two", "three") == [alone] * 3
    assert torch.get_num_threads() == threads


def history(scores: list[float]) -> list[dict[str, float]]:
    return [{"step": 10.0 * index, "induction_score": score} for index, score in enumerate(scores)]


def test_crossing_is_interpolated() -> None:
    assert crossing(history([0.0, 0.2, 0.6, 0.4]), 0.3) == pytest.approx(12.5)
    assert crossing(history([0.0, 0.1]), 0.3) != crossing(history([0.0, 0.1]), 0.3)  # NaN


def test_words_say_what_the_table_says() -> None:
    def said(amplified: float, suppressed: float, random: float, base: float = 100.0) -> str:
        steps = {"base": base, "amplified": amplified, "suppressed": suppressed, "random": random}
        return " ".join(in_words([{"run": name, "circuit formed at step": step} for name, step in steps.items()], 500))

    nan = float("nan")
    text = said(50.0, nan, 105.0)
    assert "amplified run formed it at step 50, 2.00 times as early" in text
    assert "suppressed run did not form it within 500 steps" in text
    assert "random run formed it at step 105, within 10 % of the base run" in text
    assert "suppressed run formed it at step 90, within 10 %" in said(50.0, 90.0, 100.0)
    assert "suppressed run formed it at step 50, 2.00 times as early" in said(50.0, 50.0, 100.0)
    assert "amplified run formed it at step 200, 2.00 times as late" in said(200.0, 50.0, 100.0)
    assert said(50.0, nan, 100.0, nan) == "The base run did not form the circuit, so nothing can be said of the others."
