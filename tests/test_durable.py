"""Files are there whole or not at all, with a fault of disk, power or process at every operation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from patterning_fast.durable import clear_partial, flush_to_disk, make_folder, put, put_folder
from tests.faults import FULL, IO_ERROR, KILL, POWER_LOSS, REORDERED, Fault, at_every_operation

FAULTS = (KILL, POWER_LOSS, REORDERED, IO_ERROR, FULL)


def test_a_file_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "numbers.pt"
    torch.save(torch.zeros(3), path)
    outcomes = set()
    for ended in at_every_operation(lambda: put(path, lambda to: torch.save(torch.ones(3), to)), folder, FAULTS):
        outcomes.add(int(torch.load(path)[0]))
        if ended.fault in (IO_ERROR, FULL):
            assert "OSError" in str(ended.error) or "RuntimeError" in str(ended.error), ended
            assert list(folder.iterdir()) == [path], ended
        clear_partial(path)
        assert list(folder.iterdir()) == [path], ended
    assert outcomes == {0, 1}


def test_a_folder_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    path = folder / "results"
    path.mkdir(parents=True)
    (path / "old").write_text("old")

    def write(to: Path) -> None:
        (to / "pictures").mkdir()
        (to / "pictures" / "new").write_text("new")

    outcomes: set[str] = set()
    for ended in at_every_operation(lambda: put_folder(path, write), folder, FAULTS):
        if ended.fault in (IO_ERROR, FULL):
            assert path.exists(), ended
        clear_partial(path)
        assert list(folder.iterdir()) == [path], ended
        found = {each.name: each.read_text() for each in path.rglob("*") if each.is_file()}
        assert found in ({"old": "old"}, {"new": "new"}), ended
        outcomes.add(*found)
    assert outcomes == {"old", "new"}


def test_folders_that_are_made_are_there_after_a_loss_of_power(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    def action() -> None:
        make_folder(folder / "a" / "b")
        (folder / "later").touch()

    *_, ended = at_every_operation(action, folder, [POWER_LOSS])
    assert ended.operations[-1].path.endswith("later")
    assert (folder / "a" / "b").is_dir()


def test_faults_are_felt(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("old")

    def in_place() -> None:
        (folder / "file").write_text("new")

    def unflushed() -> None:
        (folder / "partial").write_text("new")
        (folder / "partial").replace(folder / "file")
        flush_to_disk(folder)
        (folder / "later").touch()

    def left_by(action: Callable[[], object], fault: Fault) -> list[dict[str, str]]:
        return [{path.name: path.read_text() for path in folder.iterdir()}
                for _ in at_every_operation(action, folder, [fault])]  # fmt: skip

    assert left_by(in_place, KILL) == [{"file": "old"}, {"file": ""}]
    (folder / "file").write_text("old")
    assert left_by(in_place, POWER_LOSS) == [{"file": "old"}, {"file": "old"}]
    opened, written, renamed, flushed, later = left_by(unflushed, POWER_LOSS)
    assert opened == written == renamed == flushed == {"file": "old"}
    assert later == {"file": ""}
