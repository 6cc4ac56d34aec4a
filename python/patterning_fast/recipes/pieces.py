"""Finished parts of a recipe, kept on disk, so that an interrupted recipe goes on from them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from tqdm import tqdm

from patterning_fast.durable import flush_to_disk
from patterning_fast.engine.identity import differences

T = TypeVar("T")

SETTINGS = "settings.json"
SPENT = "seconds"
LOCK = "lock"


class Pieces:
    """Parts of one run in `folder`, by name; held by one process at a time. Use as a context manager.

    A part is a tree of dictionaries, lists, numbers, strings and tensors. It is written whole or not at all, with the
    seconds that cores spent on it, which do not depend on what else runs as the clock does.

    Raises ValueError where the folder holds parts of a run with other settings, BlockingIOError where another process
    holds it.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], at_once: int | None = None) -> None:
        """`at_once`: parts that `map` computes side by side; None for as many as torch has threads."""
        self.folder, self.at_once = folder, at_once or torch.get_num_threads()
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = (folder / LOCK).open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.lock.close()
            raise BlockingIOError(f"another run holds {folder}: wait for it, or choose another --out") from None
        self.core_seconds: dict[str, float] = {}
        """What each part took."""
        self.started = time.monotonic()
        record, wanted = folder / SETTINGS, json.loads(json.dumps(settings))
        if not record.exists():
            write_whole(record, json.dumps(wanted, indent=1).encode())
        found = differences(json.loads(record.read_bytes()), wanted)
        if found:
            self.lock.close()
            raise ValueError(
                "\n  ".join([f"{folder} holds parts of an interrupted run with other settings:", *found])
                + f"\nrun that one again, remove {folder}, or choose another --out"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.folder.exists():
            write_whole(self.folder / SPENT, str(self.time_spent()).encode())
        self.lock.close()

    def time_spent(self) -> float:
        """Seconds on this run until now, those before it was interrupted too."""
        before = self.folder / SPENT
        return (float(before.read_text()) if before.exists() else 0.0) + time.monotonic() - self.started

    def remove(self) -> None:
        """Throw all parts away, once what was made of them is written."""
        shutil.rmtree(self.folder)

    def of(self, name: str, compute: Callable[[], T]) -> T:
        """The part of that name: from disk, or computed and kept."""
        if self.path(name).exists():
            return self.read(name)
        self.write(name, *timed(compute, ()))
        return self.read(name)

    def map(
        self, description: str, function: Callable[..., T], arguments: Mapping[str, tuple[Any, ...]]
    ) -> dict[str, T]:
        """Parts `function(*arguments)` by name, each on one thread, several at once.

        They run in processes, which show no progress bars of their own (`shows_progress`); one alone runs here.
        `function` must be one of a module, and its arguments such as can be sent to another process.
        """
        missing = [name for name in arguments if not self.path(name).exists()]
        if min(self.at_once, len(missing)) == 1:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                for at, name in enumerate(missing, 1):
                    print(f"{description}: {name}, {at} of {len(missing)}", file=sys.stderr)
                    self.write(name, *timed(function, arguments[name]))
            finally:
                torch.set_num_threads(threads)
        elif missing:
            wanted = {name: arguments[name] for name in missing}
            done = len(arguments) - len(missing)
            with tqdm(total=len(arguments), initial=done, desc=description, unit="part") as bar:
                for name, value, seconds in in_processes(self.at_once, function, wanted):
                    self.write(name, value, seconds)
                    bar.update()
        return {name: self.read(name) for name in arguments}

    def path(self, name: str) -> Path:
        """Where a part is kept."""
        short = "".join(letter if letter.isalnum() else "-" for letter in name)[:60]
        return self.folder / f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.pt"

    def read(self, name: str) -> Any:
        kept = torch.load(self.path(name), weights_only=True)
        self.core_seconds[name] = kept["core_seconds"]
        return kept["value"]

    def write(self, name: str, value: object, core_seconds: float) -> None:
        partial = self.folder / "partial"
        torch.save({"value": value, "core_seconds": core_seconds}, partial)
        flush_to_disk(partial)
        partial.replace(self.path(name))


def in_processes(
    at_once: int, function: Callable[..., T], arguments: Mapping[str, tuple[Any, ...]]
) -> Iterator[tuple[str, T, float]]:
    """Name, result and seconds of each call, as they come."""
    # A fork of this process would inherit the locks of OpenMP's threads; one of a server that has none does not, and
    # need not import torch again.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    pool = ProcessPoolExecutor(min(at_once, len(arguments)), context, initializer=on_one_thread)
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


def on_one_thread() -> None:
    """What a process does before its first part. Ctrl-C is its parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def timed(function: Callable[..., T], arguments: tuple[Any, ...]) -> tuple[T, float]:
    """A function's result and the seconds that cores spent on it."""
    started = time.process_time()
    return function(*arguments), time.process_time() - started


def write_whole(path: Path, content: bytes) -> None:
    """A file with that content, or none."""
    partial = path.with_name("partial")
    partial.write_bytes(content)
    flush_to_disk(partial)
    partial.replace(path)
