"""Chain-steps of small models beside peers: one table, and the rows in bench/results/.

Contestants take turns, each in a process of its own, ROUNDS times; compared are medians. All are checked first: the
mean |w − w*|² of chains at the end of a call must agree with ours.
"""

from __future__ import annotations

import statistics
import subprocess

from tqdm import tqdm

from bench.results import record
from bench.small.contestant import PEERS, Run, Taken, measure
from bench.small.workload import ROOT

ROUNDS = 3
ALIKE = 0.05
"""Largest relative difference of mean |w − w*|²: few chains of peers that run one after another tell it no better."""

FIGURES = [
    # workload, our chains, peer, its chains, bar
    ("superposition", 1024, "jax", 1024, 8.0),
    ("superposition", 1024, "torch", 1024, 200.0),
    ("superposition", 1024, "devinterp", 64, 1000.0),
    ("deep-linear", 64, "blackjax", 64, 8.0),
    ("deep-linear", 1024, "blackjax", 1024, 8.0),
    ("deep-linear", 64, "posteriors", 64, None),
    ("deep-linear", 64, "devinterp", 64, 500.0),
    ("mlp", 1024, "jax", 1024, 3.0),
]
STEPS = 100
"""Of a call."""


def main() -> None:
    subprocess.run([PEERS, "-m", "bench.small.workload"], cwd=ROOT, check=True)  # where scikit-learn is
    ours = {(workload, chains): Run("ours", workload, chains, STEPS) for workload, chains, *_ in FIGURES}
    peers = {each[:4]: Run(each[2], each[0], each[3], STEPS) for each in FIGURES}
    taken: dict[Run, list[Taken]] = {}
    for _ in range(ROUNDS):
        for run in tqdm([*ours.values(), *peers.values()], unit="run"):
            taken.setdefault(run, []).append(measure(run))

    def microseconds(run: Run) -> float:
        return statistics.median(each.microseconds(run) for each in taken[run])

    rows: list[dict[str, object]] = []
    for workload, chains, peer, their_chains, bar in FIGURES:
        own, other = ours[workload, chains], peers[workload, chains, peer, their_chains]
        distances = [taken[run][0].squared_distance for run in (own, other)]
        assert abs(distances[1] / distances[0] - 1) < ALIKE, (own, other, distances)
        here, there = microseconds(own), microseconds(other)
        rows.append({
            "figure": f"{workload}, {chains} chains: faster than {peer}", "value": there / here, "unit": "times",
            "bar": bar, "holds": None if bar is None else there / here >= bar,
            "peers": {"here [µs per chain-step]": here, f"{peer}, {their_chains} chains [µs]": there},
        })  # fmt: skip
    for each in rows:
        judged = "" if each["bar"] is None else f"bar {each['bar']:g}, {'holds' if each['holds'] else 'MISSED'}"
        beside = ", ".join(f"{name} {value:.4g}" for name, value in each["peers"].items())  # type: ignore[attr-defined]
        print(f"{each['figure']:<48} {each['value']:>8.4g} times   {judged:<18} {beside}", flush=True)
    record("small", rows)


if __name__ == "__main__":
    main()
