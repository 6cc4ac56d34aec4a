"""Labelled arrays in a safetensors file that is whole or refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from patterning_fast.durable import put, writing
from patterning_fast.training.weights_file import plain

RECORD = "patterning_fast"
"""Key of our JSON among the file's metadata: dimensions, names in place of codes, attributes, and a SHA-256."""


def save_dataset(path: Path, dataset: xr.Dataset) -> None:
    """Write a dataset, whole or not at all; strings as the numbers of their names. Raises OSError."""
    tensors, variables = {}, {}
    for name, variable in dataset.variables.items():
        values, about = np.ascontiguousarray(variable.values), {"dims": variable.dims, "attrs": variable.attrs}
        if values.dtype.kind in "UO":
            names, values = np.unique(values.astype(str), return_inverse=True)
            about["names"] = names.tolist()
        tensors[str(name)] = values.reshape(variable.shape)
        variables[str(name)] = about | {"coordinate": name in dataset.coords}
    record = {"variables": variables, "attrs": dataset.attrs}
    record = json.loads(json.dumps(record, default=plain))
    metadata = {RECORD: json.dumps(record | {"sha256": checksum(record, tensors)})}
    with writing("estimates", path):
        put(path, lambda partial: partial.write_bytes(save(tensors, metadata)))


def load_dataset(path: Path, made_by: str) -> xr.Dataset:
    """What `save_dataset` has written.

    Raises FileNotFoundError, which names the command that it is `made_by`, and ValueError where it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: run `patterning-fast {made_by}` first")
    try:
        with safe_open(path, "numpy") as file:
            record = json.loads((file.metadata() or {})[RECORD])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
        whole = record.pop("sha256") == checksum(record, tensors)
    except (SafetensorError, KeyError, ValueError):
        whole = False
    if not whole:
        raise ValueError(f"{path} is damaged: take a copy of it that is whole, or remove it and make it again")
    found: dict[bool, dict[str, Any]] = {True: {}, False: {}}
    for name, about in record["variables"].items():
        values = np.array(about["names"])[tensors[name]] if "names" in about else tensors[name]
        found[about["coordinate"]][name] = (tuple(about["dims"]), values, about["attrs"])
    return xr.Dataset(found[False], coords=found[True], attrs=record["attrs"])


def checksum(record: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of what is said of arrays, and of their bytes."""
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()
