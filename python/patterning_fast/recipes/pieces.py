"""Finished parts of a recipe, kept on disk, so that an interrupted recipe goes on from them."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import torch

from patterning_fast.categories import DamagedWarning
from patterning_fast.durable import flush_to_disk, make_folder, put, writing
from patterning_fast.engine.identity import differences
from patterning_fast.progress import progress_bar
from patterning_fast.recipes.seal import DamagedError, sealed, unsealed

T = TypeVar("T")

SETTINGS = "settings"
SPENT = "seconds"
LOCK = "lock"
PART = re.compile(r".*-[0-9a-f]{8}\.pt")


class Pieces:
    """Parts of one run in `folder`, by name; held by one process at a time. Use as a context manager.

    A part is a tree of dictionaries, lists, numbers, strings and tensors. It is written whole or not at all, with the
    seconds that cores spent on it, which do not depend on what else runs as the clock does. Its checksum is of the
    run's settings too: a part that is damaged or of another run is computed again, and a warning names its file.

    Raises ValueError where the folder holds parts of a run with other settings, FileExistsError where it holds
    something else, BlockingIOError where another process holds it, OSError where it cannot be read or written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], at_once: int | None = None) -> None:
        """`at_once`: parts that `map` computes side by side; None for as many as torch has threads."""
        self.folder, self.at_once = folder, at_once or torch.get_num_threads()
        self.core_seconds: dict[str, float] = {}
        """What each part took."""
        self.started = time.monotonic()
        self.before = 0.0
        """Seconds on this run before it was interrupted."""
        self.settings = json.dumps(settings, indent=1)
        with writing("parts", folder):
            make_folder(folder)
        if not (folder / SETTINGS).exists() and any(not is_ours(path) for path in folder.iterdir()):
            raise FileExistsError(f"{folder} exists and does not hold the parts of a run; choose another --out")
        self.lock = hold(folder)
        try:
            self.take_up()
        except BaseException:
            self.lock.close()
            raise

    def take_up(self) -> None:
        """Go on from what is there."""
        found = self.unsealed(SETTINGS, "only parts of these settings are used")
        if found is None:
            self.put(SETTINGS, self.settings.encode(), SETTINGS)
        elif found.decode() != self.settings:
            other = differences(json.loads(found), json.loads(self.settings))
            raise ValueError(
                "\n  ".join([f"{self.folder} holds parts of an interrupted run with other settings:", *other])
                + f"\nrun that one again, remove {self.folder}, or choose another --out"
            )
        self.before = float(self.unsealed(SPENT, "the time before this start is not counted") or 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if (self.folder / SETTINGS).exists():  # not removed
                self.note_time()
        except OSError:
            if error is None:
                raise
        finally:
            self.lock.close()

    def time_spent(self) -> float:
        """Seconds on this run until now, those before it was interrupted too."""
        return self.before + time.monotonic() - self.started

    def note_time(self) -> None:
        self.put(SPENT, str(self.time_spent()).encode(), SPENT)

    def remove(self) -> None:
        """Throw all parts away, once what was made of them is on the disk."""
        try:
            for path in sorted(filter(is_ours, self.folder.iterdir()), key=lambda path: path.name in (SETTINGS, LOCK)):
                path.unlink()
            if not any(self.folder.iterdir()):
                self.folder.rmdir()
                flush_to_disk(self.folder.parent)
        except OSError as error:
            raise OSError(f"cannot remove {self.folder}, which is of no more use: {error.strerror}") from error

    def of(self, name: str, compute: Callable[[], T]) -> T:
        """The part of that name: from disk, or computed and kept."""
        found = self.kept(name)
        return found["value"] if found else self.keep(name, *timed(compute, ()))

    def map(
        self, description: str, function: Callable[..., T], arguments: Mapping[str, tuple[Any, ...]]
    ) -> dict[str, T]:
        """Parts `function(*arguments)` by name, each on one thread, several at once.

        They run in processes, which show no progress bars of their own (`shows_progress`); one alone runs here.
        `function` must be one of a module, and its arguments such as can be sent to another process.
        """
        found = {name: part["value"] for name in arguments if (part := self.kept(name))}
        missing = [name for name in arguments if name not in found]
        if min(self.at_once, len(missing)) == 1:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                for at, name in enumerate(missing, 1):
                    print(f"{description}: {name}, {at} of {len(missing)}", file=sys.stderr)
                    found[name] = self.keep(name, *timed(function, arguments[name]))
            finally:
                torch.set_num_threads(threads)
        elif missing:
            wanted = {name: arguments[name] for name in missing}
            with progress_bar(total=len(arguments), initial=len(found), desc=description, unit="part") as bar:
                for name, value, seconds in in_processes(self.at_once, function, wanted):
                    found[name] = self.keep(name, value, seconds)
                    bar.update()
        return {name: found[name] for name in arguments}

    def path(self, name: str) -> Path:
        """Where a part is kept."""
        short = "".join(letter if letter.isalnum() else "-" for letter in name)[:60]
        return self.folder / f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.pt"

    def kept(self, name: str) -> dict[str, Any] | None:
        """A part as it is on the disk; None where it is missing, or damaged, of which a warning tells."""
        content = self.unsealed(self.path(name).name, f"the part {name!r} is computed again", self.purpose(name))
        if content is None:
            return None
        part: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
        self.core_seconds[name] = part["core_seconds"]
        return part

    def keep(self, name: str, value: T, core_seconds: float) -> T:
        """Keep a part, and the time until it; the part as it will be read back."""
        content = io.BytesIO()
        torch.save({"value": value, "core_seconds": core_seconds}, content)
        self.put(self.path(name).name, content.getbuffer(), self.purpose(name))
        self.note_time()
        part = self.kept(name)
        if part is None:
            raise OSError(f"{self.path(name)} does not hold what was written to it: check the disk")
        return part["value"]

    def purpose(self, name: str) -> str:
        """What the checksum of a part is of, beside its bytes."""
        return f"{name}\0{self.settings}"

    def put(self, file: str, content: bytes | memoryview, purpose: str) -> None:
        path = self.folder / file
        with writing("a part", path):
            put(path, lambda partial: partial.write_bytes(sealed(content, purpose)))

    def unsealed(self, file: str, what_then: str, purpose: str | None = None) -> bytes | None:
        """What a file holds; None where there is none, or a damaged one, with a warning that says `what_then`."""
        path = self.folder / file
        try:
            return unsealed(path.read_bytes(), purpose or file)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OSError(
                f"cannot read {path}: {error.strerror}; make it readable, or remove it: then {what_then}"
            ) from error
        except DamagedError as error:
            warnings.warn(f"{path} is damaged ({error}): {what_then}", DamagedWarning, stacklevel=3)
            return None


def is_ours(path: Path) -> bool:
    """Whether a file in a folder of parts is one that a run writes there, or has left half written."""
    return path.name in (SETTINGS, SPENT, LOCK) or bool(PART.fullmatch(path.name)) or path.name.endswith(".partial")


def hold(folder: Path) -> IO[str]:
    """An exclusive lock on a folder of parts, which ends with the file or the process."""
    with writing("parts", folder):
        lock = (folder / LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(folder / LOCK).st_ino != os.fstat(lock.fileno()).st_ino:
            raise BlockingIOError  # it is that of a run which has just ended, and removed it
    except (BlockingIOError, FileNotFoundError):
        lock.close()
        raise BlockingIOError(f"another run holds {folder}: wait for it, or choose another --out") from None
    return lock


def in_processes(
    at_once: int, function: Callable[..., T], arguments: Mapping[str, tuple[Any, ...]]
) -> Iterator[tuple[str, T, float]]:
    """Name, result and seconds of each call, as they come."""
    # A fork of this process would inherit the locks of OpenMP's threads; one of a server that has none does not, and
    # need not import torch again.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    pool = ProcessPoolExecutor(min(at_once, len(arguments)), context, initializer=begin_worker)
    try:
        running = {pool.submit(timed, function, each): name for name, each in arguments.items()}
        for done in as_completed(running):
            yield running[done], *done.result()
    except BaseException:
        for process in list((pool._processes or {}).values()):  # no other way to stop what runs
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def shows_progress() -> bool:
    """Whether this process has the terminal to itself: one of several would draw its bars over theirs."""
    return multiprocessing.parent_process() is None


def begin_worker() -> None:
    """What a process does before its first part. Ctrl-C is its parent's to answer, and it ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Wait for the end of this process's parent, by `kill -9` too, and end with it. Kernels let this thread run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def timed(function: Callable[..., T], arguments: tuple[Any, ...]) -> tuple[T, float]:
    """A function's result and the seconds that cores spent on it."""
    started = time.process_time()
    return function(*arguments), time.process_time() - started
