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
from patterning_fast.training.weights_file import sealed
from tests.engine.test_checkpoint import files_of_at_most
from tests.flips import cut, flipped, random_bits
from tests.models import CONTEXT, tokens

pytest.importorskip("pyarrow")

SAMPLES = 12
FLIPS = 300


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


def of_samples() -> xr.DataArray:
    return xr.DataArray(np.ones(SAMPLES), dims="sample", coords={"sample": np.arange(SAMPLES)})


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


def test_tokens_without_a_loss_need_no_weight(tmp_path: Path) -> None:
    """Those behind the end of a padded sample, as `causal_lm` has it; one that has a loss must have one."""
    data = pf.as_data([[1, 2, 3, 4], [5, 6]])
    places = {"sample": ("token", np.array([0, 0, 0, 1])), "position": ("token", np.array([0, 1, 2, 0]))}
    given = xr.DataArray([0.5, 1.5, 1.0, 1.0], dims="token", coords=places, name="weight")
    pf.save_weights(tmp_path / "w", given, data)
    xr.testing.assert_identical(pf.load_weights(tmp_path / "w", data), given)
    with pytest.raises(ValueError, match=r"the weights miss 1 of the data's 6 tokens, the first at sample 1"):
        pf.save_weights(tmp_path / "w", given[:3], data)


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
        (lambda each: each[: 3 * CONTEXT], "miss 72 of the data's 96 tokens, the first at sample 3, position 0"),
        (lambda each: each[:-1], "miss 1 of the data's 96 tokens, the first at sample 11, position 7"),
        (lambda each: each[:0], "miss 12 of the data's 12 tokens"),
        (lambda each: xr.concat([each, each[5:7]], "token"), "give more than once 2 of .* 96 tokens, .* position 5"),
        (lambda each: of_samples()[[*range(12), 4]], "give more than once 1 of the data's 12 samples, .* at sample 4"),
        (lambda each: each.assign_coords(sample=each["sample"] - 1), "must be numbers of the data, 0 to 11, got -1"),
        (lambda each: each.assign_coords(position=each["position"] / 2), r"position must be numbers .*, got 0\.0"),
        (lambda each: xr.concat([each, each.assign_coords(sample=each["sample"] + 9)], "token"), "0 to 11, got 12"),
        (lambda each: each.where(each["position"] > 0), "12 weights are not finite"),
        (lambda each: each * 1e50, "96 weights are not finite"),
        (lambda each: -each, "weights must have a positive sum, got -"),
        (lambda each: 0 * each, "the weights are all zero"),
        (lambda each: each.astype(str), "weights must be real numbers, got <U"),
        (lambda each: each.drop_vars("sample"), "must lie along one dimension with the coordinate 'sample'"),
        (lambda each: each.assign_coords(probe=("token", ["a", "b"] * 48)), r"several probes \['a', 'b'\]"),
    ],
)  # fmt: skip
def test_weights_of_other_data_are_not_saved(
    change: Callable[[xr.DataArray], xr.DataArray], message: str, tmp_path: Path
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        pf.save_weights(tmp_path / "w", change(weights()), tokens())
    assert list(tmp_path.iterdir()) == []


def replaced(table: Any, name: str, values: Any) -> Any:
    import pyarrow as pa

    return table.set_column(table.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: replaced(table, "weight", [None, *table["weight"].to_pylist()[1:]]), "1 weights are not finite"),
        (lambda table: replaced(table, "weight", [float("nan")] * 96), "96 weights are not finite"),
        (lambda table: replaced(table, "sample_hash", [1] * 96), "gives samples hashes that are not theirs"),
        (lambda table: table.slice(0, 48), "miss 48 of the data's 96 tokens"),
        (lambda table: table.drop_columns("sample"), "with the coordinate 'sample'"),
        (lambda table: replaced(table, "sample", table["sample"].cast("float32")), "must be numbers of the data"),
        (lambda table: replaced(table, "sample", [None, *table["sample"].to_pylist()[1:]]), "must be numbers of the"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("sealed_again", [False, True])
def test_a_file_that_others_have_changed_is_refused(
    change: Callable[[Any], Any], message: str, sealed_again: bool, tmp_path: Path
) -> None:
    """For its checksum; where that is right, for what it holds."""
    import pyarrow.parquet as pq

    pf.save_weights(tmp_path / "w", weights(), tokens())
    pq.write_table(change(pq.read_table(tmp_path / "w")), tmp_path / "w")
    if sealed_again:
        (tmp_path / "w").write_bytes(sealed((tmp_path / "w").read_bytes()))
    with pytest.raises(ValueError, match=message if sealed_again else "w is damaged: its SHA-256 is not the one that"):
        pf.load_weights(tmp_path / "w", tokens())


def test_any_damage_is_noticed(tmp_path: Path) -> None:
    """Whatever bit is flipped, and wherever the file is cut off."""
    path = tmp_path / "w"
    pf.save_weights(path, weights(), tokens())
    size = path.stat().st_size
    for bit in random_bits(path, FLIPS, seed=0):
        with flipped(path, bit), pytest.raises(ValueError, match=r"w (is damaged: its SHA-256|was not written by)"):
            pf.load_weights(path, tokens())
    for length in range(0, size, max(1, size // FLIPS)):
        with cut(path, length), pytest.raises(ValueError, match=r"w (is damaged: its SHA-256|was not written by)"):
            pf.load_weights(path, tokens())
    xr.testing.assert_identical(pf.load_weights(path, tokens()), weights())


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
    with files_of_at_most(1000), pytest.raises(OSError, match=r"cannot write weights to .*/w: File too large"):
        pf.save_weights(path, weights(1), tokens())
    xr.testing.assert_identical(pf.load_weights(path, tokens()), weights())
    assert list(tmp_path.iterdir()) == [path]


def test_without_pyarrow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'patterning_fast\[parquet\]'"):
        pf.load_weights("w", tokens())
