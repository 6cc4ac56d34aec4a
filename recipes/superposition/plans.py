"""Weights that favour a polygon, by differences between solutions and by hand, and their controls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import patterning_fast as pf
from patterning_fast.recipes.verification import verification

from .estimates import exact_polygon, losses_of, posterior_at, sampled, sampling
from .polygons import one_active, polygons
from .replicas import as_wanted
from .settings import Settings, Weighting

UNITS = ("feature", "magnitude", "sample")
FAINT, BRIGHT, MASS_OF_FAINT = 1 / 16, 3 / 4, 0.85
"""The weights by hand: magnitudes below and above, and the share of the weight that the first have."""


def susceptibilities_at(settings: Settings, statistics: pf.Statistics) -> xr.Dataset:
    """χ by sample, with the feature and the magnitude that are active in it."""
    data = one_active(settings.features, settings.magnitudes)
    chi = statistics.susceptibilities()
    return chi.assign_coords(feature=("sample", data.feature), magnitude=("sample", data.magnitude))


def loss_direction(chi: xr.Dataset, favoured: np.ndarray, others: np.ndarray) -> xr.DataArray:
    """What each sample's loss is more at other solutions, from losses `[solutions, samples]`."""
    like = chi["chi"].sel(component="full", drop=True)
    own, other = (
        xr.Dataset({"loss": like.copy(data=each.mean(0)), "loss_error": xr.zeros_like(like)})
        for each in (favoured, others)
    )
    return pf.between_solutions(own, other, "loss")


def coefficient_direction(settings: Settings, own: xr.Dataset, rivals: Tensor) -> xr.DataArray:
    """What each sample contributes more to λ̂ at other solutions; errors are of how some of them differ."""
    some = torch.randperm(len(rivals), generator=torch.Generator().manual_seed(0))[: settings.rivals]
    theirs = xr.concat([sampled(settings, each).contributions()["contribution"] for each in rivals[some]], "solution")
    error = theirs.std("solution", ddof=1) / np.sqrt(theirs.sizes["solution"])
    other = xr.Dataset({"contribution": theirs.mean("solution"), "contribution_error": error})
    return pf.between_solutions(own, other)


def plan(chi: xr.Dataset, direction: xr.DataArray, unit: str, strength: float) -> pf.Plan:
    """Weights along a direction, the same for all samples of a unit."""
    return pf.invert(
        chi,
        direction,
        strength=strength,
        negative_weights="clip",
        unit=None if unit == "sample" else unit,
        unsettled=True,
    )


def plans_for(settings: Settings, sides: int, finals: Tensor) -> dict[str, Any]:
    """Weights `[samples]` that favour the polygon of the first `sides` features over what the base run came to.

    `plans` are (way, unit, strength, weights), by differences of losses and of contributions to λ̂; `refused` says
    which differences their errors do not tell from none, by way.
    """
    rivals = finals[torch.from_numpy(~as_wanted(polygons(finals.numpy(), settings.features), sides))]
    solution = exact_polygon(settings, sides)
    statistics = sampled(settings, solution)
    chi = susceptibilities_at(settings, statistics)
    made: dict[str, Callable[[], xr.DataArray]] = {
        "loss": lambda: loss_direction(chi, losses_of(settings, solution[None]), losses_of(settings, rivals)),
        "λ̂": lambda: coefficient_direction(settings, statistics.contributions(), rivals),
    }
    plans, refused = [], {}
    for way, direction in made.items():
        try:
            found = direction()
        except pf.InfeasibleTargetError as why:
            refused[way] = str(why)
            continue
        strengths = settings.strengths if way == "loss" else settings.strengths[:1]
        for unit in UNITS:
            for strength in strengths:
                weights = torch.from_numpy(plan(chi, found, unit, strength).weights.values).float()
                plans.append((way, unit, strength, weights))
    return {"plans": plans, "refused": refused}


def verified(settings: Settings, sides: int, finals: Tensor) -> dict[str, Any]:
    """Predicted against realised dμ at an exact polygon, of the weakest plan for it by loss and sample."""
    rivals = finals[torch.from_numpy(~as_wanted(polygons(finals.numpy(), settings.features), sides))]
    solution = exact_polygon(settings, sides)
    chi = susceptibilities_at(settings, sampled(settings, solution))
    direction = loss_direction(chi, losses_of(settings, solution[None]), losses_of(settings, rivals))
    weakest = plan(chi, direction, "sample", settings.strengths[0])
    where = posterior_at(settings, solution)
    return verification(weakest, where, pf.SGLD(settings.sampling_lr), seed=1, **sampling(settings))


def frequencies(settings: Settings) -> list[Weighting]:
    """The last feature more often, or less."""
    last = torch.from_numpy(one_active(settings.features, settings.magnitudes).feature) == settings.features - 1
    made = [torch.where(last, factor, 1.0) for factor in settings.frequencies]
    return [
        Weighting(0, "frequency", "feature", factor, each / each.mean())
        for factor, each in zip(settings.frequencies, made, strict=True)
    ]


def by_hand(settings: Settings) -> Weighting:
    """Faint and bright samples alone, for all features to be held."""
    magnitude = one_active(settings.features, settings.magnitudes).magnitude
    shares = ((magnitude < FAINT, MASS_OF_FAINT), (magnitude > BRIGHT, 1 - MASS_OF_FAINT))
    weights = sum(share * which / which.mean() for which, share in shares)
    return Weighting(settings.features, "by hand", "magnitude", float("nan"), torch.from_numpy(weights).float())


def shuffled(settings: Settings, best: Weighting) -> Weighting:
    """The control: the same weights for other features and magnitudes, so of equal norm in a random direction."""
    order = np.random.default_rng(0).permutation(settings.magnitudes)
    moved = best.weights.view(settings.features, settings.magnitudes).roll(1, 0)[:, torch.from_numpy(order)]
    return best._replace(way=f"shuffled, {best.way}", weights=moved.flatten())
