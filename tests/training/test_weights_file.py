"""Weights in a file come back as they were, for their own data and no other."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

import patterning_fast as pf
from tests.engine.test_checkpoint import files_of_at_most
from tests.models import CONTEXT, tokens

pytest.importorskip("pyarrow")

SAMPLES = 12


def weights(seed: int = 0) -> xr.DataArray:
    """As a plan has them: of every token, with where each comes from."""
    sample, position = (each.ravel().astype(np.int32) for each in np.indices((SAMPLES, CONTEXT)))
    return xr.DataArray(
        np.random.default_rng(seed).uniform(0, 2, SAMPLES * CONTEXT),
        dims="token",
        coords={
            "probe": ("token", np.full(SAMPLES * CONTEXT, "data")),
            "sample": ("token", sample),
            "position": ("token", position),
            "domain": ("token", np.array(["code", "prose", "code"] * 32)),
        },
        name="weight",
        attrs={"long_name": "data weight rho", "units": "1"},
    )


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "weights.parquet"
    pf.save_weights(path, weights(), tokens())
    found = pf.load_weights(path, tokens())
    xr.testing.assert_identical(found, weights())
    assert found.values.flags.writeable
    pf.save_weights(path, weights(1), tokens())
    xr.testing.assert_identical(pf.load_weights(path, tokens()), weights(1))
    assert list(tmp_path.iterdir()) == [path]


def test_a_plan_is_saved_with_what_it_says_of_itself(tmp_path: Path) -> None:
    attrs = {"strength": np.float64(0.25), "rank": 2, "clipped": np.bool_(True), "kept": np.arange(2), "policy": "clip"}
    plan = pf.Plan(weights(), xr.Dataset(), attrs)
    pf.save_weights(tmp_path / "w", plan, tokens())
    attributes = pf.load_weights(tmp_path / "w", tokens()).attrs
    described = {"long_name": "data weight rho", "units": "1"}
    assert attributes == described | {"strength": 0.25, "rank": 2, "clipped": True, "kept": [0, 1], "policy": "clip"}


def test_data_of_any_type(tmp_path: Path, generator: torch.Generator) -> None:
    data = (torch.randn(4, 3, generator=generator).bfloat16(), torch.tensor([1, 0, 2, 1]), torch.rand(4, 2, 2) > 0.5)
    spread = pf.spread_weights(xr.DataArray([0.5, 1.5], dims="set", coords={"set": [7, 8]}), [7, 8, 8, 7])
    pf.save_weights(tmp_path / "w", spread, data)
    xr.testing.assert_identical(pf.load_weights(tmp_path / "w", data), spread)


def test_any_reader_of_parquet_can_read_it(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    pf.save_weights(tmp_path / "w.parquet", weights(), tokens())
    table = pq.read_table(tmp_path / "w.parquet")
    assert table.column_names == ["probe", "sample", "position", "domain", "sample_hash", "weight"]
    assert table["weight"].to_pylist() == weights().values.tolist()
    record = json.loads(table.schema.metadata[b"patterning_fast"])
    assert record["data"]["tensor 0"]["shape"] == [SAMPLES, CONTEXT + 1]


def changed(*samples: int) -> Tensor:
    data = tokens()
    data[list(samples), 3] += 1
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: changed(2, 7), r"hash: [0-9a-f]{32} there, .* here\n  2 of 12 samples differ: 2, 7\nGive the data"),
        (lambda: changed(*range(1, 8)), "7 of 12 samples differ: 1, 2, 3, 4, 5 and 2 more"),
        (lambda: tokens().roll(1, 0), "the same samples in another order"),
        (lambda: tokens()[:-1], r"tensor 0.shape: \[12, 9\] there, \[11, 9\] here"),
        (lambda: tokens().int(), "tensor 0.dtype: torch.int64 there, torch.int32 here"),
        (lambda: (tokens(), tokens()), r"tensor 1.shape: nothing there, \[12, 9\] here"),
    ],
)
def test_other_data_are_refused(data: Callable[[], Any], message: str, tmp_path: Path) -> None:
    pf.save_weights(tmp_path / "w", weights(), tokens())
    with pytest.raises(ValueError, match=r"(?s)w holds weights of other data:.*" + message):
        pf.load_weights(tmp_path / "w", data())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda each: each[: 3 * CONTEXT], "of 12 samples: they miss samples 3, 4, 5, 6, 7 and 4 more"),
        (lambda each: each.assign_coords(sample=each["sample"] - 1), "they miss samples 11"),
        (lambda each: xr.concat([each, each.assign_coords(sample=each["sample"] + 9)], "token"), "name samples 12"),
        (lambda each: each.drop_vars("sample"), "must lie along one dimension with the coordinate 'sample'"),
        (lambda each: each.assign_coords(probe=("token", ["a", "b"] * 48)), r"several probes \['a', 'b'\]"),
    ],
)  # fmt: skip
def test_weights_of_other_data_are_not_saved(
    change: Callable[[xr.DataArray], xr.DataArray], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        pf.save_weights(tmp_path / "w", change(weights()), tokens())
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_not_weights(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "text").write_text("weight\n1.0\n")
    pq.write_table(pa.table({"weight": [1.0]}), tmp_path / "other")
    for name in ("text", "other"):
        with pytest.raises(ValueError, match=f"{name} was not written by save_weights"):
            pf.load_weights(tmp_path / name, tokens())


def test_a_full_disk_leaves_the_file_before(tmp_path: Path) -> None:
    path = tmp_path / "w"
    pf.save_weights(path, weights(), tokens())
    with files_of_at_most(1000), pytest.raises(OSError, match="File too large"):
        pf.save_weights(path, weights(1), tokens())
    xr.testing.assert_identical(pf.load_weights(path, tokens()), weights())
    assert list(tmp_path.iterdir()) == [path]


def test_without_pyarrow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'patterning_fast\[parquet\]'"):
        pf.load_weights("w", tokens())
