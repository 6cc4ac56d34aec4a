"""A run's state in a folder, from which it resumes to the bit however it ended, `kill -9` while saving included."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from patterning_fast.durable import cannot_write, flush_to_disk, reading, writing
from patterning_fast.engine.identity import VERSIONS, Identity, comparable, differences, fingerprint

LOCK = "checkpoint.lock"
PARTIAL = "checkpoint.partial"
"""Folder of files being written: whatever an interrupted save leaves, the format's own temporary files too."""

NAME = re.compile(r"checkpoint-([0-9]+)(?:-([0-9]+))?\.(json|safetensors)")
"""`checkpoint-DRAWS.json` and its tensors; `-2`, `-3`, ... where a file of that name was there before."""

KEPT = 2
"""Checkpoints that stay: where one is damaged, the one before is there."""

SHOWN = 8
"""Differences an error lists before it only counts them."""

LARGEST_SHARE = 0.05
"""Of the time between saves, what saving may take."""

HELD: weakref.WeakSet[FileIO] = weakref.WeakSet()
"""Locks of this process."""


@dataclass(frozen=True)
class Record:
    """What `checkpoint-DRAWS.json` says."""

    path: Path
    draws_done: int
    tensors_sha256: str
    identity: Identity
    earlier_versions: list[dict[str, str]]
    """Other versions that parts of the run before were made with."""

    @property
    def tensors_path(self) -> Path:
        return self.path.with_suffix(".safetensors")

    def content(self) -> bytes:
        """The file, byte by byte: the SHA-256 at its end is that of the rest."""
        fields = {
            "draws_done": self.draws_done,
            "tensors_sha256": self.tensors_sha256,
            "earlier_versions": self.earlier_versions,
            "identity": self.identity,
        }
        text = json.dumps(fields, indent=1)
        return json.dumps(fields | {"sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1).encode()


class DamagedError(ValueError):
    """A file of a checkpoint is not what was written."""


class Checkpoint:
    """The state of one run in `folder`, held by one process at a time; the last two saves are kept.

    `checkpoint-DRAWS.json` is what commits a save: it holds the SHA-256 of the safetensors file of that name, which is
    complete on the disk before, and one of its own. So whatever is interrupted, what was committed last is there, and
    what has changed since is not taken up. Use as a context manager.

    Args:
        folder: made if missing; files of others in it are left alone.
        identity: of the run (`run_identity`); a checkpoint of another is refused.
        seconds: between saves, ≥ 0; more where a save takes over 5 % of that. 0 saves whenever asked.
        allow_versions: go on from a checkpoint that was made with other versions of torch, Python or this library.

    Raises:
        ValueError: the folder holds a checkpoint of another run, or a damaged one.
        BlockingIOError: another process holds the folder. OSError: it cannot be read or written.
    """

    def __init__(self, folder: str | Path, identity: Identity, seconds: float, allow_versions: bool = False) -> None:
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"checkpoint_seconds must be a finite number ≥ 0, got {seconds}")
        self.folder = checkpoint_folder(folder)
        self.identity, self.seconds, self.allow_versions = identity, seconds, allow_versions
        self.run = fingerprint(identity)
        self.earlier_versions: list[dict[str, str]] = []
        self.last: Record | None = None
        self.lock = hold(self.folder)
        try:
            self.last = self.newest()
            if self.last:
                self.check_identity(self.last)
            self.clear_up()
        except BaseException:
            self.lock.close()
            raise
        self.saved_at, self.wait = time.monotonic(), seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        if not self.lock.closed:  # as it is in a process forked from the one that holds it
            shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)
            self.lock.close()

    @property
    def draws_done(self) -> int:
        """Draws of the last save; 0 where there is none."""
        return self.last.draws_done if self.last else 0

    @property
    def attrs(self) -> dict[str, str]:
        """What a result says of the versions that it is from beside the present ones, if there are any."""
        named = [", ".join(f"{name} {each}" for name, each in some.items()) for some in self.earlier_versions]
        return {"earlier_versions": "; ".join(named)} if named else {}

    def records(self) -> list[Path]:
        """Paths of all records, the newest first."""
        with reading("checkpoints", self.folder):
            found = [path for path in self.folder.iterdir() if path.suffix == ".json" and NAME.fullmatch(path.name)]
        return sorted(found, key=order, reverse=True)

    def newest(self) -> Record | None:
        """What was saved last. Raises ValueError where its record is damaged."""
        for path in self.records():
            try:
                return read_record(path)
            except DamagedError as error:
                raise self.damaged(path, path, error) from error
        return None

    def damaged(self, path: Path, record: Path, why: object) -> DamagedError:
        """The error for a damaged file, which says how to go on from the checkpoint before its `record`."""
        for before in self.records():
            if order(before) < order(record):
                try:
                    found = read_record(before)
                    check_tensors(found)
                except (DamagedError, OSError):
                    continue
                return DamagedError(
                    f"{path} is damaged ({why}). The checkpoint before, of {found.draws_done}, is whole: "
                    f"remove {record} to go on from there"
                )
        return DamagedError(
            f"{path} is damaged ({why}), and no checkpoint before it can be read whole: name another folder to start "
            "afresh"
        )

    def check_identity(self, record: Record) -> None:
        """Raise ValueError where a record is of another run, or of other versions that are not allowed."""
        theirs, ours = record.identity.get(VERSIONS, {}), self.identity.get(VERSIONS, {})
        found = differences(*(comparable(each, code=theirs == ours) for each in (record.identity, self.identity)))
        if found:
            more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
            raise ValueError(
                "\n  ".join([f"{self.folder} holds a checkpoint of another run:", *found[:SHOWN], *more])
                + "\nGive the same arguments to resume that one, or name another folder for this one."
            )
        if theirs != ours and not self.allow_versions:
            raise ValueError(
                f"{self.folder} holds a checkpoint made with other versions: {', '.join(differences(theirs, ours))}. "
                "They may compute other bits: use those versions, or pass allow_versions=True to go on with these"
            )
        self.earlier_versions = [*record.earlier_versions, *([theirs] if theirs != ours else [])]

    def clear_up(self) -> None:
        """Remove what interrupted saves of this run have left, and nothing else."""
        shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)
        kept = self.records()[:KEPT]
        with writing("checkpoints", self.folder):
            files = sorted(path for path in self.folder.iterdir() if NAME.fullmatch(path.name))  # records come first
            for path in files:
                if path.with_suffix(".json") not in kept and run_of(path) == self.run:
                    path.unlink()

    def restore(self, tensors: Mapping[str, Tensor]) -> int:
        """Copy what was saved into `tensors`, in place, and return the number of draws done: 0 where nothing was saved.

        Raises ValueError where the file is damaged or holds other tensors.
        """
        saved = self.load()
        if saved is None:
            return 0
        there, here = ({name: list(each.shape) for name, each in some.items()} for some in (saved, tensors))
        if there != here:
            raise self.unfit(f"it holds {there}, not {here}")
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(saved[name])
        return self.draws_done

    def load(self) -> dict[str, Tensor] | None:
        """What was saved last, on the CPU; None where nothing was. Raises ValueError where the file is damaged."""
        if self.last is None:
            return None
        path = self.last.tensors_path
        try:
            check_tensors(self.last)
            return load_file(path)
        except (DamagedError, SafetensorError) as error:
            raise self.damaged(path, self.last.path, error) from error

    def unfit(self, why: object) -> ValueError:
        """The error for tensors that are whole, and not those that the run needs."""
        assert self.last is not None
        return self.damaged(self.last.tensors_path, self.last.path, why)

    def reserve(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise OSError unless there is room for the saves that are kept, and for one that is written beside them."""
        size = sum(tensor.nbytes for tensor in tensors.values()) * (KEPT + 1 - len(self.records()[:KEPT]))
        partial = self.folder / PARTIAL
        try:
            partial.mkdir()
            with (partial / "space").open("wb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                elif shutil.disk_usage(self.folder).free < size:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise cannot_write(f"{size / 2**20:.1f} MiB of checkpoints", self.folder, error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self.saved_at >= self.wait

    def save(self, draws_done: int, tensors: Mapping[str, Tensor]) -> None:
        """Save the state after that many draws; raises OSError where it cannot, and leaves the last save as it is."""
        began = time.monotonic()
        path = self.free_path(draws_done)
        try:
            self.put(path.name, lambda path: save_file(separate(tensors), path, {"run": self.run}))
            record = Record(path.with_suffix(".json"), draws_done, sha256(path), self.identity, self.earlier_versions)
            self.put(record.path.name, lambda path: path.write_bytes(record.content()))
        except (OSError, SafetensorError) as error:
            whole = f". The last, of {self.draws_done}, is whole: run again to go on from there" if self.last else ""
            raise OSError(f"{cannot_write('a checkpoint', self.folder, as_os_error(error))}{whole}") from error
        self.last = record
        self.clear_up()
        self.saved_at = time.monotonic()
        self.wait = self.seconds and max(self.seconds, (self.saved_at - began) / LARGEST_SHARE)

    def free_path(self, draws_done: int) -> Path:
        """Where the tensors of a save go: no file is written over."""
        number, path = 1, self.folder / f"checkpoint-{draws_done}.safetensors"
        while path.exists() or path.with_suffix(".json").exists():
            number += 1
            path = self.folder / f"checkpoint-{draws_done}-{number}.safetensors"
        return path

    def put(self, name: str, write: Callable[[Path], object]) -> None:
        """Put a file in place whole: whenever power or process ends, it is there complete or not at all."""
        folder = self.folder / PARTIAL
        try:
            folder.mkdir(exist_ok=True)
            write(folder / name)
            (folder / name).chmod(stat.S_IMODE(os.fstat(self.lock.fileno()).st_mode))  # safetensors' own is 0600
            flush_to_disk(folder / name)
            (folder / name).replace(self.folder / name)
            flush_to_disk(self.folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def checkpoint_folder(folder: str | Path) -> Path:
    """Where checkpoints go; raises ValueError for an empty path, which is no folder that anybody means."""
    if not str(folder):
        raise ValueError('checkpoint must name a folder, got ""; pass None for no checkpoints')
    return Path(folder).absolute()


def discard(folder: Path) -> None:
    """Remove a checkpoint that is needed no more, and its folder unless it holds files of others."""
    if not folder.is_dir():
        return
    files = [path for path in folder.iterdir() if NAME.fullmatch(path.name)]
    runs = {run_of(path) for path in files if path.suffix == ".json"} - {None}
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    for path in files:
        if run_of(path) in runs:
            path.unlink()
    (folder / LOCK).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def run_of(path: Path) -> str | None:
    """The run that has written a file, as it says itself; None for files of others, and what cannot be read."""
    try:
        if path.suffix == ".json":
            return fingerprint(read_record(path).identity)
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("run")
    except (OSError, ValueError, SafetensorError):
        return None


def hold(folder: Path) -> FileIO:
    """An exclusive lock on `folder`, which ends with the file or the process; makes the folder if missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = FileIO(os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+")
    except OSError as error:
        raise cannot_write("checkpoints", folder, error) from error
    HELD.add(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise BlockingIOError(
            error.errno, f"{folder} is in use by another run; wait for it to end, or name another folder"
        ) from error
    except OSError as error:
        file.close()
        raise OSError(f"cannot lock {folder}: {error.strerror}; name a folder on a local disk") from error
    return file


def let_go() -> None:
    """Close the locks that a process has from the one it was forked from: they would last as long as it does."""
    for file in list(HELD):
        file.close()


os.register_at_fork(after_in_child=let_go)


def read_record(path: Path) -> Record:
    """A record as it was written; raises DamagedError where it is not, OSError where it cannot be read."""
    with reading("a checkpoint", path):
        content = path.read_bytes()
    try:
        fields: dict[str, Any] = json.loads(content)
        record = Record(
            path, fields["draws_done"], fields["tensors_sha256"], fields["identity"], fields["earlier_versions"]
        )
        whole = record.content() == content
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError("it is no whole record") from error
    if not whole:
        raise DamagedError("its SHA-256 is not that of its content")
    if type(record.draws_done) is not int or order(path)[0] != record.draws_done:
        raise DamagedError(f"it is of {record.draws_done!r} draws")
    return record


def check_tensors(record: Record) -> None:
    """Raise DamagedError where the tensors are not those of the record, OSError where they cannot be read."""
    path = record.tensors_path
    with reading("a checkpoint", path):
        try:
            found = sha256(path)
        except FileNotFoundError as error:
            raise DamagedError("it is not there") from error
    if found != record.tensors_sha256:
        raise DamagedError(f"its SHA-256 is not that in {record.path.name}")


def order(path: Path) -> tuple[int, int]:
    """What sorts files of checkpoints by age: draws, then how often they were saved."""
    found = NAME.fullmatch(path.name)
    return (int(found[1]), int(found[2] or 1)) if found else (-1, 0)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_os_error(error: OSError | SafetensorError) -> OSError:
    """The error of the disk that safetensors tells as a text of its own."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"os error ([0-9]+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as the format takes them: on the CPU, contiguous, no two in one storage."""
    storages: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        if plain.untyped_storage().data_ptr() in storages:
            plain = plain.clone()
        storages.add(plain.untyped_storage().data_ptr())
        result[name] = plain
    return result
