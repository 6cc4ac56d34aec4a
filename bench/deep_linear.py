"""Learning coefficients of deep linear networks, estimated beside the truth: a table, and docs/images/deep_linear.png.

Each architecture is sampled at its most singular parameter of a rank, where λ is known exactly, by SGLD and by
RMSProp-SGLD, all with the same settings. The error of an estimate is that of independent chains.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm

import patterning_fast as pf
from bench.results import machine, record
from patterning_fast.models.deep_linear import deep_linear_network, learning_coefficient
from patterning_fast.samplers.langevin import Sampler

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "deep_linear.png"
SAMPLES, BATCH, N_BETA, LOCALIZATION = 4000, 256, 3000.0, 1.0
CHAINS, DRAWS, STEPS_BETWEEN_DRAWS = 16, 200, 50
BURN_IN = 200
"""Draws thrown away: as many steps as are kept."""

SAMPLERS: dict[str, Sampler] = {
    "SGLD": pf.SGLD(0.1 / N_BETA),
    "RMSProp-SGLD": pf.RMSPropSGLD(0.02 / N_BETA, stability=0.1),
}
MEDIAN_BAR, COVERED_BAR = 0.05, (0.85, 0.99)


@dataclass(frozen=True)
class Architecture:
    widths: tuple[int, ...]
    rank: int

    @property
    def parameters(self) -> int:
        return sum(below * above for below, above in zip(self.widths, self.widths[1:], strict=False))


def architectures() -> list[Architecture]:
    """Twenty of 2 to 6 layers, every third of full rank, and four larger ones, up to 100,000 parameters."""
    chosen, made = random.Random(0), []
    for index in range(20):
        widest = (5, 10, 20, 40)[index % 4]
        widths = tuple(chosen.randint(2, widest) for _ in range(3 + index % 5))
        made.append(Architecture(widths, min(widths) if index % 3 == 0 else chosen.randint(0, min(widths) - 1)))
    return [*made, Architecture((80, 60, 80), 20), Architecture((100,) * 4, 30), Architecture((128, 64, 64, 128), 64),
            Architecture((180, 180, 180, 180), 90)]  # fmt: skip


def estimate(architecture: Architecture, sampler: Sampler, seed: int) -> tuple[float, float, float]:
    """λ̂, its standard error, and the seconds it took."""
    network = deep_linear_network(architecture.widths, architecture.rank, seed)
    x = torch.randn(SAMPLES, architecture.widths[0], generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        y = network(x)
    posterior = pf.LocalPosterior(
        network, pf.losses.squared_error, (x, y), n_beta=N_BETA, localization=LOCALIZATION
    )
    run = pf.sample(
        posterior, sampler, probes={"few": (x[:1], y[:1])}, chains=CHAINS, draws=DRAWS, burn_in=BURN_IN,
        steps_between_draws=STEPS_BETWEEN_DRAWS, batch_size=BATCH, loss_samples=256, engine="native", seed=seed,
        progress=False,
    )  # fmt: skip
    llc = run.llc().sel(component="full")
    return float(llc["llc"]), float(llc["llc_error"]), float(run.attrs["seconds"])


def main() -> None:
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in SAMPLERS}
    chosen = architectures()
    for seed, architecture in enumerate(tqdm(chosen, unit="network")):
        for name, sampler in SAMPLERS.items():
            found[name].append(estimate(architecture, sampler, seed))
    truth = np.array([learning_coefficient(each.widths, each.rank).value for each in chosen])
    print(f"{'widths':<24} {'rank':>4} {'params':>7} {'λ':>8}   " + "   ".join(f"{name:>22}" for name in SAMPLERS))
    for at, each in enumerate(chosen):
        shown = "   ".join(f"{values[at][0]:>9.2f} ± {values[at][1]:<6.2f} {values[at][0] / truth[at] - 1:>+5.1%}" for values in found.values())
        print(f"{'-'.join(map(str, each.widths)):<24} {each.rank:>4} {each.parameters:>7} {truth[at]:>8.1f}   {shown}")
    rows: list[dict[str, object]] = []
    for name, values in found.items():
        value, error, seconds = np.array(values).T
        off = np.abs(value / truth - 1)
        covered = float((np.abs(value - truth) < 2 * error).mean())
        median = float(np.median(off))
        rows += [
            {"figure": f"{name}: median relative error of the learning coefficient", "value": median, "bar": MEDIAN_BAR,
             "holds": median <= MEDIAN_BAR, "peers": {"networks": len(chosen), "largest": float(off.max())}},
            {"figure": f"{name}: share of truths within 2 standard errors", "value": covered, "bar": COVERED_BAR[0],
             "holds": COVERED_BAR[0] <= covered <= COVERED_BAR[1], "peers": {"seconds": float(seconds.sum())}},
        ]  # fmt: skip
    for row in rows:
        print(f"{row['figure']:<64} {row['value']:.3g}   {'holds' if row['holds'] else 'MISSED'}   {row['peers']}")
    record("deep-linear", rows)
    draw(truth, found)


def draw(truth: np.ndarray, found: dict[str, list[tuple[float, float, float]]]) -> None:
    """The estimates over the truth, each with two standard errors."""
    figure, axes = plt.subplots(figsize=(6, 4.2), layout="constrained")
    for (name, values), marker, colour in zip(found.items(), "os", ("#0072B2", "#D55E00"), strict=True):
        value, error, _ = np.array(values).T
        axes.errorbar(truth, value / truth, 2 * error / truth, fmt=marker, color=colour, markersize=5, capsize=2, label=name)
    axes.axhline(1, color="0.3", linewidth=1)
    axes.axhspan(0.95, 1.05, color="0.9", zorder=0)
    axes.set(xscale="log", xlabel="exact learning coefficient λ", ylabel="estimate / truth, ± 2 standard errors")
    axes.set_title(f"{len(truth)} deep linear networks ({machine().replace('-', ' ')})", fontsize=10)
    axes.legend(frameon=False)
    figure.savefig(PICTURE, dpi=150)


if __name__ == "__main__":
    main()
