"""The bench of responses, at toy size."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench import responses
from bench.endtoend import workload

pytestmark = pytest.mark.filterwarnings("ignore:max_chains was spent")


@pytest.mark.parametrize("name", [*responses.FIGURES])
def test_every_figure_is_measured(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "FOLDER", tmp_path)
    for place in ("A", "WORKLOADS"):
        monkeypatch.setattr(workload, place, {"A": workload.TOY} if place == "WORKLOADS" else workload.TOY)
    (row,) = responses.FIGURES[name](responses.TOY)
    assert isinstance(row["value"], float)
    assert row["value"] > 0
    assert isinstance(row["bar"], float)
