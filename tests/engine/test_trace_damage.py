"""Traces that are damaged, unfinished or cannot be written: an error says which file, or goes on from what is whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import patterning_fast as pf
from patterning_fast.engine import trace_store
from patterning_fast.engine.torch_ensemble import TorchEnsemble
from tests.faults import POWER_LOSS, run
from tests.flips import cut, flipped, random_bits

pytest.importorskip("zarr")

DRAWS, CHAINS = 6, 2
FLIPS = 300
"""Of 1,000, with other seeds, none passed either."""


class Interrupting:
    """An observable that ends the run after so many more draws."""

    def __init__(self, draws: float) -> None:
        self._calls_left = draws * CHAINS + 1  # and one before the first draw

    def __call__(self, model: nn.Module) -> Tensor:
        if self._calls_left <= 0:
            raise KeyboardInterrupt
        self._calls_left -= 1
        return next(model.parameters()).sum()


def sample(folder: Path, stop_after: float = np.inf, checkpoint: Path | None = None) -> pf.Statistics:
    """Two draws a chunk, and one save a draw."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(5, 3, generator=generator), torch.randn(5, 1, generator=generator)
    torch.manual_seed(0)
    posterior = pf.LocalPosterior(nn.Linear(3, 1), pf.losses.squared_error, data, n_beta=1.0, localization=10.0)
    return pf.sample(
        posterior, pf.SGLD(1e-3), chains=CHAINS, draws=DRAWS, burn_in=1, batch_size=2, tile=1, progress=False,
        observables={"sum": Interrupting(stop_after)}, traces=folder / "t.zarr",
        checkpoint=checkpoint or folder / "checkpoint", checkpoint_seconds=0,
    )  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def two_draws_a_chunk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace_store, "BLOCK_BYTES", 2 * 4 * CHAINS * 5)
        yield


@pytest.fixture(scope="module")
def made(two_draws_a_chunk: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    sample(folder)
    return folder / "t.zarr"


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "t.zarr")
    return tmp_path / "t.zarr"


def files(store: Path) -> list[Path]:
    found = [each for each in sorted(store.rglob("*")) if each.is_file()]
    assert len(found) > 25
    return found


def contents(store: Path) -> dict[str, bytes]:
    return {each.relative_to(store).as_posix(): each.read_bytes() for each in files(store)}


def values(store: Path) -> xr.DataTree:
    with pf.load_traces(store) as tree:
        return tree.load()


