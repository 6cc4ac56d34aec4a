"""Traces of every chain in a Zarr store, written as draws arrive: φ, distance and the probes' losses of each draw."""

from __future__ import annotations

import errno
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from patterning_fast.durable import clear_partial, flush_to_disk, make_folder, put_folder, writing
from patterning_fast.engine.evaluation import EvaluationSet
from patterning_fast.engine.trace_checksums import (
    DRAW,
    DRAWS,
    LAYOUT,
    check_draws,
    check_sums,
    chunk_file,
    chunks,
    damaged,
    whole_draws,
    write_sums,
)

BLOCK_BYTES = 64 * 2**20
"""Losses gathered before they are written."""

CHUNK_VALUES = 2**20
"""Values of a chunk at most, 4 MiB of losses: few files, and no more is read than is wanted."""

CHAIN_DIMENSIONS = ("component", "chain", "draw")

BEING_WRITTEN = re.compile(r"\w+\.[0-9a-f]{32}\.partial")
"""What zarr calls a file until it is whole; a run that is cut short leaves some."""


class TraceStore:
    """A Zarr store that `load_traces(path)` reads; use as a context manager.

    `/chains` holds `phi` = L(w) − L(w*) [nats] and `distance` = |w − w*|, float64 `[component, chain, draw]`;
    `/probes/NAME` holds `losses` [nats], float32 `[component, chain, draw, token or sample]`. What was not drawn is
    NaN. Cells are written in place, so a run that resumes writes over its last draws what was there.

    Every chunk carries its CRC-32C, which any reader of Zarr checks. `layout.json` has hashes of metadata and
    coordinates; `draws.json` comes last and has hashes of all files, so that one that is gone is noticed too.

    Args:
        path: of the store; must not exist, but for that of the same run before it was cut short.
        components, chains, draws: what the first dimensions count; row r of the bank is chain r % chains of
            component r // chains.
        sets: the probes.
        configuration: of the run, for the attributes of the store.
        run: hash of the run's identity; a store of another run is never written to.
        resumed: draws that the run's checkpoint has; None for a run without one, which takes up no store.

    Raises:
        ImportError: zarr is not installed.
        ValueError: a probe's name cannot name a group; the store of the draws before is damaged.
        FileExistsError: `path` is something else than a store of this run. FileNotFoundError: the store of the draws
            before is gone. OSError, here and later: it cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        components: Sequence[str],
        chains: int,
        draws: int,
        sets: Sequence[EvaluationSet],
        configuration: Mapping[str, Any],
        run: str,
        resumed: int | None,
    ) -> None:
        try:
            import zarr  # optional, and slow to import
        except ImportError as error:
            raise ImportError(
                "traces are written by zarr, which is not installed: pip install 'patterning_fast[traces]'"
            ) from error
        self.path = path = Path(path).absolute()
        self.components, self.chains = list(components), chains
        rows, losses = len(self.components) * chains, sets[-1].columns.stop
        draw_bytes = 4 * rows * losses
        self.block = max(1, min(draws, BLOCK_BYTES // draw_bytes))
        self.by_row = draw_bytes > BLOCK_BYTES
        """One draw is more than may be held back: each row of losses is written as it comes."""
        with zarr.config.set({"array.write_empty_chunks": True}):  # or NaN would be told by a file that is not there
            taken_up = resumed is not None and self.left_behind(run)
            if not taken_up:
                if resumed and not path.exists():
                    raise FileNotFoundError(
                        f"{path} is not there, but the run has {resumed} draws in its checkpoint that were traced: "
                        "put the traces back where they were, or start again with another checkpoint folder"
                    )
                self.create(zarr, draws, sets, {"run": run, **configuration})
            root: Any = zarr.open_group(path, mode="r+")
            self.chain_arrays = [root["chains/phi"], root["chains/distance"]]
            self.loss_arrays = [(each.columns, root[f"probes/{each.name}/losses"]) for each in sets]
        if taken_up:
            self.take_up(resumed or 0)
        self.chain_values = np.full((2, self.block, rows), np.nan)
        self.losses = np.full((0 if self.by_row else self.block, rows, losses), np.nan, np.float32)
        self.pending = range(0)
        """Draws that are held back."""
        self.unflushed = range(0)
        """Draws that were written, and may not be on the disk yet."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
        if kind is None and not (self.path / DRAWS).exists():
            self.seal()

    def add(self, draw: int, rows: range, phi: Tensor, distances: Tensor, losses: Tensor) -> None:
        """Add a draw of some rows: φ and distances `[rows]`, losses of all probes `[rows, losses]`."""
        if self.pending and draw // self.block != self.pending.start // self.block:
            self.write()
        self.pending = range(self.pending.start if self.pending else draw, draw + 1)
        at, where = draw % self.block, slice(rows.start, rows.stop)
        self.chain_values[:, at, where] = torch.stack((phi.double(), distances.double())).cpu().numpy()
        values = losses.cpu().numpy()
        if not self.by_row:
            self.losses[at, where] = values
            return
        with self.changing():
            for row, own in zip(rows, values, strict=True):
                for columns, array in self.loss_arrays:
                    array[row // self.chains, row % self.chains, draw] = own[columns]

    def write(self) -> None:
        """Write what is held back; it is let go even where that fails."""
        draws, self.pending = self.pending, range(0)
        if not draws:
            return
        held = slice(draws.start % self.block, draws.start % self.block + len(draws))
        at = slice(draws.start, draws.stop)
        with self.changing():
            for array, chain_values in zip(self.chain_arrays, self.chain_values, strict=True):
                array[:, :, at] = self.by_chain(chain_values[held])
            if not self.by_row:
                for columns, array in self.loss_arrays:
                    array[:, :, at] = self.by_chain(self.losses[held, :, columns])
        self.unflushed = range(self.unflushed.start if self.unflushed else draws.start, draws.stop)
        self.chain_values.fill(np.nan)
        self.losses.fill(np.nan)

    def flush(self) -> None:
        """Write what is held back, and wait until all that was written is on the disk."""
        self.write()
        files = [self.path / each for each in self.chunk_files(self.unflushed)]
        folders = {folder for file in files for folder in file.parents if self.path in folder.parents}
        with writing("traces", self.path):
            for each in (*files, *sorted(folders)):
                flush_to_disk(each)
        self.unflushed = range(0)

    def seal(self) -> None:
        """Write the hashes of all files, as all draws are there."""
        draws = range(self.chain_arrays[0].shape[DRAW])
        files = [LAYOUT, *check_sums(self.path, LAYOUT), *self.chunk_files(draws)]
        gone = [each for each in files if not (self.path / each).is_file()]
        if gone:
            raise damaged(self.path, f"{gone[0]} is missing")
        with writing("traces", self.path):
            write_sums(self.path, DRAWS, files)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Errors of the disk in one form; draws that change are not those whose hashes were written."""
        with writing("traces", self.path):
            (self.path / DRAWS).unlink(missing_ok=True)
            yield

    def chunk_files(self, draws: range) -> list[str]:
        """The files that hold these draws."""
        return [chunk_file(array, at) for array in self.arrays for at in chunks(array, draws)]

    @property
    def arrays(self) -> list[Any]:
        """All that have draws."""
        return [*self.chain_arrays, *(array for _, array in self.loss_arrays)]

    def by_chain(self, values: np.ndarray) -> np.ndarray:
        """`[draws, rows, ...]` as `[component, chain, draws, ...]`."""
        split = values.reshape(len(values), len(self.components), self.chains, *values.shape[2:])
        return split.transpose(1, 2, 0, *range(3, split.ndim))

    def left_behind(self, run: str) -> bool:
        """Whether the store is there and this run's; raises ValueError where it is damaged."""
        if (self.path / LAYOUT).exists():
            check_sums(self.path, LAYOUT)
        return run_of(self.path) == run

    def take_up(self, draws: int) -> None:
        """Go on with a store that has this many draws; raises ValueError where they are not whole."""
        with writing("traces", self.path):
            clear_partial(self.path / DRAWS)
            for stale in self.path.rglob("*.partial"):
                if BEING_WRITTEN.fullmatch(stale.name):
                    stale.unlink()
        check_draws(self.path, self.arrays, draws)
        there = whole_draws(self.chain_arrays[0][:, :, :draws])
        if there < draws:
            raise damaged(self.path, f"it has {there} of the {draws} draws that the run's checkpoint goes on from")

    def create(self, zarr: Any, draws: int, sets: Sequence[EvaluationSet], attributes: Mapping[str, Any]) -> None:
        """Make the store, every array at its full size; it comes into place once it is whole."""
        for each in sets:
            if not each.name or "/" in each.name or each.name.startswith((".", "__")) or each.name == "zarr.json":
                raise ValueError(f"the probe {each.name!r} cannot name a group of traces: rename it, in plain words")
        path = self.path
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise FileExistsError(
                f"{path} exists and is not a store of traces that this run left behind; "
                "name another path, or remove it. A run resumes its traces from its checkpoint only"
            )
        size = 4 * len(self.components) * self.chains * draws * sets[-1].columns.stop
        with writing("traces", path):
            make_folder(path.parent)
            free = shutil.disk_usage(path.parent).free
            if size > free:
                needed = f"they take up to {size / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"
                raise OSError(errno.ENOSPC, f"{needed}; trace fewer probes, chains or draws")
            files = self.layout(zarr, draws, sets, attributes)
            put_folder(path, lambda partial: write_layout(partial, files))

    def layout(
        self, zarr: Any, draws: int, sets: Sequence[EvaluationSet], attributes: Mapping[str, Any]
    ) -> dict[str, bytes]:
        """The files of a store without draws: metadata and coordinates."""
        files: dict[str, Any] = {}
        root = zarr.create_group(zarr.storage.MemoryStore(files), attributes=dict(attributes))
        checked = [zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()]
        shape = (len(self.components), self.chains, draws)

        def chain_group(name: str) -> Any:
            group = root.create_group(name)
            names = group.create_array(
                "component", shape=shape[:1], dtype="str", dimension_names=["component"], chunks=shape[:1],
                compressors=checked,
            )  # fmt: skip
            names[:] = np.array(self.components, dtype=object)
            for dimension, count in zip(CHAIN_DIMENSIONS[1:], shape[1:], strict=True):
                group.create_array(dimension, data=np.arange(count), dimension_names=[dimension], compressors=checked)
            return group

        def values(group: Any, name: str, dtype: str, columns: tuple[int, ...], **described: str) -> None:
            group.create_array(
                name,
                shape=(*shape, *columns),
                chunks=self.chunks(columns),
                dtype=dtype,
                compressors=checked,
                fill_value=np.nan,
                dimension_names=[*CHAIN_DIMENSIONS, *([described.pop("last")] if columns else [])],
                attributes=described,
            )

        chains = chain_group("chains")
        values(chains, "phi", "float64", (), long_name="L(w) - L(w*)", units="nats")
        values(chains, "distance", "float64", (), long_name="|w - w*|", units="1")
        for each in sets:
            last = "token" if each.loss_shape else "sample"
            group = chain_group(f"probes/{each.name}")
            places = {name: place for name, place in each.coordinates().items() if name != "probe"}
            for name, place in places.items():
                group.create_array(name, data=place, dimension_names=[last], compressors=checked)
            count = each.columns.stop - each.columns.start
            along = {"coordinates": " ".join(places)} if each.loss_shape else {}
            values(group, "losses", "float32", (count,), last=last, long_name="loss", units="nats", **along)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata", module="zarr")
            zarr.consolidate_metadata(root.store)
        return {name: content.to_bytes() for name, content in sorted(files.items())}

    def chunks(self, columns: tuple[int, ...]) -> tuple[int, ...]:
        """Chunks as deep as a block of draws, so that each is written whole; a row of losses alone where rows are."""
        room = max(1, CHUNK_VALUES // self.block)
        along = tuple(min(count, room) for count in columns)
        room //= max(along, default=1)
        chains = max(1, min(self.chains, room))
        components = max(1, min(len(self.components), room // chains))
        return (1, 1, 1, *along) if self.by_row and columns else (components, chains, self.block, *along)


def write_layout(store: Path, files: Mapping[str, bytes]) -> None:
    """Write what a store begins with into a new folder."""
    for name, content in files.items():
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(content)
    write_sums(store, LAYOUT, files)


def run_of(path: Path) -> str | None:
    """The run that a store belongs to; None where `path` is no such store."""
    try:
        return json.loads((path / "zarr.json").read_bytes())["attributes"]["run"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
