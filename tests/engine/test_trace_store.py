"""Traces: every draw of every chain, in a store that gives back what was streamed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import patterning_fast as pf
from patterning_fast.engine import trace_store
from tests.models import CONTEXT, language_model, language_posterior, tokens

CHAINS, DRAWS, BURN_IN = 4, 7, 1
ROUNDING = float(np.finfo(np.float32).eps)


def sample(path: Path, posterior: pf.LocalPosterior | None = None, **changes: Any) -> pf.Statistics:
    arguments: dict[str, Any] = {
        "chains": CHAINS, "draws": DRAWS, "burn_in": BURN_IN, "groups": 2, "batch_size": 4, "tile": 1,
        "progress": False,
    }  # fmt: skip
    return pf.sample(posterior or language_posterior(), pf.SGLD(1e-3), traces=path, **arguments | changes)


def read(path: Path) -> xr.DataTree:
    with pf.load_traces(path) as tree:
        return tree.load()


def heads() -> dict[str, pf.Component]:
    return pf.components(language_model(), "l0h1", "l1h0", "full")


def test_the_store_is_labelled(tmp_path: Path) -> None:
    statistics = sample(tmp_path / "t.zarr", components=heads(), probes={"a": tokens(3, 1), "b": tokens(2, 2)})
    tree = read(tmp_path / "t.zarr")
    assert tree.attrs["sampler"] == repr(pf.SGLD(1e-3))
    assert set(tree.attrs) == set(statistics.attrs) - {"seconds"} | {"run"}
    chains = tree["/chains"].to_dataset()
    assert dict(chains.sizes) == {"component": 3, "chain": CHAINS, "draw": DRAWS}
    assert chains["component"].values.tolist() == ["l0h1", "l1h0", "full"]
    assert (chains["phi"].attrs["units"], chains["phi"].attrs["long_name"]) == ("nats", "L(w) - L(w*)")
    assert set(tree["/probes"].children) == {"a", "b"}
    losses = tree["/probes/b"].to_dataset()["losses"]
    assert (losses.dims, losses.shape) == (("component", "chain", "draw", "token"), (3, CHAINS, DRAWS, 2 * CONTEXT))
    assert losses.dtype == np.float32
    assert (int(losses["sample"][CONTEXT + 3]), int(losses["position"][CONTEXT + 3])) == (1, 3)
    assert losses.attrs["units"] == "nats"
    # The last draw is where the chains are in the end.
    last = chains["distance"].isel(draw=-1).values
    assert np.array_equal(last, statistics.traces.distance[:, -1].view(3, CHAINS).double().numpy())


def test_losses_per_sample(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    data = (torch.randn(6, 3), torch.randn(6, 1))
    posterior = pf.LocalPosterior(model, pf.losses.squared_error, data, n_beta=1.0, localization=10.0)
    sample(tmp_path / "t.zarr", posterior)
    losses = read(tmp_path / "t.zarr")["/probes/data"].to_dataset()["losses"]
    assert losses.dims == ("component", "chain", "draw", "sample")
    assert losses["sample"].values.tolist() == list(range(6))


def test_traces_give_the_mean_that_was_streamed(tmp_path: Path) -> None:
    statistics = sample(tmp_path / "t.zarr", components=heads())
    phi = read(tmp_path / "t.zarr")["/chains"]["phi"]
    difference = abs(phi.mean(("chain", "draw")) - statistics.llc()["mu"])
    # The same float32 values, but a draw's chains may be added in float32 before they go into double totals.
    assert float((difference / (CHAINS * ROUNDING * abs(phi).mean(("chain", "draw")))).max()) < 1


def test_traces_give_the_susceptibilities_that_were_streamed(tmp_path: Path) -> None:
    statistics = sample(tmp_path / "t.zarr", components=heads())
    tree = read(tmp_path / "t.zarr")
    phi = tree["/chains"].to_dataset()["phi"].values.reshape(3, 2, -1, 1)  # component, group, draws
    losses = tree["/probes/data"].to_dataset()["losses"].values.astype(np.float64).reshape(3, 2, phi.shape[2], -1)
    shifted = losses - losses.mean((1, 2), keepdims=True)

    def chi(some: slice) -> np.ndarray:
        own, other = phi[:, some], shifted[:, some]
        cross = (own * other).mean((1, 2)) - own.mean((1, 2)) * other.mean((1, 2))
        return (own**2).mean((1, 2)) - own.mean((1, 2)) ** 2 - cross

    # The jackknife over two groups: twice the value of all, less the mean of the value of each alone.
    expected = 2 * chi(slice(0, 2)) - (chi(slice(0, 1)) + chi(slice(1, 2))) / 2
    streamed = statistics.susceptibilities()["chi"].values
    # φ is one float32 near 0, the mean of losses near 3; each loss about its value at w* is rounded to float32, and
    # sums of CHAINS products are; of the five terms in the jackknife the largest factor is 2.
    scale = abs(phi).mean() * max(abs(shifted).max(), abs(phi).max()) * 2
    assert abs(streamed - expected).max() < 5 * CHAINS * ROUNDING * scale
    assert abs(streamed).max() > 1e3 * CHAINS * ROUNDING * scale  # or the line above would say little


@pytest.mark.parametrize("block_draws", [1, 3, 0.5])
def test_blocks_do_not_change_what_is_written(
    tmp_path: Path, block_draws: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One draw a block, a number that does not divide the draws, and draws too large to be held back."""
    probes = {"a": tokens(3, 1), "b": tokens(2, 2)}
    sample(tmp_path / "whole.zarr", components=heads(), probes=probes)
    draw_bytes = 4 * 3 * CHAINS * 5 * CONTEXT
    monkeypatch.setattr(trace_store, "BLOCK_BYTES", int(draw_bytes * block_draws))
    monkeypatch.setattr(trace_store, "CHUNK_VALUES", 100)
    sample(tmp_path / "blocks.zarr", components=heads(), probes=probes)
    whole, blocks = read(tmp_path / "whole.zarr"), read(tmp_path / "blocks.zarr")
    assert blocks.identical(whole)
    assert not any(bool(node.to_dataset().isnull().any().to_array().any()) for node in whole.leaves)


