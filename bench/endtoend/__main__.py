"""Estimation end to end beside its peers: one table, and the rows in bench/results/.

Runs that are in build/endtoend/runs/ are taken as they are, so that a bench that was stopped goes on.
"""

from __future__ import annotations

import subprocess
import sys

from tqdm import tqdm

from bench.endtoend.contestant import measure
from bench.endtoend.figures import FIGURES, SMOLLM2, Row, line
from bench.endtoend.runs import TURNS
from bench.endtoend.workload import WORKLOADS, prepare
from bench.results import record


def main() -> None:
    for workload in WORKLOADS.values():
        prepare(workload)
    for run in (bar := tqdm(TURNS, unit="run")):
        bar.set_description(run.name)
        measure(run)
    if not SMOLLM2.exists():
        command = [sys.executable, "-W", "ignore", "-m", "bench.endtoend.smollm2"]
        SMOLLM2.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    rows: list[Row] = []
    for figure in FIGURES:
        for row in figure():
            print(line(row), flush=True)
            rows.append(row)
    record("endtoend", rows)


if __name__ == "__main__":
    main()
