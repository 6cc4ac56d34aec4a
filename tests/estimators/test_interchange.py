"""Traces in ArviZ's groups, and estimates in files and tables of others."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import patterning_fast as pf
from tests.models import language_posterior


def norm(model: nn.Module) -> Tensor:
    return torch.stack([each.square().sum() for each in model.parameters()]).sum()


@cache
def run(traces: Path | None = None) -> pf.Statistics:
    posterior = language_posterior()
    components = pf.components(posterior.model, "heads", "full")
    return pf.sample(
        posterior, pf.SGLD(1e-4), components=components, observables={"norm": norm}, chains=4,
        draws=12, batch_size=4, loss_kernel=True, tile=1, traces=traces, progress=False,
    )  # fmt: skip


def test_arviz_takes_the_traces_as_they_are() -> None:
    arviz = pytest.importorskip("arviz_stats")
    pytest.importorskip("arviz_base")
    tree, health = run().to_datatree(), run().diagnostics()
    assert set(tree.children) == {"posterior", "sample_stats"}
    assert dict(tree["posterior"].sizes) == {"chain": 4, "draw": 12, "component": 5}
    for own, theirs in (("r_hat", arviz.rhat(tree)), ("ess", arviz.ess(tree))):
        found = theirs.dataset if isinstance(theirs, xr.DataTree) else theirs
        # The same function on the same numbers in another layout: sums may come in another order.
        np.testing.assert_allclose(found["phi"].sel(component=health["component"]), health[own], rtol=1e-9)
        np.testing.assert_allclose(found["norm"], health[f"observable_{own}"].sel(observable="norm"), rtol=1e-9)
    assert not tree["sample_stats/diverging"].any()


def test_stored_traces_have_the_same_mixing(tmp_path: Path) -> None:
    arviz = pytest.importorskip("arviz_stats")
    for each in ("arviz_base", "zarr"):
        pytest.importorskip(each)
    health = run(tmp_path / "t.zarr").diagnostics()
    with pf.load_traces(tmp_path / "t.zarr") as tree:
        found = arviz.rhat(tree, group="chains")
        np.testing.assert_allclose(found["phi"].sel(component=health["component"]), health["r_hat"], rtol=1e-9)


def test_a_diverged_chain_is_nan_and_told() -> None:
    posterior = language_posterior()
    stats = pf.sample(posterior, pf.SGLD(1e-4), chains=2, draws=4, batch_size=4, progress=False)
    stats.traces.phi[1, 2:] = torch.nan  # as that of a chain that was frozen at its third draw
    diverging = stats.to_datatree()["sample_stats"].to_dataset()["diverging"]
    assert diverging.values.tolist() == [[False] * 4, [False, False, True, True]]


@pytest.mark.parametrize("engine", ["scipy", "h5netcdf", "netcdf4"])
def test_estimates_go_to_netcdf_and_back(engine: Any, tmp_path: Path) -> None:
    if engine not in xr.backends.list_engines():
        pytest.skip(f"{engine} is not installed")
    if engine == "h5netcdf":
        pytest.importorskip("h5py")
    chi = run().susceptibilities()
    modes = pf.modes(chi, unsettled=True)
    estimates = {
        "llc": run().llc(), "chi": chi, "contributions": run().contributions(), "influence": run().influence(),
        "kernel": run().loss_kernel(), "diagnostics": run().diagnostics(), "modes": modes.table,
        "predicted": pf.invert(chi, modes[0], strength=0.1, unsettled=True).predicted,
        "intervals": pf.intervals(chi),
    }  # fmt: skip
    for name, estimate in estimates.items():
        path = tmp_path / f"{name}.nc"
        estimate.to_netcdf(path, engine=engine)
        with xr.open_dataset(path, engine=engine) as back:
            assert back.load().equals(estimate), name
            assert back.attrs.keys() == estimate.attrs.keys()
            assert all(np.array_equal(back.attrs[each], value) for each, value in estimate.attrs.items()), name
    if engine != "scipy":  # which has no groups
        run().to_datatree().to_netcdf(tmp_path / "tree.nc", engine=engine)


def test_estimates_go_to_pandas() -> None:
    table = run().llc()[["llc", "llc_error", "r_hat"]].to_dataframe()
    assert table.index.tolist() == run().component_names
    chi = run().susceptibilities()["chi"].to_dataframe()
    assert {"chi", "sample", "position"} <= set(chi.reset_index().columns)
