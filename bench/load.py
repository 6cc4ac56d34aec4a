"""Do memory, open files or threads grow with use? The same rounds of work over and over in one process, for an hour.

A round samples 2,000 chains of 500 components by torch, with a checkpoint and traces, and as many by the native engine,
differentiates some chains, inverts χ of some components, and trains. `python -m bench.load [--minutes 60] [--quick]`.

What must stay flat is judged over the second half. Memory is flat where the slope of a straight line, with two errors
added, is below 1 % an hour; it grows where the slope is above that with two errors taken off; else the run was too
short to tell. Files and threads are flat where there are never more than after the first rounds. Runs make threads, and
glibc gives each an arena that fragments: with MALLOC_ARENA_MAX=1 what is left is what leaks.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import patterning_fast as pf
from bench.results import FOLDER, machine
from patterning_fast.models.attention_only import AttentionOnlyLM

BAR = 0.01
"""Share of the memory that an hour may add."""

WARM = 3
"""Rounds after which all that is made once is there."""


@dataclass(frozen=True)
class Size:
    """What a round does."""

    components: int
    chains: int
    """Per component."""
    draws: int


FULL, QUICK = Size(500, 4, 2), Size(12, 2, 2)


@dataclass(frozen=True)
class Reading:
    """What the process holds after a round."""

    seconds: float
    memory_mib: float
    """Resident."""
    files: int
    """Open file descriptors."""
    threads: int
    left_behind: int
    """Files in the folder for temporary ones, and mapped from /dev/shm."""
    posteriors: int
    """LocalPosterior objects that are still reachable."""


COUNTS = ("files", "threads", "left_behind", "posteriors")


class Rounds:
    """Work to be repeated, on models that are made once."""

    def __init__(self, size: Size, folder: Path) -> None:
        torch.manual_seed(0)
        self.size, self.folder = size, folder
        self.language = AttentionOnlyLM(32, 12, width=16, heads=2, head_width=8, layers=2)
        read = (torch.arange(96) % 32)[torch.randperm(96)].view(8, 12)  # all there are, so that each has a χ
        self.tokens = torch.cat((read, torch.randint(32, (8, 1))), 1)
        self.dense = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16))
        self.pairs = torch.randn(64, 16), torch.randn(64, 16)

    def one(self, seed: int) -> None:
        """A round; nothing of it is kept."""
        chains: dict[str, Any] = {"chains": self.size.chains, "batch_size": 4, "seed": seed, "progress": False}
        language = pf.LocalPosterior(self.language, pf.losses.next_token, self.tokens, n_beta=10.0, localization=100.0)
        kept: dict[str, Any] = {"checkpoint": self.folder / "checkpoint", "traces": self.folder / "traces.zarr"}
        sampled = pf.sample(
            language, pf.SGLD(1e-3), components=parts(self.language, self.size.components), draws=self.size.draws,
            tile=self.size.chains, checkpoint_seconds=0, **kept, **chains,
        )  # fmt: skip
        chi = sampled.susceptibilities().isel(component=slice(0, 20))
        plan = pf.invert(chi, pf.modes(chi, unsettled=True)[0], strength=0.1, unsettled=True)
        sampled.diagnostics()
        dense = pf.LocalPosterior(self.dense, pf.losses.squared_error, self.pairs, n_beta=20.0, localization=50.0)
        pf.sample(
            dense, pf.SGLD(1e-3), components=parts(self.dense, self.size.components), draws=10 * self.size.draws,
            engine="native", **chains,
        ).susceptibilities()  # fmt: skip
        pf.linear_response(language, pf.SGLD(1e-3), draws=2, burn_in=1, **chains)
        pf.train(
            copy.deepcopy(self.language), self.tokens, pf.losses.next_token, weights=plan.weights, steps=10,
            batch_size=4, lr=1e-3, progress=False, checkpoint=self.folder / "training", checkpoint_seconds=0,
        )  # fmt: skip
        for each in self.folder.iterdir():
            shutil.rmtree(each)


def parts(model: nn.Module, number: int) -> dict[str, pf.Component]:
    """That many components, each a few coordinates of one parameter."""
    found: dict[str, pf.Component] = {}
    parameters = {name: each for name, each in model.named_parameters() if each.numel() > 1}
    total = sum(each.numel() for each in parameters.values())
    for name, parameter in parameters.items():
        wanted = max(1, round(number * parameter.numel() / total))
        for indices in torch.arange(parameter.numel()).tensor_split(min(wanted, parameter.numel())):
            if len(found) < number:
                found[f"c{len(found)}"] = pf.component(model, f"c{len(found)}", {name: indices})
    return found


def reading(started: float) -> Reading:
    gc.collect()
    release_free_memory()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    shared = sum("/dev/shm/" in line for line in Path("/proc/self/maps").read_text().splitlines())
    return Reading(
        seconds=time.monotonic() - started,
        memory_mib=pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        files=len(os.listdir("/proc/self/fd")),
        threads=len(os.listdir("/proc/self/task")),
        left_behind=sum(len(files) for _, _, files in os.walk(tempfile.gettempdir())) + shared,
        posteriors=sum(type(each) is pf.LocalPosterior for each in gc.get_objects()),
    )


def release_free_memory() -> None:
    """What glibc keeps of memory that was freed would be noise; other C libraries are left to themselves."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def slope(readings: Sequence[Reading]) -> tuple[float, float]:
    """Of memory over its mean, an hour, by a straight line; and its standard error, infinite for fewer than three."""
    hours = np.array([each.seconds for each in readings]) / 3600
    memory = np.array([each.memory_mib for each in readings])
    if len(readings) < 3:
        return float("nan"), float("inf")
    away = hours - hours.mean()
    growth = (away @ memory) / (away @ away)
    rest = memory - memory.mean() - growth * away
    error = np.sqrt((rest @ rest) / (len(readings) - 2) / (away @ away))
    return float(growth / memory.mean()), float(error / memory.mean())


