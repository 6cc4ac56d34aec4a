"""Weights in a Parquet file that knows the data they belong to."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

from patterning_fast.arguments import checked
from patterning_fast.durable import flush_to_disk
from patterning_fast.engine.identity import differences, digest
from patterning_fast.patterning.plan import Plan
from patterning_fast.posterior.data import sample_count
from patterning_fast.posterior.losses import Batch
from patterning_fast.posterior.weights import one_probe, shown

RECORD = b"patterning_fast"
"""Key of our JSON among the file's metadata: dimension, attributes, and what the data are."""

CONTENT = "sample_hash"
"""Column that tells a sample by what it holds, wherever it stands."""


@checked
def save_weights(path: str | Path, weights: Plan | xr.DataArray, data: Batch) -> None:
    """Write weights as Parquet, whole or not at all: a row each, with its coordinates and a hash of its sample.

    Args:
        weights: a plan, or weights along one dimension with the coordinate `sample` (and `position`, `domain`, ...),
            as `plan.weights` and `spread_weights` have them. Attributes, those of the plan too, are kept.
        data: that the weights are of; only hashes of it are written.

    Raises ImportError without pyarrow, ValueError for weights that name samples which the data lack.
    """
    pa, pq = parquet()
    table = weights.weights.assign_attrs(weights.attrs) if isinstance(weights, Plan) else weights
    if table.ndim != 1 or "sample" not in table.coords:
        raise ValueError(
            "weights must lie along one dimension with the coordinate 'sample', as plan.weights and spread_weights "
            f"give them; got dimensions {table.dims} with coordinates {list(table.coords)}"
        )
    one_probe(table)
    samples, count = table["sample"].values, sample_count(data)
    missing = np.setdiff1d(np.arange(count), samples)
    foreign = np.setdiff1d(samples, np.arange(count))
    if len(missing) or len(foreign):
        raise ValueError(
            f"the weights are not of these data of {count} samples: "
            + (f"they miss samples {shown(missing)}" if len(missing) else f"they name samples {shown(foreign)}")
        )
    columns = {str(name): each.values for name, each in table.coords.items() if each.dims == table.dims}
    columns |= {CONTENT: sample_hashes(data)[samples], "weight": table.values}
    record = {"dimension": table.dims[0], "attrs": dict(table.attrs), "data": identity(data)}
    metadata = {RECORD: json.dumps(record, default=plain)}
    path = Path(path).absolute()
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.partial-", dir=path.parent) as folder:
        partial = Path(folder) / path.name
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), partial)
        flush_to_disk(partial)
        partial.replace(path)
    flush_to_disk(path.parent)


@checked
def load_weights(path: str | Path, data: Batch) -> xr.DataArray:
    """Weights as `save_weights` wrote them, with coordinates and attributes.

    Raises ImportError without pyarrow, and ValueError for a file that is not of weights, or is of other data than
    these: it says what differs; FileNotFoundError where there is none.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}: write them with save_weights")
    pa, pq = parquet()
    try:
        table = pq.read_table(path)
        record = json.loads((table.schema.metadata or {})[RECORD])
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(f"{path} was not written by save_weights: {error}") from error
    columns = {name: table[name].to_numpy().copy() for name in table.column_names}
    found = differences(record["data"], identity(data))
    if found:
        raise ValueError(
            "\n  ".join([f"{path} holds weights of other data:", *found, *changed_samples(columns, data)])
            + "\nGive the data that the weights were made for."
        )
    del columns[CONTENT]
    dimension = record["dimension"]
    values = columns.pop("weight")
    coordinates = {name: (dimension, each) for name, each in columns.items()}
    return xr.DataArray(values, dims=dimension, coords=coordinates, name="weight", attrs=record["attrs"])


def parquet() -> tuple[Any, Any]:
    """pyarrow and its Parquet; raises ImportError where it is not installed."""
    try:
        import pyarrow  # optional, and slow to import
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "weights are written by pyarrow, which is not installed: pip install 'patterning_fast[parquet]'"
        ) from error
    return pyarrow, pyarrow.parquet


def identity(data: Batch) -> dict[str, Any]:
    """What tells data from others: of each tensor, type, shape and a hash."""
    return {
        f"tensor {number}": {"dtype": str(each.dtype), "shape": list(each.shape), "hash": digest(each)}
        for number, each in enumerate(tensors(data))
    }


def tensors(data: Batch) -> tuple[Tensor, ...]:
    """The data's tensors; raises ValueError where they are no samples."""
    parts = data if isinstance(data, tuple) else (data,)
    shapes = [list(each.shape) for each in parts]
    if not parts or any(not each.dim() or not each.numel() or len(each) != len(parts[0]) for each in parts):
        raise ValueError(
            f"data must be samples along a common first dimension, got shapes {shapes}; pass the data whole"
        )
    return parts


def sample_hashes(data: Batch) -> npt.NDArray[np.uint64]:
    """blake2b of each sample's bytes, of all tensors together; 8 bytes."""
    rows = [each.detach().cpu().contiguous().view(sample_count(data), -1).view(torch.uint8) for each in tensors(data)]
    hashes = [hashlib.blake2b(row, digest_size=8).digest() for row in torch.cat(rows, 1).numpy()]
    return np.frombuffer(b"".join(hashes), dtype=np.uint64)


def changed_samples(columns: dict[str, npt.NDArray[Any]], data: Batch) -> list[str]:
    """Which samples changed, as far as there are as many of the same type as before."""
    numbers, first = np.unique(columns["sample"], return_index=True)
    there, here = columns[CONTENT][first], sample_hashes(data)
    if len(there) != len(here):
        return []
    if np.array_equal(np.sort(there), np.sort(here)):
        return ["the same samples in another order"]
    return [f"{int((there != here).sum())} of {len(here)} samples differ: {shown(numbers[there != here])}"]


def plain(value: Any) -> Any:
    """Attributes of numpy as JSON has them."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
