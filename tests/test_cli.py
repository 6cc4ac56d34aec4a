"""The command line: `doctor`, and an end to it that scripts can read."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

import patterning_fast as pf
from patterning_fast import _C
from patterning_fast.cli import main


def test_doctor_says_what_each_op_runs_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert f"{_C.build_info()['isa']} in use" in printed
    assert re.search(r"langevin_step +cpp +\(or .*reference\)", printed)
    assert re.search(r"comoments_update +cpp +\(or .*reference\)", printed)
    assert re.search(r"cuda kernels +(for .*, nvcc \d+|not built)", printed)
    assert "torch            2" in printed


def test_unknown_commands_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["dance"])
    assert stopped.value.code == 2
    assert "invalid choice: 'dance'" in capsys.readouterr().err


def test_a_terminal_of_ascii(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.toml").write_text(
        'recipe = "patterning_fast.recipes.induction"\nsettings = { "λ̂ ≥ 漢" = 1 }', encoding="utf-8"
    )
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    assert (main(["doctor"]), main(["run", str(tmp_path / "a.toml")])) == (0, 1)
    for stream in (out, err):
        stream.seek(0)
    assert out.read().startswith("patterning_fast ")
    assert r"there is no setting 'lambda-hat >= \u6f22'" in err.read()


def test_a_home_that_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/proc/nobody")
    assert main(["data", "mini-pile"]) == 1
    assert "error: cannot write the mini-pile to /proc/nobody/.cache/" in capsys.readouterr().err


def test_an_empty_path_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--out", ""])
    assert "argument --out: the path is empty" in capsys.readouterr().err


def test_the_version_and_the_module(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == pf.__version__
    ran = subprocess.run([sys.executable, "-m", "patterning_fast", "--version"], capture_output=True, text=True)
    assert ran.stdout.strip() == pf.__version__
