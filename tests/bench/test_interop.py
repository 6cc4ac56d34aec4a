"""The bench of the drop-in at toy size: both libraries run every call, and references are compared."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

pytest.importorskip("devinterp")
pytest.importorskip("datasets")

from bench import interop
from bench.endtoend import workload


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "FOLDER", tmp_path)
    monkeypatch.setattr(interop, "A", workload.TOY)
    monkeypatch.setattr(interop, "HEADS", ("l0h1", "l1h0"))
    small = {"batch_size": workload.TOY.batch_size, "num_draws": 2, "num_init_loss_batches": 1}
    monkeypatch.setattr(interop, "CHAINS", interop.CHAINS | small)
    workload.prepare(workload.TOY)


@pytest.mark.usefixtures("toy")
def test_both_libraries_run_every_call() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in interop.CASES:
            for library in interop.MODULES:
                assert interop.call(case, library) > 0


@pytest.mark.usefixtures("toy")
def test_references_are_compared() -> None:
    rows = interop.references()
    assert [row["bar"] for row in rows] == [None, None]
