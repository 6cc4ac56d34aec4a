"""Faults of disk, power and process in every writer: one form of error, and the same call again makes it good."""

from __future__ import annotations

import errno
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import patterning_fast as pf
from patterning_fast.tasks.corpora import Corpus, whole_files
from patterning_fast.tasks.domain_contexts import tokenized
from patterning_fast.tasks.mini_pile import cached, mini_pile
from patterning_fast.tasks.packages import Package
from patterning_fast.tasks.tokenizer import train_tokenizer
from tests.faults import FULL, KILL, POWER_LOSS, Fault, at_every_operation, run

READ_ONLY = Fault("read-only disk", errno.EROFS, lasting=True)
DENIED = Fault("no permission", errno.EACCES)
MEND = {
    FULL: "No space left on device; make room, or name another folder",
    READ_ONLY: "Read-only file system; name a folder that can be written to",
    DENIED: "Permission denied; name a folder that you may write to",
}
TEXT = {"verse": [f"Rose {number} is a rose, and no {number + 1}.\n" for number in range(60)]}
CORPORA = {
    "prose": Corpus(Package("pip", "toy-text", "1.2"), "toy_text/*.txt", "MIT", whole_files),
    "own": Corpus(None, "", "?", lambda _: iter(["here"])),
}
DATA = torch.arange(12.0).view(4, 3), torch.ones(4, 1)


def traces(folder: Path) -> None:
    """With a checkpoint elsewhere: a run goes on with its traces from there only."""
    checkpoint = folder.parent / "checkpoint"
    if not (folder / "t.zarr").exists():
        shutil.rmtree(checkpoint, ignore_errors=True)
    torch.manual_seed(0)
    posterior = pf.LocalPosterior(
        nn.Linear(3, 1, bias=False), pf.losses.squared_error, DATA, n_beta=1.0, localization=10.0
    )
    pf.sample(
        posterior, pf.SGLD(1e-6), chains=2, draws=3, batch_size=2, tile=1, progress=False, traces=folder / "t.zarr",
        checkpoint=checkpoint, checkpoint_seconds=0,
    )  # fmt: skip
    pf.load_traces(folder / "t.zarr").close()


def weights(folder: Path) -> None:
    ones = xr.DataArray(np.ones(4), dims="sample", coords={"sample": np.arange(4)})
    pf.save_weights(folder / "w.parquet", ones, DATA)
    pf.load_weights(folder / "w.parquet", DATA)


def tokens(folder: Path) -> None:
    tokenized(TEXT, 280, 1000, folder / "cache")


def tokenizer(folder: Path) -> None:
    train_tokenizer(TEXT, 280, folder / "cache")


def pile(folder: Path) -> None:
    assert set(mini_pile(folder, progress=False, corpora=CORPORA).files) == set(CORPORA)
    cached(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a package that was fetched already, and a file of the user's."""
    fetched = tmp_path / "folder/packages/pip-toy-text"
    fetched.mkdir(parents=True)
    with zipfile.ZipFile(fetched / "toy_text-1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy_text/prose.txt", "Call me.")
    (tmp_path / "folder/partial-mine").write_text("mine")
    return tmp_path / "folder"


@pytest.mark.parametrize(
    ("write", "what", "every"),
    [
        (traces, "traces to {}/t.zarr", 120),
        (weights, "weights to {}/w.parquet", 2),
        (tokens, "(tokens|a tokenizer) to {}/cache.*", 9),
        (tokenizer, "a tokenizer to {}/cache/tokenizer-280-.*.json", 4),
        (pile, "(the mini-pile|the domain (prose|own)) to {}.*", 23),
    ],
)
def test_every_writer_survives_the_disk(write: Callable[[Path], None], what: str, every: int, folder: Path) -> None:
    """An error says what could not be written, where, why and how to mend it. The same call again succeeds."""
    failed = 0
    for ended in at_every_operation(lambda: write(folder), folder, (*MEND, KILL, POWER_LOSS), every):
        if ended.fault in MEND and ended.error is not None:
            failed += 1
            expected = f"OSError: cannot write {what.format(folder)}: .*{MEND[ended.fault]}"
            assert re.fullmatch(expected, ended.error.strip().splitlines()[-1]), ended
        again = run(lambda: write(folder), folder)
        assert again.error is None, (ended, again)
        assert (folder / "partial-mine").read_text() == "mine", ended
        assert not list(folder.rglob("*.partial*")), ended
    assert failed >= len(MEND)
