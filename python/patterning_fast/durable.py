"""Files that are there whole or not at all, whatever ends their writing, and one form of all that can go wrong."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MEND = {
    errno.ENOSPC: "make room, or name another folder",
    errno.EDQUOT: "make room, or name another folder",
    errno.EROFS: "name a folder that can be written to",
    errno.EACCES: "name a folder that you may write to",
    errno.EPERM: "name a folder that you may write to",
    errno.ENOENT: "make its folder first, or name another",
}
"""What to do about an error of the disk, by its number."""


@contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """Raise errors of the disk within as one OSError: what could not be written, where, why, and how to mend it."""
    try:
        yield
    except OSError as error:
        raise cannot_write(what, path, error) from error


def cannot_write(what: str, path: Path, error: OSError) -> OSError:
    """The error to raise where `what` could not be written to `path`."""
    mend = MEND.get(error.errno or 0, "name another path")
    return OSError(f"cannot write {what} to {path}: {error.strerror or error}; {mend}")


def put(path: Path, write: Callable[[Path], object]) -> None:
    """Put a file in place whole: `write(partial)` makes it beside its place, and it comes there once it is on the disk.

    What stood there stays until then. Nothing is left behind but by a kill; `clear_partial` removes that.
    """
    partial = partial_path(path)
    try:
        write(partial)
        flush_to_disk(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush_to_disk(path.parent)


def put_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Put a folder in place whole: `write(partial)` fills one beside its place, and it comes there once on the disk.

    What stood there is set aside for the moment between, and removed last. A kill leaves the old one or the new one,
    or none and the old one set aside, which `clear_partial` brings back.
    """
    clear_partial(path)
    partial, aside = partial_path(path), aside_path(path)
    try:
        partial.mkdir()
        write(partial)
        for each in (*partial.rglob("*"), partial):
            flush_to_disk(each)
        if path.exists():
            path.rename(aside)
        partial.rename(path)
    except BaseException:
        clear_partial(path)
        raise
    clear_partial(path)


def partial_path(path: Path) -> Path:
    """Where `path` is written before it is whole: hidden, beside it."""
    return path.with_name(f".{path.name}.partial")


def aside_path(path: Path) -> Path:
    """Where a folder waits that is being replaced: hidden, beside its place."""
    return path.with_name(f".{path.name}.replaced")


def clear_partial(path: Path) -> None:
    """Make good what a killed run has left of putting `path`, a file or a folder: it is the old one or the new one."""
    aside = aside_path(path)
    if aside.exists() and not path.exists():
        aside.rename(path)
    if path.parent.exists():
        flush_to_disk(path.parent)  # a new folder must not be lost after the old one
    for left in (partial_path(path), aside):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, as far as they are missing, all of them on the disk."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        flush_to_disk(path.parent)


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
