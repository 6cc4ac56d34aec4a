"""An output folder that is either complete or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from patterning_fast.arguments import Bytes, checked

RESULTS = "results.json"
"""The file that marks a folder as one of ours, and that a new run may replace."""


@contextmanager
@checked
def output_folder(target: Path, expected_bytes: Bytes) -> Iterator[Path]:
    """A folder to write in, moved to `target` once all is written; removed if anything goes wrong, Ctrl-C included.

    Raises OSError before any work where `target` cannot be written or `expected_bytes` do not fit, and
    FileExistsError where it holds anything but earlier results.
    """
    target = target.absolute()
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / RESULTS).exists())):
        raise FileExistsError(f"{target} exists and is not a folder of earlier results; choose another --out")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    except OSError as error:
        raise OSError(f"cannot write in {target.parent}: {error.strerror}; choose another --out") from error
    try:
        reserve(partial / "space", expected_bytes)
        yield partial
        partial.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def reserve(path: Path, size: int) -> None:
    """Take `size` bytes on the disk and give them back; raises OSError where there is not that much."""
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.write(bytes(size))
    except OSError as error:
        raise OSError(
            f"{path.parent.parent} has no room for {size / 2**20:.0f} MiB of results: {error.strerror}; "
            "make room or choose another --out"
        ) from error
    finally:
        path.unlink(missing_ok=True)