def test_chains_that_diverge_leave_their_traces(tmp_path: Path) -> None:
    posterior = language_posterior(localization=1e12)
    with pytest.raises(pf.ChainDivergedError):
        pf.sample(
            posterior, pf.SGLD(1e-9), chains=2, draws=20, batch_size=4, progress=False, traces=tmp_path / "t.zarr"
        )
    with pytest.raises(
        ValueError, match=r"lacks draws\.json, which is written when a run ends: \d+ of 20 draws are there"
    ):
        pf.load_traces(tmp_path / "t.zarr")
    with xr.open_datatree(tmp_path / "t.zarr", engine="zarr") as tree:
        phi = tree["/chains"].to_dataset()["phi"].load()
    assert bool(np.isfinite(phi[..., 0]).all())
    assert bool(np.isnan(phi[..., -1]).all())


def test_other_stores_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.zarr"
    sample(path)
    before = read(path)
    with pytest.raises(FileExistsError, match="is not a store of traces that this run left behind"):
        sample(path)
    with pytest.raises(FileExistsError, match="name another path, or remove it"):
        sample(path, checkpoint=tmp_path / "checkpoint", seed=1)
    assert read(path).identical(before)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="file exists"):
        sample(tmp_path / "file", checkpoint=tmp_path / "checkpoint")


def test_a_run_that_resumes_needs_its_traces(tmp_path: Path) -> None:
    path, checkpoint = tmp_path / "t.zarr", tmp_path / "checkpoint"
    sample(path, checkpoint=checkpoint)
    before = read(path)
    sample(path, checkpoint=checkpoint)
    assert read(path).identical(before)
    path.rename(tmp_path / "moved.zarr")
    with pytest.raises(FileNotFoundError, match=r"t.zarr is not there, but the run has 7 draws"):
        sample(path, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="traces: True there, False here"):
        pf.sample(
            language_posterior(), pf.SGLD(1e-3), chains=CHAINS, draws=DRAWS, burn_in=BURN_IN, groups=2, batch_size=4,
            progress=False, checkpoint=checkpoint,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["", "a/b", ".", "__a", "zarr.json"])
def test_probes_that_cannot_name_a_group_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a group of traces: rename it"):
        sample(tmp_path / "t.zarr", probes={name: tokens(2)})
    assert not list(tmp_path.iterdir())


def test_a_missing_zarr_is_noticed_before_sampling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r"pip install 'patterning_fast\[traces\]'"):
        sample(tmp_path / "t.zarr")