def test_any_bit_that_is_flipped_is_noticed(store: Path) -> None:
    every = files(store)
    for seed, path in enumerate(every):
        for bit in random_bits(path, -(-FLIPS // len(every)), seed):
            named = path.relative_to(store).as_posix()
            with flipped(path, bit), pytest.raises(ValueError, match=f"is damaged: {named}.*is not what was written"):
                pf.load_traces(store)


def test_files_that_are_cut_or_gone_are_named(store: Path) -> None:
    before = values(store)
    for path in files(store):
        named = path.relative_to(store).as_posix()
        for size in (0, path.stat().st_size // 2, path.stat().st_size - 1):
            with cut(path, size), pytest.raises(ValueError, match=f"is damaged: {named}.* is not what was written"):
                pf.load_traces(store)
        path.rename(store / "away")
        with pytest.raises(ValueError, match=f"(is damaged: {named} is missing|lacks {named})"):
            pf.load_traces(store)
        (store / "away").rename(path)
    assert values(store).identical(before)


def test_chunks_of_another_run_are_noticed(store: Path) -> None:
    """As a copy that was broken off leaves them: each is whole."""
    first, second = (store / f"chains/phi/c/0/0/{number}" for number in (0, 1))
    first.write_bytes(second.read_bytes())
    with pytest.raises(
        ValueError, match=r"chains/phi/c/0/0/0 is not what was written, 0 others are amiss, \d\d are wh"
    ):
        pf.load_traces(store)


def test_every_reader_of_zarr_checks_the_chunks(store: Path) -> None:
    chunks = [each for each in files(store) if "/c/" in each.as_posix()]
    for seed, path in enumerate(chunks):
        for bit in random_bits(path, 3, seed):
            with flipped(path, bit), pytest.raises(ValueError, match="checksum do not match"):
                xr.open_datatree(store, engine="zarr").load()


def test_what_is_no_store_of_traces(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no traces at .*: write them with sample\(\.\.\., traces=path\)"):
        pf.load_traces(tmp_path / "t.zarr")
    with pytest.raises(ValueError, match="is no store of traces that sample of this version has written"):
        pf.load_traces(tmp_path)


def test_an_unfinished_store_says_how_far_it_is(tmp_path: Path, made: Path) -> None:
    for more, there in ((0, 0), (3, 3), (1, 4)):
        with pytest.raises(KeyboardInterrupt):
            sample(tmp_path, stop_after=more)
        with pytest.raises(ValueError, match=rf"lacks draws\.json, .*: {there} of {DRAWS} draws are there"):
            pf.load_traces(tmp_path / "t.zarr")
    sample(tmp_path)
    assert contents(tmp_path / "t.zarr") == contents(made)


def test_a_run_goes_on_from_whole_draws_only(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path, stop_after=4)
    store = tmp_path / "t.zarr"
    for path in files(store):
        named = path.relative_to(store).as_posix()
        content = path.read_bytes()
        for bit in random_bits(path, 2, seed=0):
            with flipped(path, bit), pytest.raises(ValueError, match=f"is damaged: {named}.* not what was written"):
                sample(tmp_path)
        path.unlink()
        if named != "layout.json":
            with pytest.raises(ValueError, match=f"is damaged: {named} is missing"):
                sample(tmp_path)
        path.write_bytes(content)
    sample(tmp_path)
    assert values(store).attrs["draws"] == DRAWS


def test_a_store_that_is_behind_its_checkpoint_is_refused(tmp_path: Path) -> None:
    """Put back from a copy, say: it is whole, and lacks draws."""
    store = tmp_path / "t.zarr"
    for more, there in ((2, 2), (1, 3), (1, 4)):
        with pytest.raises(KeyboardInterrupt):
            sample(tmp_path, stop_after=more)
        shutil.copytree(store, tmp_path / f"of {there} draws")
    for copy, message in (
        ("of 2 draws", "chains/phi/c/0/0/1 is missing"),
        ("of 3 draws", "it has 3 of the 4 draws that the run's checkpoint goes on from"),
    ):
        shutil.rmtree(store)
        shutil.copytree(tmp_path / copy, store)
        with pytest.raises(ValueError, match=f"is damaged: {message}"):
            sample(tmp_path)


def test_a_store_that_is_written_again_is_not_finished(tmp_path: Path) -> None:
    """As an older copy of the checkpoint is put back."""
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path, stop_after=3)
    shutil.copytree(tmp_path / "checkpoint", tmp_path / "older")
    sample(tmp_path)
    before = contents(tmp_path / "t.zarr")
    shutil.rmtree(tmp_path / "checkpoint")
    (tmp_path / "older").rename(tmp_path / "checkpoint")
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path, stop_after=1)
    with pytest.raises(ValueError, match=r"lacks draws\.json"):
        pf.load_traces(tmp_path / "t.zarr")
    sample(tmp_path)
    assert contents(tmp_path / "t.zarr") == before


def test_draws_that_a_checkpoint_counts_outlive_a_loss_of_power(tmp_path: Path, made: Path) -> None:
    """Of the last operations on the store, all draws have been saved before."""
    folder = tmp_path / "folder"
    folder.mkdir()

    def sample_here() -> None:
        sample(folder, checkpoint=tmp_path / "checkpoint")

    last = len(run(sample_here, folder).operations) - 3
    for path in (folder / "t.zarr", tmp_path / "checkpoint"):
        shutil.rmtree(path)
    assert run(sample_here, folder, POWER_LOSS, last).error == "killed"
    sample_here()
    assert contents(folder / "t.zarr") == contents(made)


def test_draws_of_a_chain_that_diverged_are_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or one that is gone would not be missed."""
    monkeypatch.setattr(trace_store, "CHUNK_VALUES", 2)
    step = TorchEnsemble.step

    def stumble(moving: TorchEnsemble, pool: Any) -> None:
        step(moving, pool)
        if int(moving.state.step) == 4:
            moving.bank.params[moving.bank.starts[1] : moving.bank.starts[2]] = np.nan

    monkeypatch.setattr(TorchEnsemble, "step", stumble)
    sample(tmp_path)
    phi = values(tmp_path / "t.zarr")["/chains"].to_dataset()["phi"].values
    assert np.isfinite(phi[0, 0]).all()
    assert np.isfinite(phi[0, 1]).tolist() == [True, True, False, False, False, False]
    (tmp_path / "t.zarr/chains/phi/c/0/1/2").unlink()
    with pytest.raises(ValueError, match="is damaged: chains/phi/c/0/1/2 is missing"):
        pf.load_traces(tmp_path / "t.zarr")


def test_files_of_others_in_the_store_stay(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path, stop_after=3)
    own = tmp_path / "t.zarr/notes.partial"
    own.write_text("mine")
    left = tmp_path / f"t.zarr/chains/phi/c/0/0/1.{'0f' * 16}.partial"
    left.write_bytes(b"half of a chunk")
    sample(tmp_path)
    assert own.read_text() == "mine"
    assert not left.exists()
    values(tmp_path / "t.zarr")
