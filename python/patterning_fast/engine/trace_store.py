"""Traces of every chain in a Zarr store, written as draws arrive: φ, distance and the probes' losses of each draw."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from patterning_fast.engine.evaluation import EvaluationSet

BLOCK_BYTES = 64 * 2**20
"""Losses gathered before they are written."""

CHUNK_VALUES = 2**20
"""Values of a chunk at most, 4 MiB of losses: few files, and no more is read than is wanted."""

CHAIN_DIMENSIONS = ("component", "chain", "draw")


class TraceStore:
    """A Zarr store that `xarray.open_datatree(path, engine="zarr")` reads; use as a context manager.

    `/chains` holds `phi` = L(w) − L(w*) [nats] and `distance` = |w − w*|, float64 `[component, chain, draw]`;
    `/probes/NAME` holds `losses` [nats], float32 `[component, chain, draw, token or sample]`. What was not drawn is
    NaN. Cells are written in place, so a run that resumes writes over its last draws what was there.

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
        ValueError: a probe's name cannot name a group.
        FileExistsError: `path` is something else than a store of this run. FileNotFoundError: the store of the draws
            before is gone. OSError: there is no room.
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
        path = Path(path).absolute()
        self.components, self.chains = list(components), chains
        rows, losses = len(self.components) * chains, sets[-1].columns.stop
        draw_bytes = 4 * rows * losses
        self.block = max(1, min(draws, BLOCK_BYTES // draw_bytes))
        self.by_row = draw_bytes > BLOCK_BYTES
        """One draw is more than may be held back: each row of losses is written as it comes."""
        if resumed is not None and run_of(path) == run:
            for stale in path.rglob("*.partial"):  # chunks that zarr was writing when the run was cut short
                stale.unlink()
        elif resumed and not path.exists():
            raise FileNotFoundError(
                f"{path} is not there, but the run has {resumed} draws in its checkpoint that were traced: "
                "put the traces back where they were, or start again with another checkpoint folder"
            )
        else:
            self.create(zarr, path, draws, sets, {"run": run, **configuration})
        root: Any = zarr.open_group(path, mode="r+")
        self.chain_arrays = [root["chains/phi"], root["chains/distance"]]
        self.loss_arrays = [(each.columns, root[f"probes/{each.name}/losses"]) for each in sets]
        self.chain_values = np.full((2, self.block, rows), np.nan)
        self.losses = np.full((0 if self.by_row else self.block, rows, losses), np.nan, np.float32)
        self.pending = range(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    def add(self, draw: int, rows: range, phi: Tensor, distances: Tensor, losses: Tensor) -> None:
        """Add a draw of some rows: φ and distances `[rows]`, losses of all probes `[rows, losses]`."""
        if self.pending and draw // self.block != self.pending.start // self.block:
            self.flush()
        self.pending = range(self.pending.start if self.pending else draw, draw + 1)
        at, where = draw % self.block, slice(rows.start, rows.stop)
        self.chain_values[:, at, where] = torch.stack((phi.double(), distances.double())).cpu().numpy()
        values = losses.cpu().numpy()
        if not self.by_row:
            self.losses[at, where] = values
            return
        for row, own in zip(rows, values, strict=True):
            for columns, array in self.loss_arrays:
                array[row // self.chains, row % self.chains, draw] = own[columns]

    def flush(self) -> None:
        """Write what is held back."""
        if not self.pending:
            return
        draws = slice(self.pending.start, self.pending.stop)
        held = slice(draws.start % self.block, draws.start % self.block + len(self.pending))
        for array, chain_values in zip(self.chain_arrays, self.chain_values, strict=True):
            array[:, :, draws] = self.by_chain(chain_values[held])
        if not self.by_row:
            for columns, array in self.loss_arrays:
                array[:, :, draws] = self.by_chain(self.losses[held, :, columns])
        self.chain_values.fill(np.nan)
        self.losses.fill(np.nan)
        self.pending = range(0)

    def by_chain(self, values: np.ndarray) -> np.ndarray:
        """`[draws, rows, ...]` as `[component, chain, draws, ...]`."""
        split = values.reshape(len(values), len(self.components), self.chains, *values.shape[2:])
        return split.transpose(1, 2, 0, *range(3, split.ndim))

    def create(
        self, zarr: Any, path: Path, draws: int, sets: Sequence[EvaluationSet], attributes: Mapping[str, Any]
    ) -> None:
        """Make the store, every array at its full size; it comes into place once it is whole."""
        for each in sets:
            if not each.name or "/" in each.name or each.name.startswith((".", "__")) or each.name == "zarr.json":
                raise ValueError(f"the probe {each.name!r} cannot name a group of traces: rename it, in plain words")
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise FileExistsError(
                f"{path} exists and is not a store of traces that this run left behind; "
                "name another path, or remove it. A run resumes its traces from its checkpoint only"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        size = 4 * len(self.components) * self.chains * draws * sets[-1].columns.stop
        free = shutil.disk_usage(path.parent).free
        if size > free:
            raise OSError(
                f"traces take up to {size / 2**30:.1f} GiB, and {path.parent} has {free / 2**30:.1f} GiB free: "
                "trace fewer probes, chains or draws, or name another path"
            )
        partial = path.with_name(f".{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        root = zarr.create_group(partial, attributes=dict(attributes))
        shape = (len(self.components), self.chains, draws)

        def chain_group(name: str) -> Any:
            group = root.create_group(name)
            names = group.create_array(
                "component", shape=shape[:1], dtype="str", dimension_names=["component"], chunks=shape[:1]
            )
            names[:] = np.array(self.components, dtype=object)
            for dimension, count in zip(CHAIN_DIMENSIONS[1:], shape[1:], strict=True):
                group.create_array(dimension, data=np.arange(count), dimension_names=[dimension])
            return group

        def values(group: Any, name: str, dtype: str, columns: tuple[int, ...], **described: str) -> None:
            group.create_array(
                name,
                shape=(*shape, *columns),
                chunks=self.chunks(columns),
                dtype=dtype,
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
                group.create_array(name, data=place, dimension_names=[last])
            count = each.columns.stop - each.columns.start
            along = {"coordinates": " ".join(places)} if each.loss_shape else {}
            values(group, "losses", "float32", (count,), last=last, long_name="loss", units="nats", **along)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata", module="zarr")
            zarr.consolidate_metadata(root.store)
        partial.rename(path)

    def chunks(self, columns: tuple[int, ...]) -> tuple[int, ...]:
        """Chunks as deep as a block of draws, so that each is written whole; a row of losses alone where rows are."""
        room = max(1, CHUNK_VALUES // self.block)
        along = tuple(min(count, room) for count in columns)
        room //= max(along, default=1)
        chains = max(1, min(self.chains, room))
        components = max(1, min(len(self.components), room // chains))
        return (1, 1, 1, *along) if self.by_row and columns else (components, chains, self.block, *along)


def run_of(path: Path) -> str | None:
    """The run that a store belongs to; None where `path` is no such store."""
    try:
        return json.loads((path / "zarr.json").read_bytes())["attributes"]["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
