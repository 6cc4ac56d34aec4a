"""Learning coefficients of deep linear networks, estimated beside the truth: a table, and docs/images/deep_linear.png.

Each architecture is sampled at its most singular parameter of a rank, where λ is known exactly, by SGLD and by
RMSProp-SGLD, all with settings by one rule. What devinterp would take for the same steps, and so for the same error,
comes from its time per chain-step on each architecture.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm

import patterning_fast as pf
from bench.results import machine, record
from bench.small.contestant import PEERS
from bench.small.workload import ROOT
from patterning_fast.models.deep_linear import deep_linear_network, learning_coefficient
from patterning_fast.samplers.langevin import Sampler

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "deep_linear.png"
SAMPLES, BATCH = 1000, 64
N_BETA, LOCALIZATION = 3e4, 1.0
CHAINS, DRAWS = 8, 100
MOST_STEPS, MOST_WORK = 2_000_000, 5e8
"""Of a chain, before its draws as during them: steps, and steps times parameters."""
STABILITY = 1.0
"""RMSProp-SGLD leaves out how its lr depends on where a chain is, which biases it by some √v̂/stability: 1 % at 0.1."""
DEVINTERP = {"SGLD": "sgld", "RMSProp-SGLD": "rmsprop_sgld"}
"""Its names for the samplers."""

MEDIAN_BAR, COVERED_BARS, CHEAPER_BAR = 0.05, (0.85, 0.99), 100.0


@dataclass(frozen=True)
class Architecture:
    widths: tuple[int, ...]
    rank: int

    @property
    def parameters(self) -> int:
        return sum(below * above for below, above in pairwise(self.widths))

    @property
    def truth(self) -> float:
        return learning_coefficient(self.widths, self.rank).value

    @property
    def lr_n_beta(self) -> float:
        """lr·n_beta, the step on a direction of curvature 1: wider matrices grow larger norms on the way."""
        return 0.02 / math.sqrt(max(self.widths))

    @property
    def steps(self) -> int:
        """Enough for directions in which L is flat up to its order 2·layers, where that can be paid; but no more than
        leave the matrices' norms, which noise makes grow, at a few times their own: steeper is beyond this lr."""
        layers = len(self.widths) - 1
        wanted = min(4 * N_BETA ** (1 - 1 / layers), 0.7 * N_BETA / max(self.widths)) / self.lr_n_beta
        return DRAWS * math.ceil(min(wanted, MOST_STEPS, MOST_WORK / self.parameters) / DRAWS)

    def __str__(self) -> str:
        return "-".join(map(str, self.widths))


@dataclass(frozen=True)
class Estimate:
    value: float
    error: float
    seconds: float


def architectures() -> list[Architecture]:
    """Twenty of 2 to 6 layers, every third of full rank, and five larger ones, up to 100,000 parameters."""
    chosen, made = random.Random(0), []
    for index in range(20):
        widest = (4, 6, 8, 12)[index % 4]
        widths = tuple(chosen.randint(2, widest) for _ in range(3 + index % 5))
        full = index % 3 == 0
        made.append(Architecture(widths, min(widths) if full else chosen.randint(1, min(widths) - 1)))
    return [
        *made,
        Architecture((40, 30, 40), 25),
        Architecture((30, 40, 30, 20), 20),
        Architecture((80, 60, 80), 50),
        Architecture((64, 48, 48, 64), 40),
        Architecture((180, 180, 180, 180), 170),
    ]


def samplers(architecture: Architecture) -> dict[str, Sampler]:
    lr = architecture.lr_n_beta / N_BETA
    return {"SGLD": pf.SGLD(lr), "RMSProp-SGLD": pf.RMSPropSGLD(STABILITY * lr, stability=STABILITY)}


def data(architecture: Architecture, seed: int) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """The network, and samples with its outputs; their mean x xᵀ is the identity, as if there were infinitely many."""
    network = deep_linear_network(architecture.widths, architecture.rank, seed)
    normal = torch.randn(SAMPLES, architecture.widths[0], generator=torch.Generator().manual_seed(seed))
    x = (torch.linalg.qr(normal.double())[0] * SAMPLES**0.5).float()
    with torch.no_grad():
        return network, x, network(x)


def estimate(architecture: Architecture, sampler: Sampler, seed: int) -> Estimate:
    """λ̂ of all draws; its error is that of independent chains, their drift from first half to second, and 1/log nβ.

    The last because nβ E[L] = λ − (m − 1)/log nβ + ..., and whoever does not know λ does not know m either.
    """
    network, x, y = data(architecture, seed)
    posterior = pf.LocalPosterior(network, pf.losses.squared_error, (x, y), n_beta=N_BETA, localization=LOCALIZATION)
    run = pf.sample(
        posterior, sampler, probes={"few": (x[:1], y[:1])}, chains=CHAINS, draws=DRAWS, burn_in=DRAWS,
        steps_between_draws=architecture.steps // DRAWS, batch_size=BATCH, engine="native", seed=seed, progress=False,
    )  # fmt: skip
    llc = run.llc().sel(component="full")
    first, second = np.split(N_BETA * run.diagnostics()["phi"].sel(component="full").values.mean(0), 2)
    drift = float(second.mean() - first.mean())
    error = math.hypot(float(llc["llc_error"]), drift, 1 / math.log(N_BETA))
    return Estimate(float(llc["llc"]), error, float(run.attrs["seconds"]))


