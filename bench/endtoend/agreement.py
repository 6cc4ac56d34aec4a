"""What runs estimated, side by side: our estimator on every contestant's draws, each with its error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

import patterning_fast as pf
from bench.endtoend.contestant import Arrays, Run
from bench.endtoend.workload import Workload, our_model
from patterning_fast.estimators.comoments import Means, pseudo_values
from patterning_fast.estimators.statistics import particular

R = 0.9


@dataclass(frozen=True)
class Estimates:
    """By component name: jackknife values of χ = −Cov_C[φ, l − L] `[chains, tokens]`, and of the LLC `[chains]`."""

    chi: dict[str, np.ndarray]
    llc: dict[str, np.ndarray]

    @property
    def heads(self) -> list[str]:
        return [name for name in self.chi if name != "full"]


def load(runs: list[Run]) -> list[Arrays]:
    return [dict(np.load(run.arrays)) for run in runs]


def of_ours(runs: list[Run]) -> Estimates:
    """Of the chains of several runs together."""
    parts = load(runs)
    names = [str(name) for name in parts[0]["components"]]
    return Estimates(
        {name: np.concatenate([part["chi_group"][at] for part in parts]) for at, name in enumerate(names)},
        {name: np.concatenate([part["llc_group"][at] for part in parts]) for at, name in enumerate(names)}
        if "llc_group" in parts[0]
        else {},
    )


def of_devinterp(runs: list[Run], workload: Workload, burn_in: int = 0) -> Estimates:
    """The same statistics of the losses that devinterp has traced, but for the first draws of each chain."""
    parts = load(runs)
    names = [str(name) for name in parts[0]["components"]]
    center = loss_at_center(workload)
    chi, llc = {}, {}
    for at, name in enumerate(names):
        phi = torch.from_numpy(np.concatenate([part["loss"][at][:, burn_in:] for part in parts])).double() - center
        probe = torch.from_numpy(np.concatenate([part["probe"][at][:, burn_in:] for part in parts])).double()
        shifted = probe - probe.mean((0, 1))
        means = Means(
            loss=shifted.mean(1),
            observable=phi.mean(1)[:, None],
            cross=torch.einsum("cd,cdt->ct", phi, shifted)[:, None] / phi.shape[1],
            square=phi.square().mean(1)[:, None, None],
        )
        chi[name] = pseudo_values(lambda means: particular(means, 0), means).numpy()
        llc[name] = workload.n_beta * phi.mean(1).numpy()
    return Estimates(chi, llc)


def loss_at_center(workload: Workload) -> float:
    """L(w*) on the samples that a draw evaluates L on."""
    model = our_model(workload)
    model.load_state_dict(workload.weights())
    with torch.no_grad():
        return float(pf.losses.next_token(model, workload.data("loss")).double().mean())


def apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Difference of two means over chains, in its standard errors."""
    error = np.sqrt(sum(each.var(0, ddof=1) / len(each) for each in (one, other)))
    return np.asarray((one.mean(0) - other.mean(0)) / error)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Of means over chains, over tokens."""
    return float(np.corrcoef(one.mean(0), other.mean(0))[0, 1])


def chains_needed(estimates: Estimates, reference: Estimates, reliability: dict[str, float]) -> float:
    """Chains for which χ of a head correlates R with its true value; median over heads.

    An estimate of reliability ρ correlates √ρ with the truth, and √(ρ ρ') with an independent one of reliability ρ':
    here the reference's, known from its halves. Reliability grows with chains as Spearman and Brown say.
    """
    needed = []
    for head in estimates.heads:
        r = correlation(estimates.chi[head], reference.chi[head])
        reliable = min(max(r, 0.0) ** 2 / reliability[head], 1.0)
        odds = (1 - reliable) / reliable if reliable else math.inf
        needed.append(len(estimates.chi[head]) * odds * R**2 / (1 - R**2))
    return float(np.median(needed))
