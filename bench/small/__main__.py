"""Chain-steps of small models beside peers: one table, and the rows in bench/results/.

Contestants take turns, each in a process of its own, ROUNDS times; compared are medians. All are checked first: the
mean |w − w*|² of chains at the end of a call must agree with ours.
"""

from __future__ import annotations

import statistics
import subprocess
import time

import torch
from tqdm import tqdm

from bench.endtoend.phases import product_rate
from bench.results import record
from bench.small.contestant import PEERS, Run, Taken, measure
from bench.small.workload import ROOT
from patterning_fast import ops
from patterning_fast.ops import DenseLayer, DenseStack

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
    ("deep-linear", 64, "canonical", 64, 20.0),
    ("deep-linear", 1024, "canonical", 1024, 20.0),
    ("deep-linear", 64, "posteriors", 64, None),
    ("deep-linear", 64, "devinterp", 64, 500.0),
    ("mlp", 1024, "jax", 1024, 3.0),
]
STEPS = 100
"""Of a call."""


WIDTHS = (64, 128)
SHARE_BAR = 0.4


def shares_of_rate() -> list[dict[str, object]]:
    """Of the rate at which these cores make products, the share reached on three square layers with relu between."""
    threads = torch.get_num_threads()
    rate, rows = product_rate(threads), []
    for width in WIDTHS:
        chains, batch, steps, samples = 64, 128, 20, 1000
        size = width * width
        layers = [DenseLayer(width, width, at * size, activation="relu" if at < 2 else "identity") for at in range(3)]
        whole, none = torch.full((chains,), -1), torch.zeros(0, dtype=torch.int64)
        x, y, base = torch.randn(samples, width), torch.randn(samples, width), torch.randn(3 * size) / width**0.5
        stack = DenseStack(layers, base, whole, none, x, y)
        starts, seconds = torch.arange(chains + 1) * 3 * size, []
        for _ in range(2 * ROUNDS):
            params = base.repeat(chains)
            grads, started = torch.zeros_like(params), time.perf_counter()
            ops.dense_steps(
                stack, params, grads, base, row_starts=starts, center_starts=torch.zeros_like(starts[1:]), lr=1e-6,
                n_beta=10.0, localization=100.0, seed=0, step=0, replicas=torch.arange(chains), batch_size=batch,
                steps=steps,
            )  # fmt: skip
            seconds.append(time.perf_counter() - started)
        # Forward, back to the first layer's outputs, and the gradient of each weight.
        flops = 2.0 * chains * steps * batch * (3 * 3 - 1) * size
        share = flops / statistics.median(seconds[1:]) / rate
        rows.append({
            "figure": f"three layers of width {width}: share of the rate of products", "value": share, "unit": "",
            "bar": SHARE_BAR, "holds": share >= SHARE_BAR, "peers": {"products [GFLOP/s]": rate / 1e9},
        })  # fmt: skip
    return rows


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

    rows = shares_of_rate()
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
        print(f"{each['figure']:<60} {each['value']:>8.4g} {each['unit']:<5}   {judged:<18} {beside}", flush=True)
    record("small", rows)


if __name__ == "__main__":
    main()
