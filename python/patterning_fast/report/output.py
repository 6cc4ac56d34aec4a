"""Whether a folder can take results, asked before any work is done for them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from patterning_fast.arguments import Bytes, checked
from patterning_fast.durable import make_folder, writing

RESULTS = "results.json"
"""The file that marks a folder as one of ours, and that a new run may replace."""


@checked
def check_output(target: Path, expected_bytes: Bytes) -> None:
    """Make the folder above `target`; raises OSError where that cannot be written or `expected_bytes` do not fit.

    Raises FileExistsError where `target` holds anything but earlier results.
    """
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / RESULTS).exists())):
        raise FileExistsError(f"{target} exists and is not a folder of earlier results; choose another --out")
    with writing(f"{expected_bytes / 2**20:.0f} MiB of results", target):
        make_folder(target.parent)
        with tempfile.TemporaryFile(dir=target.parent) as file:  # gone with its process
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, expected_bytes)
            else:
                file.write(bytes(expected_bytes))
