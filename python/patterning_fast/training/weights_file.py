"""Weights in a Parquet file that knows the data they belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

from patterning_fast.arguments import checked
from patterning_fast.durable import put, writing
from patterning_fast.engine.identity import differences, digest
from patterning_fast.patterning.plan import Plan
from patterning_fast.posterior.data import parts_of, present_in, sample_count
from patterning_fast.posterior.losses import OF_LANGUAGE_MODELS, Batch, causal_lm
from patterning_fast.posterior.weights import check_values, one_probe, placed, shown

RECORD = b"patterning_fast"
"""Key of our JSON among the file's metadata: dimension, attributes, what the data are, and the file's SHA-256."""

SEAL = b'"file_sha256": "'
"""What the SHA-256 stands behind, within the record. The hash is of the file with zeros in its place."""

ZEROS = b"0" * 64

CONTENT = "sample_hash"
"""Column that tells a sample by what it holds, wherever it stands."""


@checked
def save_weights(path: str | Path, weights: Plan | xr.DataArray, data: Batch) -> None:
    """Write weights as Parquet, whole or not at all: a row each, with its coordinates and a hash of its sample.

    Args:
        weights: a plan, or weights along one dimension with the coordinate `sample` (and `position`, `domain`, ...),
            as `plan.weights` and `spread_weights` have them. Attributes, those of the plan too, are kept.
        data: that the weights are of; only hashes of it are written.

    Raises ImportError without pyarrow; TypeError for weights that are no numbers; ValueError for weights that `train`
    would refuse: not finite, not of these data, or given more than once; OSError where the file cannot be written.
    """
    pa, pq = parquet()
    table = weights.weights.assign_attrs(weights.attrs) if isinstance(weights, Plan) else weights
    check_weights(table, data)
    columns = {str(name): each.values for name, each in table.coords.items() if each.dims == table.dims}
    columns |= {CONTENT: sample_hashes(data)[table["sample"].values], "weight": table.values}
    record = {"dimension": table.dims[0], "attrs": dict(table.attrs), "data": identity(data)}
    metadata = {RECORD: json.dumps(record | {"file_sha256": ZEROS.decode()}, default=plain)}
    made = pa.BufferOutputStream()
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), made, write_page_checksum=True)
    content = sealed(made.getvalue().to_pybytes())
    path = Path(path).absolute()
    with writing("weights", path):
        put(path, lambda partial: partial.write_bytes(content))


@checked
def load_weights(path: str | Path, data: Batch) -> xr.DataArray:
    """Weights as `save_weights` wrote them, with coordinates and attributes.

    Raises ImportError without pyarrow, and ValueError for a file that is damaged, is not of weights, or is of other
    data than these: it says what differs; FileNotFoundError where there is none.
    """
    pa, pq = parquet()
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}: write them with save_weights")
    content = Path(path).read_bytes()
    if SEAL not in content:
        raise ValueError(
            f"{path} was not written by save_weights of this version, or is damaged: it holds no checksum of its own; "
            "save the weights again"
        )
    if sealed(content) != content:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is not the one that save_weights wrote into it; "
            "take a copy of the file that is whole, or save the weights again"
        )
    table = pq.read_table(pa.BufferReader(content))
    record = json.loads(table.schema.metadata[RECORD])
    columns = {name: table[name].to_numpy().copy() for name in table.column_names}
    found = differences(record["data"], identity(data))
    if found:
        raise ValueError(
            "\n  ".join([f"{path} holds weights of other data:", *found, *changed_samples(columns, data)])
            + "\nGive the data that the weights were made for."
        )
    hashes, values = columns.pop(CONTENT), columns.pop("weight")
    dimension = record["dimension"]
    coordinates = {name: (dimension, each) for name, each in columns.items()}
    weights = xr.DataArray(values, dims=dimension, coords=coordinates, name="weight", attrs=record["attrs"])
    check_weights(weights, data)
    if not np.array_equal(hashes, sample_hashes(data)[weights["sample"].values]):
        raise ValueError(f"{path} gives samples hashes that are not theirs: save the weights again")
    return weights


def check_weights(weights: xr.DataArray, data: Batch) -> None:
    """Raise TypeError or ValueError unless these are finite numbers, one for each sample or token of the data."""
    if weights.ndim != 1 or "sample" not in weights.coords:
        raise ValueError(
            "weights must lie along one dimension with the coordinate 'sample', as plan.weights and spread_weights "
            f"give them; got dimensions {weights.dims} with coordinates {list(weights.coords)}"
        )
    if not np.issubdtype(weights.dtype, np.floating) and not np.issubdtype(weights.dtype, np.integer):
        raise TypeError(f"weights must be real numbers, got {weights.dtype}")
    one_probe(weights)
    shape: tuple[int, ...] = (sample_count(data),)
    present = with_losses(data)
    if "position" in weights.coords:
        positions = weights["position"].values
        last = int(positions.max(initial=0)) if np.issubdtype(positions.dtype, np.integer) else 0
        shape += (1 + last if present is None else present.shape[1],)
    check_values(torch.from_numpy(placed(weights, shape, present)).float())


def with_losses(data: Batch) -> npt.NDArray[np.bool_] | None:
    """Which next tokens have a loss `[samples, tokens]`, where data say so as `losses.causal_lm` reads them."""
    if not isinstance(data, Mapping) or len(data) < 2 or "input_ids" not in data or set(data) - set(OF_LANGUAGE_MODELS):
        return None
    present = present_in(causal_lm, data, (data["input_ids"].shape[1] - 1,))
    return None if present is None else present.cpu().numpy()


def sealed(content: bytes) -> bytes:
    """A file of weights with its SHA-256 in place."""
    at = content.rindex(SEAL) + len(SEAL)
    before, after = content[:at], content[at + len(ZEROS) :]
    return before + hashlib.sha256(before + ZEROS + after).hexdigest().encode() + after


def parquet() -> tuple[Any, Any]:
    """pyarrow and its Parquet; raises ImportError where it is not installed."""
    try:
        import pyarrow  # optional, and slow to import
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "tables and weights are written by pyarrow, which is not installed: pip install 'patterning_fast[parquet]'"
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
    parts = tuple(each for each in parts_of(data) if isinstance(each, Tensor))
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
