"""Estimates as datasets: each with its standard error, its values by group, and where each datum comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from patterning_fast.estimators.comoments import mean_and_error

HALVES = 8
"""Ways of splitting the groups in two over which reliabilities are averaged."""

Variable = tuple[str, np.ndarray, dict[str, str]]
"""Dimension, values and attributes, as xarray takes them."""

TARGET_R = 0.9
"""Correlation with the truth that `chains_for_r_0.9` is about."""

SIGN = {
    "llc": "mu, llc > 0: the mean loss over the posterior is above that at w*",
    "observable": "as the user's functions have it",
    "contribution": "contribution > 0: up-weighting the datum raises llc",
    "chi": "chi > 0: up-weighting the token raises the posterior mean of the observable, phi = L(w) - L(w*) or other",
    "influence": "influence > 0: up-weighting the datum raises the posterior mean of the observable",
    "kernel": "kernel, correlation > 0: the two losses rise and fall together; up-weighting one lowers the other",
}
"""What a positive value of each estimate means."""


def labelled(
    name: str,
    components: Sequence[str],
    found: Sequence[tuple[Tensor, Tensor]],
    groups: int,
    dims: tuple[str, ...],
    coordinates: Mapping[str, tuple[str, np.ndarray]],
    long_name: str,
    units: str,
) -> xr.Dataset:
    """Estimates, errors and values by group, from each component's healthy groups and values `[healthy groups, ...]`.

    Beside them `degrees_of_freedom`. A component without healthy groups has estimates of NaN.
    """
    shape = found[0][1].shape[1:]
    mean, error = (np.full((len(found), *shape), np.nan) for _ in range(2))
    by_group = np.full((len(found), groups, *shape), np.nan, dtype=np.float32)
    for component, (alive, values) in enumerate(found):
        if len(alive):
            mean[component], error[component] = (part.cpu().numpy() for part in mean_and_error(values))
            by_group[component, alive.cpu().numpy()] = values.cpu().numpy()
    described = {
        name: (("component", *dims), mean, long_name),
        f"{name}_error": (("component", *dims), error, f"standard error of {long_name}"),
        f"{name}_group": (
            ("component", "group", *dims),
            by_group,
            f"jackknife values of {long_name}, by independent group of chains",
        ),
    }
    return xr.Dataset(
        {
            variable: (dimensions, data, {"long_name": text, "units": units})
            for variable, (dimensions, data, text) in described.items()
        }
        | degrees_of_freedom([len(alive) for alive, _ in found]),
        coords={"component": list(components), **coordinates},
    )


def degrees_of_freedom(healthy: Sequence[int]) -> dict[str, Variable]:
    """Those of each component's standard errors, from its number of healthy groups; 0 where there are none."""
    described = {"long_name": "degrees of freedom of standard errors: healthy groups - 1", "units": "1"}
    return {"degrees_of_freedom": ("component", np.maximum(np.array(healthy) - 1, 0), described)}


def split_half_reliability(groups: int, estimate: Callable[[Tensor], Tensor]) -> float:
    """The correlation over data that two such estimates would have, by Spearman and Brown; NaN for fewer than 4 groups.

    `estimate` gives the values `[data]` from some groups, given by their indices.
    """
    if groups < 4:
        return float("nan")
    generator, correlations = torch.Generator().manual_seed(0), []
    for _ in range(HALVES):
        order = torch.randperm(groups, generator=generator)
        halves = order[: groups // 2], order[groups // 2 : 2 * (groups // 2)]
        correlations.append(torch.corrcoef(torch.stack([estimate(half) for half in halves]))[0, 1])
    r = float(torch.stack(correlations).mean())
    return 2 * r / (1 + r)


def reliabilities(name: str, long_name: str, values: Sequence[float]) -> dict[str, Variable]:
    """The variable of a part's reliabilities, by component."""
    described = {"long_name": f"split-half reliability of {long_name}", "units": "1"}
    return {f"{name}_reliability": ("component", np.array(values), described)}


def chains_for_target(reliable: np.ndarray, healthy: np.ndarray) -> Variable:
    """Chains that give an estimate a correlation of TARGET_R with its true value, from those there are.

    Reliability grows with chains as Spearman and Brown say.
    """
    reliable = np.clip(reliable, 1e-9, 1.0)
    chains = healthy * TARGET_R**2 / (1 - TARGET_R**2) * (1 - reliable) / reliable
    described = {"long_name": "chains a component for which chi correlates 0.9 with its true value", "units": "chains"}
    return "component", chains, described


def root_mean_square(values: Tensor) -> float:
    """Over all values."""
    return float(values.double().square().mean().sqrt())
