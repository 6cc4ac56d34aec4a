"""Is a trajectory followed more closely with control than without? The superposition autoencoder, over seeds.

A coordinate is to fall to 0.8 of where it is: the squared length of one feature's column, in its posterior mean, or
`--mu` of that column to 0.6. First the hold is measured on seeds of their
own, by a plan and its reverse; then, on others, training is left alone, controlled with that hold, controlled with
hold 1, and controlled by χ whose data are dealt out at random. `python -m bench.adaptive [--mu]` takes some minutes.
"""

from __future__ import annotations

import copy
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import nn

import patterning_fast as pf
from patterning_fast.models.superposition import TiedAutoencoder

FEATURES, SAMPLES, BEFORE, STEPS, INTERVAL, STRENGTH = 6, 240, 200, 200, 25, 0.3
STEERED, COORDINATE, SHARE = ("f0", "mu", 0.6) if "--mu" in sys.argv else ("f0", "length", 0.8)
PILOTS, SEEDS = range(100, 108), range(8)

Data = tuple[torch.Tensor, torch.Tensor]
train = partial(pf.train, loss=pf.losses.squared_error, batch_size=32, lr=1e-2, progress=False)


def trained(seed: int) -> tuple[TiedAutoencoder, Data]:
    """A model after its first steps, and its data: one feature a sample, of any size up to 1."""
    torch.manual_seed(seed)
    x = torch.zeros(SAMPLES, FEATURES)
    x[torch.arange(SAMPLES), torch.randint(FEATURES, (SAMPLES,))] = torch.rand(SAMPLES)
    model = TiedAutoencoder(FEATURES)
    train(model, (x, x), steps=BEFORE, seed=seed)
    return model, (x, x)


def sampling(model: nn.Module, seed: int = 0) -> pf.PosteriorSampling:
    """64 chains of the steered feature's column."""
    column = torch.arange(2 * FEATURES).view(2, FEATURES) % FEATURES == 0
    size = {"chains": 64, "draws": 100, "burn_in": 20} if COORDINATE == "mu" else {
        "chains": 64, "draws": 60, "burn_in": 10, "tile": 64,
        "observables": {COORDINATE: lambda model: model.weight[:, 0].square().sum()},
    }  # fmt: skip
    arguments = size | {
        "components": {STEERED: pf.component(model, STEERED, {"weight": column})},
        "batch_size": 32, "steps_between_draws": 2, "seed": seed,
    }  # fmt: skip
    return pf.PosteriorSampling(pf.SGLD(2e-3), n_beta=100.0, localization=50.0, arguments=arguments)


def estimate(model: nn.Module, data: Data, seed: int = 0) -> tuple[xr.Dataset, xr.Dataset]:
    """The coordinate and its χ."""
    settings = sampling(model, seed)
    posterior = settings.posterior(model, data, pf.losses.squared_error)
    found = pf.sample(posterior, settings.sampler, progress=False, **settings.arguments)
    if COORDINATE == "mu":
        return found.llc(), found.susceptibilities()
    return found.observed_means(), found.susceptibilities(COORDINATE)


def measured(model: nn.Module, data: Data) -> float:
    return float(estimate(model, data)[0][COORDINATE].sel(component=STEERED))


def measured_hold(seed: int) -> float:
    """Half the difference that a plan and its reverse make over an interval, over what was predicted."""
    model, data = trained(seed)
    _, chi = estimate(model, data)
    ends, predicted = [], []
    for sign in (1.0, -1.0):
        plan = pf.invert(chi.sel(component=[STEERED]), {STEERED: sign}, strength=STRENGTH)
        other = copy.deepcopy(model)
        train(other, data, steps=INTERVAL, seed=seed, weights=plan.weights)
        ends.append(measured(other, data))
        predicted.append(float(plan.predicted["dmu"][0]))
    return (ends[0] - ends[1]) / (predicted[0] - predicted[1])


def off_target(seed: int, hold: float | None, at_random: bool = False) -> tuple[float, float]:
    """Root mean square off target at the ends of intervals, and the last, both over where it started.

    Without a hold, training is left alone: its strength is next to nothing.
    """
    model, data = trained(seed)
    start = measured(model, data)
    order = np.random.default_rng(seed).permutation(SAMPLES)
    calls = iter(range(1, STEPS))

    def estimated(model: nn.Module) -> tuple[xr.Dataset, xr.Dataset]:
        found, chi = estimate(model, data, seed=next(calls))
        if at_random:
            for name in ("chi", "chi_error", "chi_group"):
                chi[name] = chi[name].copy(data=chi[name].values[..., order])
        return found, chi

    run = pf.train_towards(
        model, data, pf.losses.squared_error, {0: {STEERED: start}, STEPS: {STEERED: SHARE * start}},
        replan=INTERVAL, estimate=estimated, strength=STRENGTH if hold else 1e-12, hold=hold or 1.0, gain=0.5,
        coordinate=COORDINATE, steps=STEPS, batch_size=32, lr=1e-2, seed=seed, progress=False,
    )  # fmt: skip
    off = (run.decisions["measured"] - run.decisions["target"]).values[1:, 0] / start
    return float(np.sqrt(np.mean(off**2))), float(off[-1])


def main() -> None:
    torch.set_num_threads(1)
    holds = np.array([measured_hold(seed) for seed in PILOTS])
    hold = float(np.median(holds))
    print(f"hold: median {hold:.2f}, of seeds {np.round(holds, 2).tolist()}", flush=True)
    ways = {
        "left alone": partial(off_target, hold=None),
        "measured hold": partial(off_target, hold=hold),
        "hold 1": partial(off_target, hold=1.0),
        "data at random": partial(off_target, hold=hold, at_random=True),
    }
    found = {}
    for name, way in ways.items():
        off = np.array([way(seed) for seed in SEEDS])
        found[name] = off.tolist()
        error = off[:, 0].std(ddof=1) / len(off) ** 0.5
        print(f"{name:15} rms off target {off[:, 0].mean():.3f} ± {error:.3f}  at the end {off[:, 1].mean():+.3f}"
              f"  by seed {np.round(off[:, 0], 2).tolist()}", flush=True)  # fmt: skip
    path = Path(__file__).parent / "results" / "adaptive.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results[COORDINATE] = {"holds": holds.tolist(), "off target (rms, at the end), over the start": found}
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
