"""The command line: `doctor`, and an end to it that scripts can read."""

from __future__ import annotations

import re

import pytest

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
