"""Progress is a bar on a terminal and, elsewhere, few plain lines."""

from __future__ import annotations

import io
import os
import pty
import re
import termios

import pytest

from patterning_fast.progress import Lines, in_words, progress_bar


def lines(every: float, total: int | None) -> list[str]:
    """What is said of three steps."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with Lines(None, total, 0, "sampling", "step", stream, every) as shown:
        for _ in range(3):
            shown.update()
    stream.seek(0)
    return stream.read().split("\n")[:-1]


def test_lines() -> None:
    first, second, last = lines(0.0, 3)
    assert re.fullmatch(r"sampling: 1 of 3 steps, 33 %, \d+ s left", first)
    assert re.fullmatch(r"sampling: 2 of 3 steps, 67 %, \d+ s left", second)
    assert re.fullmatch(r"sampling: 3 of 3 steps, 100 %, took \d+ s", last)
    assert lines(0.0, None)[0] == "sampling: 1 steps"
    assert lines(30.0, 3) == []


def test_lines_of_what_is_gone_through() -> None:
    stream = io.StringIO()
    assert list(Lines("abc", 3, 0, "", "letter", stream, every=0.0)) == ["a", "b", "c"]
    assert stream.getvalue().startswith("1 of 3 letters, 33 %")
    assert stream.getvalue().count("\n") == 3


def test_without_a_terminal_nothing_is_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(total=10**5, unit="step", desc="training") as bar:
        for _ in range(10**5):
            bar.update()
    assert list(progress_bar(range(5), desc="training")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""


def test_a_terminal_has_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with open(theirs, "w", encoding="utf-8") as terminal, monkeypatch.context() as patched:
        patched.setattr("sys.stderr", terminal)
        assert sum(progress_bar([1, 2, 3], desc="training")) == 6
        assert list(progress_bar([1], desc="silent", disable=True)) == [1]
        written = os.read(ours, 4096).decode()
    os.close(ours)
    assert "\rtraining: 100%" in written
    assert "silent" not in written


def test_durations() -> None:
    assert [in_words(each) for each in (3.4, 99, 100, 5000, 10000)] == ["3 s", "99 s", "2 min", "83 min", "2 h 47 min"]
