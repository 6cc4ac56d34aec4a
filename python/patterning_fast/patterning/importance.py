"""A plan's prediction against draws there already are, weighted to the posterior that it would make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import xarray as xr

from patterning_fast.arguments import Positive, checked
from patterning_fast.domains import Holds
from patterning_fast.engine.trace_checksums import load_traces
from patterning_fast.patterning.agreement import agreement, check_comparison, predicted_names
from patterning_fast.patterning.plan import Plan
from patterning_fast.posterior.observables import PHI
from patterning_fast.posterior.weights import weights_for

LEAST_SHARE = 0.1
"""Effective share of the draws below which a few of them decide."""


@checked
def importance_check(
    plan: Plan,
    traces: str | Path,
    *,
    fractions: Annotated[Sequence[Positive], Holds(1)] = (0.25, 0.5, 1.0),
    tolerance: Positive = 0.25,
) -> xr.Dataset:
    """What `verify` returns, without sampling: from the traces of a run, its draws weighted by importance.

    E_ρ[φ] = Σwφ/Σw over draws, w = exp(−nβ·Σ_j (ρ_j − 1)·l_j/n) (Kahn & Marshall 1953). Costs two passes over the
    traces, the first to check them, and tells how far the response is linear; where χ came from these draws its noise
    is in both sides, so only `verify` tells whether χ is right.

    Args:
        traces: store that `sample(..., traces=...)` has written, of the plan's data and no others (probes=None).
        plan, fractions, tolerance: as for `verify`.

    Beside what `verify` returns, `effective_sample_size` `[strength, component]` is (Σw)²/Σw² in draws, their
    correlation in time apart; a strength is "too noisy" where that is under a tenth of the draws of a component. Errors
    are a jackknife over groups of chains. Chains that diverged are left out.

    Raises ValueError for a plan of one of the user's observables, which traces do not hold, and for traces of other
    data, with weights, with φ on some samples only or at another n_beta; what `load_traces` raises.
    """
    if plan.attrs["observable"] != PHI:
        raise ValueError(f"traces hold phi, and the plan is of {plan.attrs['observable']!r}: use verify")
    with load_traces(traces) as tree:
        fractions = check_comparison(plan, float(tree.attrs["n_beta"]), fractions)
        losses, change = tracked_losses(plan, tree)
        traced_phi = tree["/chains"].to_dataset()["phi"]
        names = predicted_names(plan, traced_phi["component"].values.tolist())
        count = int(tree.attrs["groups"])
        by_group = np.full((len(fractions), len(names), count), np.nan)
        effective = np.zeros((len(fractions), len(names)))
        draws = np.zeros(len(names))
        for at, name in enumerate(names):
            phi = traced_phi.sel(component=name).values
            healthy = np.isfinite(phi).all(1)
            tilt = weighted_sums(losses.sel(component=name), phi, change, healthy)
            groups = (np.arange(len(phi)) * count // len(phi))[healthy]
            draws[at] = phi[healthy].size
            if len(np.unique(groups)) < 2:
                continue
            for row, fraction in enumerate(fractions):
                logarithm = -plan.attrs["n_beta"] * fraction * tilt
                weights = np.exp(logarithm - logarithm.max())
                effective[row, at] = weights.sum() ** 2 / (weights**2).sum()
                by_group[row, at, np.unique(groups)] = shift_by_group(phi[healthy], weights, groups)
        attrs = {str(name): value for name, value in tree.attrs.items() if name != "run"}
    known = ["too noisy" if (row < LEAST_SHARE * draws).any() else None for row in effective]
    result = agreement(plan, names, fractions, by_group, known, tolerance, attrs)
    described = {"long_name": "effective number of draws", "units": "draws"}
    return result.assign(effective_sample_size=(("strength", "component"), effective, described))


def tracked_losses(plan: Plan, tree: xr.DataTree) -> tuple[xr.DataArray, np.ndarray]:
    """The losses `[component, chain, draw, data]` of the plan's data, and (ρ − 1)/n `[data]` in their order."""
    probes = list(tree["/probes"].children)
    if len(probes) != 1:
        raise ValueError(f"the traces are of the probes {probes}; sample the posterior's data alone (probes=None)")
    losses = tree[f"/probes/{probes[0]}"].to_dataset()["losses"]
    data = losses.shape[-1]
    levels = [name for name in ("sample", "position") if name in losses.coords]
    places = tuple(losses[name].values for name in levels)
    samples, *shape = (int(each.max()) + 1 for each in places)
    present = torch.zeros(samples, *shape, dtype=torch.bool)
    present[places] = True
    for wrong, what in (
        (int(tree.attrs["items"]) != data, f"{data} losses where the posterior's data have {tree.attrs['items']}"),
        (int(tree.attrs["weighted"]) != 0, "a posterior that had weights already"),
        (int(tree.attrs["loss_samples"]) != samples, f"φ on {tree.attrs['loss_samples']} of {samples} samples only"),
    ):
        if wrong:
            raise ValueError(f"the traces are of {what}: sample the posterior that χ is of, all of its data")
    weights = weights_for(plan.weights, samples, tuple(shape), present)[places]
    return losses, (weights.double().numpy() - 1) / data


def weighted_sums(losses: xr.DataArray, phi: np.ndarray, change: np.ndarray, healthy: np.ndarray) -> np.ndarray:
    """Σ_j (ρ_j − 1)·l_j/n of the draws of healthy chains, as φ is shaped; a chain is read at a time.

    Raises ValueError where φ does not go with the mean of the losses: then these are not the posterior's data.
    """
    tilt, rest = [], []
    for chain in np.flatnonzero(healthy):
        values = losses[chain].values.astype(np.float64)
        tilt.append(values @ change)
        rest.append(values.mean(1) - phi[chain])  # L(w*), for every draw, to float32's rounding of losses
    if rest and np.std(rest) > 1e-3 * np.std(phi[healthy]) + 1e-6 * float(np.abs(rest).max()):
        raise ValueError("the traced losses are not of the posterior's data, whose mean φ follows: trace probes=None")
    return np.array(tilt)


def shift_by_group(phi: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Jackknife pseudo-values `[groups]` of Σwφ/Σw − φ̄ from chains `[chains, draws]` that belong to groups."""
    each = np.stack([(weights * phi).sum(1), weights.sum(1), phi.sum(1), np.full(len(phi), phi.shape[1])])
    sums = np.stack([each[:, groups == group].sum(1) for group in np.unique(groups)], 1)

    def shift(total: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # a group that holds all the weight leaves none to the others
            return total[0] / total[1] - total[2] / total[3]

    number, total = sums.shape[1], sums.sum(1, keepdims=True)
    return number * shift(total) - (number - 1) * shift(total - sums)
