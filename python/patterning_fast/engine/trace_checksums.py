"""A store of traces is whole, or an error says which of its files is not: hashes of them, and reading by these."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from patterning_fast.arguments import checked
from patterning_fast.durable import put

LAYOUT = "layout.json"
"""Hashes of what a store begins with: metadata and coordinates."""

DRAWS = "draws.json"
"""Hashes of all files, those of every draw too; there as long as all draws are, and written no more."""

DRAW = 2
"""Axis of the draws in every array that has them."""


@checked
def load_traces(path: str | Path) -> xr.DataTree:
    """The traces that `sample(..., traces=path)` has written: every file is checked, then values are read as needed.

    `/chains` holds `phi` = L(w) − L(w*) [nats] and `distance` = |w − w*|, `[component, chain, draw]`; `/probes/NAME`
    holds `losses` [nats], `[component, chain, draw, token or sample]`. NaN is what a chain had after it diverged.
    `xarray.open_datatree(path, engine="zarr")` reads the same, checks what it reads, and takes a missing file for NaN.
    Use the result in a `with` statement, or close it.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: no store of traces, a run that has not ended, or a file that is damaged or missing: it is named.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no traces at {path}: write them with sample(..., traces=path)")
    if not (path / LAYOUT).exists() and not (path / DRAWS).exists():
        raise ValueError(
            f"{path} is no store of traces that sample of this version has written, or is damaged: it lacks {LAYOUT}"
        )
    if not (path / DRAWS).exists():
        check_sums(path, LAYOUT)
        try:
            with xr.open_datatree(path, engine="zarr") as tree:
                phi = tree["/chains"].to_dataset()["phi"].values
        except ValueError as error:  # of zarr's codec, which names no file
            raise damaged(path, f"it lacks {DRAWS}, and chains/phi is not what was written") from error
        raise ValueError(
            f"{path} lacks {DRAWS}, which is written when a run ends: {whole_draws(phi)} of {phi.shape[DRAW]} draws "
            "are there. Run it again with its checkpoint and it goes on"
        )
    check_sums(path, DRAWS)
    return xr.open_datatree(path, engine="zarr")


def whole_draws(phi: np.ndarray) -> int:
    """How many draws there are, from the first on; of φ `[component, chain, draw]`."""
    there = np.isfinite(phi).any((0, 1))
    return len(there) if there.all() else int(there.argmin())


def write_sums(store: Path, name: str, files: Iterable[str]) -> None:
    """Write the hashes of files of a store into its file `name`."""
    sums = serialized({file: sha256(store / file) for file in files})
    put(store / name, lambda partial: partial.write_bytes(sums))


def check_sums(store: Path, name: str) -> list[str]:
    """The files that `name` has hashes of; raises ValueError where one is missing or not what was written."""
    content = (store / name).read_bytes()
    try:
        sums = json.loads(content)["files"]
        whole = serialized(sums) == content
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise damaged(store, f"{name} is not what was written")
    missing = [file for file in sums if not (store / file).is_file()]
    changed = [file for file in sums if file not in missing and sha256(store / file) != sums[file]]
    if missing or changed:
        wrong = [*(f"{file} is missing" for file in missing), *(f"{file} is not what was written" for file in changed)]
        raise damaged(store, f"{wrong[0]}, {len(wrong) - 1} others are amiss, {len(sums) - len(wrong)} are whole")
    return list(sums)


def check_draws(store: Path, arrays: Iterable[Any], draws: int) -> None:
    """Raise ValueError unless the first draws are all there, in chunks that are what was written."""
    for array in arrays:
        for at in chunks(array, range(draws)):
            file = chunk_file(array, at)
            if not (store / file).is_file():
                raise damaged(store, f"{file} is missing")
            try:
                array.blocks[at]
            except ValueError as error:  # of zarr's codec, which names no file
                raise damaged(store, f"{file} is not what was written") from error


def chunks(array: Any, draws: range) -> Iterator[tuple[int, ...]]:
    """Where the chunks with these draws lie in an array's grid of chunks."""
    depth = array.chunks[DRAW]
    grid = [range(count) for count in array.cdata_shape]
    grid[DRAW] = range(draws.start // depth, -(-draws.stop // depth))
    return itertools.product(*grid)


def chunk_file(array: Any, at: tuple[int, ...]) -> str:
    """The file of a chunk, within its store."""
    return f"{array.path}/{array.metadata.encode_chunk_key(at)}"


def damaged(store: Path, why: str) -> ValueError:
    return ValueError(
        f"{store} is damaged: {why}. Put back a whole copy of it; without one remove it, and its run's checkpoint, "
        "and sample again"
    )


def serialized(sums: dict[str, str]) -> bytes:
    """Hashes of files as JSON, with a hash of their own."""
    own = hashlib.sha256(json.dumps(sums).encode()).hexdigest()
    return json.dumps({"sha256": own, "files": sums}, indent=1).encode()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
