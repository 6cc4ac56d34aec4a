"""Fuzzing in processes of its own, at toy size."""

from __future__ import annotations

import json

import pytest
from bench import fuzz


def test_a_round_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(minutes=1e-3, calls_of_a_round=20) == 0
    progress, counted, by_target = capsys.readouterr().out.splitlines()
    assert "20 calls, 0 failures" in progress
    assert json.loads(counted)["calls"] == sum(json.loads(by_target).values()) == 20


def test_a_round_that_dies_is_a_failure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told with the call that was under way."""
    line = json.dumps({"target": "sample", "call": "c", "failure": None})
    dies = f"import os, sys; open(sys.argv[3], 'w').write({line!r}); os.abort()"
    monkeypatch.setattr(fuzz, "COMMAND", ["-c", dies])
    assert fuzz.main(minutes=1e-3, calls_of_a_round=1) == 1
    assert "FAILED sample: the process ended with -6\n  by c" in capsys.readouterr().out