def devinterp_seconds(method: str, chosen: list[Architecture]) -> np.ndarray:
    """Seconds that devinterp would take for the same steps of the same chains, two processes side by side."""
    asked = json.dumps({"method": method, "batch_size": BATCH, "widths": [each.widths for each in chosen]})
    command = [str(PEERS), "-W", "ignore", "-m", "bench.small.peers.devinterp_deep_linear", asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    steps = np.array([2 * CHAINS * each.steps for each in chosen])
    return steps * np.array(json.loads(done.stdout.splitlines()[-1])) / torch.get_num_threads()


def main() -> None:
    found: dict[str, list[Estimate]] = {}
    chosen = architectures()
    theirs = {name: devinterp_seconds(method, chosen) for name, method in DEVINTERP.items()}
    for seed, architecture in enumerate(tqdm(chosen, unit="network")):
        for name, sampler in samplers(architecture).items():
            found.setdefault(name, []).append(estimate(architecture, sampler, seed))
    print(
        f"{'widths':<20} {'rank':>4} {'params':>7} {'steps':>9} {'λ':>8}   "
        + "   ".join(f"{name:>24}" for name in found)
    )
    for at, each in enumerate(chosen):
        shown = "   ".join(
            f"{values[at].value:>9.2f} ± {values[at].error:<6.2f} {values[at].value / each.truth - 1:>+6.1%}"
            for values in found.values()
        )
        print(f"{each!s:<20} {each.rank:>4} {each.parameters:>7} {2 * each.steps:>9,} {each.truth:>8.1f}   {shown}")
    truth = np.array([each.truth for each in chosen])
    rows: list[dict[str, object]] = []
    for name, values in found.items():
        value, error, seconds = (
            np.array([getattr(each, of) for each in values]) for of in ("value", "error", "seconds")
        )
        off = np.abs(value / truth - 1)
        median, covered = float(np.median(off)), float((np.abs(value - truth) < 2 * error).mean())
        cheaper = float(theirs[name].sum() / seconds.sum())
        least, most = COVERED_BARS
        rows += [
            {"figure": f"{name}: median relative error of the learning coefficient", "value": median, "unit": "",
             "bar": MEDIAN_BAR, "holds": median <= MEDIAN_BAR,
             "peers": {"networks": len(chosen), "largest": float(off.max()), "said": float(np.median(error / truth))}},
            {"figure": f"{name}: share of truths within 2 standard errors", "value": covered, "unit": "", "bar": least,
             "holds": least <= covered <= most, "peers": {"networks": len(chosen), "at most": most}},
            {"figure": f"{name}: cheaper than devinterp for the same chain-steps", "value": cheaper,
             "unit": "times", "bar": CHEAPER_BAR, "holds": cheaper >= CHEAPER_BAR,
             "peers": {"here [s]": float(seconds.sum()), "devinterp [s]": float(theirs[name].sum()),
                       "median network": float(np.median(theirs[name] / seconds))}},
        ]  # fmt: skip
    for row in rows:
        holds = "holds" if row["holds"] else "MISSED"
        print(f"{row['figure']:<72} {row['value']:>8.3g}   bar {row['bar']:g}, {holds}   {row['peers']}")
    record("deep-linear", rows)
    draw(truth, found)


def draw(truth: np.ndarray, found: dict[str, list[Estimate]]) -> None:
    """The estimates over the truth, each with two standard errors."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    axes.axhspan(0.95, 1.05, color="0.92", zorder=0, label="within 5 %")
    axes.axhline(1, color="0.3", linewidth=1)
    looks = zip(found.items(), "os", ("#0072B2", "#D55E00"), (0.985, 1.015), strict=True)
    for (name, values), marker, colour, aside in looks:
        value, error = np.array([each.value for each in values]), np.array([each.error for each in values])
        axes.errorbar(
            truth * aside, value / truth, 2 * error / truth, fmt=marker, color=colour, markersize=4.5, capsize=2,
            linewidth=1, label=name,
        )  # fmt: skip
    axes.set(xscale="log", xlabel="exact learning coefficient λ", ylabel="estimate / truth, ± 2 standard errors")
    axes.set_title(f"{len(truth)} deep linear networks ({machine().replace('-', ' ')})", fontsize=10)
    axes.legend(frameon=False)
    figure.savefig(PICTURE, dpi=150)


if __name__ == "__main__":
    main()
