"""A contestant's run: one process that advances chains of one small model, and says what a chain-step took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from bench.small.workload import ROOT, WORKLOADS, Workload

PEERS = ROOT / "build" / "peers" / "bin" / "python"
REPEATS = 5


@dataclass(frozen=True)
class Run:
    """What a contestant is asked for: so many steps of so many chains in a call."""

    contestant: str
    workload: str
    chains: int
    steps: int
    threads: int = 2


@dataclass(frozen=True)
class Taken:
    """Seconds of a call, the median of several, and mean |w − w*|² of chains at its end, which all must agree on."""

    seconds: float
    squared_distance: float

    def microseconds(self, run: Run) -> float:
        """Of a chain-step."""
        return 1e6 * self.seconds / (run.chains * run.steps)


def measure(run: Run) -> Taken:
    """Run a contestant in a process of its own; raises RuntimeError with the end of what it printed where it fails."""
    ours = run.contestant == "ours"
    module = f"bench.small.{'ours' if ours else f'peers.{run.contestant}_run'}"
    environment = os.environ | {"OMP_NUM_THREADS": str(run.threads), "MKL_NUM_THREADS": str(run.threads)}
    command = [sys.executable if ours else str(PEERS), "-W", "ignore", "-m", module, json.dumps(asdict(run))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{run} failed: {done.stderr[-2000:]}")
    return Taken(**json.loads(done.stdout.splitlines()[-1]))


Advance = Callable[[], list[np.ndarray]]
"""Takes all chains from w* through the run's steps; their parameters, each `[chains, ...]`."""


def contest(prepare: Callable[[Run, Workload, dict[str, np.ndarray]], Advance]) -> None:
    """What a contestant's process does; what the first call compiles is not timed."""
    run = Run(**json.loads(sys.argv[1]))
    workload = WORKLOADS[run.workload]
    arrays = workload.load()
    advance = prepare(run, workload, arrays)
    advance()
    seconds, ended = [], []
    for _ in range(REPEATS):
        started = time.perf_counter()
        ended = advance()
        seconds.append(time.perf_counter() - started)
    centers = [arrays[name] for name in arrays if name not in ("x", "y")]
    distance = sum(
        float(np.square(end - center).sum()) / run.chains for end, center in zip(ended, centers, strict=True)
    )
    print(json.dumps(asdict(Taken(float(np.median(seconds)), distance))))
