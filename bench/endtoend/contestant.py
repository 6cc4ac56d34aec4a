"""A contestant's run: one process that samples one workload and nothing else, and says what it took."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.endtoend.workload import FOLDER, ROOT, WORKLOADS, Workload

PEERS = ROOT / "build" / "peers" / "bin" / "python"
"""The interpreter of the environment that the peers live in (`make build/peers/.installed`)."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Run:
    """What a contestant is asked for; `variant` is its own choice of how, e.g. how many chains it batches."""

    contestant: str
    workload: str
    chains: int
    draws: int
    threads: int
    variant: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        parts = (self.contestant, self.workload, f"{self.chains}x{self.draws}", f"{self.threads}t", self.variant)
        return "-".join(part for part in (*parts, f"s{self.seed}") if part)

    @property
    def arrays(self) -> Path:
        """Where the run leaves its estimates and traces."""
        return FOLDER / "runs" / f"{self.name}.npz"

    @property
    def taken(self) -> Path:
        """Where it leaves what it took."""
        return self.arrays.with_suffix(".json")


@dataclass(frozen=True)
class Taken:
    """What a run took."""

    startup: float
    """Seconds until the model, the data and all imports are there."""
    seconds: float
    """Seconds from there to the estimates."""
    compiling: float
    """Seconds of those that were spent on compiling."""
    chain_steps: int
    imported: float
    """Resident memory [MiB] before sampling."""
    peak: float
    """Peak resident memory [MiB] of the process."""
    disk: float
    """Written to disk [MiB]."""

    @property
    def ms_per_chain_step(self) -> float:
        return 1e3 * (self.seconds - self.compiling) / self.chain_steps


def measure(run: Run) -> Taken:
    """Run a contestant in a process of its own, unless it has been: a bench that was stopped goes on from there.

    Raises RuntimeError with the end of what it printed where it fails.
    """
    if run.taken.exists():
        return Taken(**json.loads(run.taken.read_text()))
    python = sys.executable if run.contestant == "ours" else str(PEERS)
    module = f"bench.endtoend.{'ours' if run.contestant == 'ours' else f'peers.{run.contestant}_run'}"
    environment = os.environ | {"OMP_NUM_THREADS": str(run.threads), "MKL_NUM_THREADS": str(run.threads)}
    run.arrays.parent.mkdir(parents=True, exist_ok=True)
    command = [python, "-W", "ignore", "-m", module, json.dumps(asdict(run))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{run.name} failed: {done.stderr[-2000:]}")
    run.taken.write_text(done.stdout.splitlines()[-1])
    return Taken(**json.loads(run.taken.read_text()))


Prepared = Callable[[], tuple[Arrays, float, float]]
"""Samples and estimates: gives arrays to keep, the seconds that compiling took, and the MiB it left on disk."""


def contest(prepare: Callable[[Run, Workload], Prepared]) -> None:
    """What a contestant's process does: import, load, take the time of sampling, leave the arrays, print `Taken`."""
    import torch

    parser = argparse.ArgumentParser()
    parser.add_argument("run", help="a Run as JSON")
    run = Run(**json.loads(parser.parse_args().run))
    torch.set_num_threads(run.threads)
    workload = WORKLOADS[run.workload]
    sample = prepare(run, workload)
    startup, imported = age(), memory("VmRSS")
    started = time.perf_counter()
    arrays, compiling, disk = sample()
    seconds = time.perf_counter() - started
    steps = int(arrays.pop("chain_steps"))
    taken = Taken(startup, seconds, compiling, steps, imported, memory("VmHWM"), disk)
    np.savez(run.arrays, **arrays)  # type: ignore[arg-type]
    print(json.dumps(asdict(taken)))


def memory(what: str) -> float:
    """Memory [MiB] of this process: VmRSS, now, or VmHWM, at its peak."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def age() -> float:
    """Seconds since this process was started."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - ticks / os.sysconf("SC_CLK_TCK")
