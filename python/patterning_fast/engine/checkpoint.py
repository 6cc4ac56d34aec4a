"""A run's state in a folder, from which it resumes to the bit however it ended, `kill -9` while saving included."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from io import BufferedRandom
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from patterning_fast.durable import flush_to_disk
from patterning_fast.engine.identity import Identity, differences

RECORD = "checkpoint.json"
LOCK = "checkpoint.lock"
PARTIAL = "checkpoint.partial"
"""Folder of files being written: whatever an interrupted save leaves, the format's own temporary files too."""

SHOWN = 8
"""Differences an error lists before it only counts them."""

LARGEST_SHARE = 0.05
"""Of the time between saves, what saving may take."""


class Checkpoint:
    """The state of one run in `folder`, held by one process at a time.

    `checkpoint.json` is what commits a save: it names the safetensors file of its draw, which is complete on the disk
    before. So whatever is interrupted, the pair that was committed last is there. Use as a context manager.

    Args:
        folder: made if missing; files of others in it are left alone.
        identity: of the run (`run_identity`); a checkpoint of another is refused.
        seconds: between saves, ≥ 0; more where a save takes over 5 % of that. 0 saves whenever asked.

    Raises:
        ValueError: the folder holds a checkpoint of another run, or a damaged one.
        BlockingIOError: another process holds the folder. OSError: it cannot be written.
    """

    def __init__(self, folder: str | Path, identity: Identity, seconds: float) -> None:
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"checkpoint_seconds must be a finite number ≥ 0, got {seconds}")
        self.folder = Path(folder).absolute()
        self.identity, self.seconds = identity, seconds
        self.draws_done, self.tensors_file = 0, ""
        self.lock = hold(self.folder)
        try:
            self.read_record()
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
        shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)
        self.lock.close()

    def read_record(self) -> None:
        """Find what was saved last, and remove what an interrupted save has left."""
        path = self.folder / RECORD
        if path.exists():
            try:
                record = json.loads(path.read_bytes())
                draws_done, tensors_file, identity = record["draws_done"], record["tensors"], record["identity"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise damaged(path, error) from error
            found = differences(identity, self.identity)
            if found:
                more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
                raise ValueError(
                    "\n  ".join([f"{self.folder} holds a checkpoint of another run:", *found[:SHOWN], *more])
                    + "\nGive the same arguments to resume that one, or name another folder for this one."
                )
            self.draws_done, self.tensors_file = draws_done, tensors_file
        shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)
        for stale in self.folder.glob("checkpoint-*.safetensors"):
            if stale.name != self.tensors_file:
                stale.unlink()

    def restore(self, tensors: Mapping[str, Tensor]) -> int:
        """Copy what was saved into `tensors`, in place, and return the number of draws done: 0 where nothing was saved.

        Raises ValueError where the file is damaged or holds other tensors.
        """
        if not self.tensors_file:
            return 0
        saved = self.load()
        there, here = ({name: list(each.shape) for name, each in some.items()} for some in (saved, tensors))
        if there != here:
            raise damaged(self.folder / self.tensors_file, f"it holds {there}, not {here}")
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(saved[name])
        return self.draws_done

    def load(self) -> dict[str, Tensor]:
        """What was saved last, on the CPU; none where nothing was. Raises ValueError where the file is damaged."""
        if not self.tensors_file:
            return {}
        path = self.folder / self.tensors_file
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise damaged(path, error) from error

    def reserve(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise OSError unless there is room for two saves, the second of which is written beside the first."""
        size = sum(tensor.nbytes for tensor in tensors.values()) * (1 if self.tensors_file else 2)
        partial = self.folder / PARTIAL
        try:
            partial.mkdir()
            with (partial / "space").open("wb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                elif shutil.disk_usage(self.folder).free < size:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OSError(
                f"{self.folder} has no room for {size / 2**20:.1f} MiB of checkpoints: {error.strerror}; "
                "make room or name another folder"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self.saved_at >= self.wait

    def save(self, draws_done: int, tensors: Mapping[str, Tensor]) -> None:
        """Save the state after that many draws; raises OSError where it cannot, and leaves the last save as it is."""
        began = time.monotonic()
        name, last = f"checkpoint-{draws_done}.safetensors", self.tensors_file
        record = {"draws_done": draws_done, "tensors": name, "identity": self.identity}
        try:
            self.put(name, lambda path: save_file(separate(tensors), path))
            self.put(RECORD, lambda path: path.write_text(json.dumps(record, indent=1)))
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"cannot save a checkpoint in {self.folder}: {error}; the last one is intact: "
                "make room and run again to go on from there"
            ) from error
        self.draws_done, self.tensors_file = draws_done, name
        if last not in ("", name):
            (self.folder / last).unlink()
        self.saved_at = time.monotonic()
        self.wait = self.seconds and max(self.seconds, (self.saved_at - began) / LARGEST_SHARE)

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


def hold(folder: Path) -> BufferedRandom:
    """An exclusive lock on `folder`, which ends with the file or the process; makes the folder if missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("w+b")
    except OSError as error:
        raise OSError(f"cannot write checkpoints in {folder}: {error.strerror}; name another folder") from error
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


def damaged(path: Path, why: object) -> ValueError:
    return ValueError(f"{path} is damaged ({why}): remove {path.parent} or name another folder, and start afresh")


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
