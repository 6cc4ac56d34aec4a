"""A recipe that is killed, loses power or is told of an error at any operation on files goes on from its parts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from patterning_fast.recipes.recipe import Recipe, run
from patterning_fast.report.output import RESULTS
from tests import faults
from tests.faults import (
    FULL,
    IO_ERROR,
    KILL,
    POWER_LOSS,
    REORDERED,
    Fault,
    Operation,
    at_every_operation,
    folder_in_memory,
)
from tests.recipes import tiny

OLD = [{"part": name, "length": 3 * len(name)} for name in tiny.PARTS]
NEW = [{"part": name, "length": 2 * len(name)} for name in tiny.PARTS]


def outcome(out: Path) -> list[dict[str, object]]:
    """The table of an output that is whole."""
    assert {path.name for path in out.iterdir()} == {RESULTS, "report.html"}
    rows: list[dict[str, object]] = json.loads((out / RESULTS).read_bytes())["tables"]["Lengths"]
    assert all(f"<td>{row['length']}</td>" in (out / "report.html").read_text(encoding="utf-8") for row in rows)
    return rows


@pytest.mark.parametrize(("fault", "every"), [(KILL, 1), (REORDERED, 2), (POWER_LOSS, 3), (IO_ERROR, 5), (FULL, 7)])
def test_a_recipe_with_a_fault_at_every_operation(fault: Fault, every: int) -> None:
    with folder_in_memory() as folder:
        recipe_with_faults(folder, fault, every)


def recipe_with_faults(above: Path, fault: Fault, every: int) -> None:
    """Each time the old output or the new one is there, and the same command makes the new one from the parts."""
    log, folder = above / "log", above / "folder"
    out, aside, parts = folder / "out", folder / ".out.replaced", folder / "out.parts"
    folder.mkdir()
    run(Recipe(tiny, tiny.Settings(str(log), factor=3), []), out, "before")
    assert outcome(out) == OLD

    def action() -> None:
        run(Recipe(tiny, tiny.Settings(str(log)), []), out, "now")

    swaps = 0
    for ended in at_every_operation(action, folder, [fault], every):
        assert outcome(out if out.exists() else aside) in (OLD, NEW), ended
        swaps += not out.exists()
        if fault.error and ended.operations[ended.at] != Operation(
            "open", str(folder)
        ):  # without a name, then with one
            assert "OSError: cannot " in str(ended.error), ended
        kept = {name for name in tiny.PARTS if any(parts.glob(f"{name}-*.pt"))}
        log.unlink(missing_ok=True)
        again = faults.run(action, folder)
        assert again.error is None, f"{ended}\n{again}"
        assert outcome(out) == NEW, ended
        assert list(folder.iterdir()) == [out], ended
        computed = log.read_text().split() if log.exists() else []
        assert len(computed) == len(set(computed)), ended
        assert not kept & set(computed), ended
    assert swaps == (fault == KILL)


def test_a_link_to_a_folder_of_results_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk/results")
    for factor in (3, 2):
        run(Recipe(tiny, tiny.Settings(str(tmp_path / "log"), factor), []), tmp_path / "out", "now")
    assert (tmp_path / "out").is_symlink()
    assert outcome(tmp_path / "disk" / "results") == NEW
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["results"]