def verdict(readings: Sequence[Reading]) -> dict[str, Any]:
    """What was flat over the second half."""
    half = readings[len(readings) // 2 :]
    growth, error = slope(half)
    memory = "too short to tell"
    if growth + 2 * error < BAR:
        memory = "flat"
    elif growth - 2 * error > BAR:
        memory = "grows"
    first = readings[: max(WARM, 1)]
    counts = {
        name: max(getattr(each, name) for each in half) <= max(getattr(each, name) for each in first) for name in COUNTS
    }
    return {
        "memory": memory,
        "memory growth an hour": growth,
        "memory growth error": error,
        **{name: "flat" if flat else "grows" for name, flat in counts.items()},
        "holds": memory == "flat" and all(counts.values()),
    }


def run(size: Size, minutes: float, least: int = WARM + 1) -> list[Reading]:
    """Rounds for so many minutes, and at least so many rounds; a line for each."""
    readings: list[Reading] = []
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as own:
        tempfile.tempdir, folder = own, Path(own) / "runs"  # where only this process leaves files
        folder.mkdir()
        try:
            rounds, started = Rounds(size, folder), time.monotonic()
            while len(readings) < least or time.monotonic() - started < 60 * minutes:
                rounds.one(len(readings))
                readings.append(reading(started))
                last = readings[-1]
                print(
                    f"{last.seconds / 60:5.1f} min, round {len(readings)}: {last.memory_mib:.1f} MiB, "
                    f"{last.files} files, {last.threads} threads, {last.left_behind} files left behind, "
                    f"{last.posteriors} posteriors",
                    flush=True,
                )
        finally:
            tempfile.tempdir = before
    return readings


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    arguments.add_argument("--minutes", type=float, default=60.0)
    arguments.add_argument("--quick", action="store_true", help="a few components, and nothing is written")
    given = arguments.parse_args()
    size = QUICK if given.quick else FULL
    readings = run(size, given.minutes)
    found = verdict(readings)
    print(json.dumps(found, indent=1))
    if not given.quick:
        result = {
            "machine": machine(),
            "arenas": os.environ.get("MALLOC_ARENA_MAX", "as many as glibc makes"),
            "versions": {package: version(package) for package in ("patterning_fast", "torch", "numpy")},
            "size": asdict(size),
            "minutes": given.minutes,
            "bar": BAR,
            "verdict": found,
            "rounds": [asdict(each) for each in readings],
        }
        (FOLDER / "load.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
