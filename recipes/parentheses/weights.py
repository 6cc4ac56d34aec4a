"""Weights of strings for either solution, in every way, and their controls."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import patterning_fast as pf
from patterning_fast.posterior.components import FULL
from patterning_fast.recipes.verification import verification

from .estimates import posterior_at, sampling
from .runs import drawn
from .settings import (
    BALANCE,
    BY_HAND,
    COUNTING,
    FAILING,
    HELD,
    LLC,
    NESTED,
    OOD,
    RESPONSE,
    SHUFFLED,
    Part,
    Settings,
    named,
)
from .strings import kinds_of

BY_HAND_WEIGHT = 0.2
"""Of unbalanced strings that dip below 0, by hand; all others of them share what these lose."""


def all_weights(
    settings: Settings,
    estimates: Mapping[str, xr.Dataset],
    answers: Mapping[str, xr.Dataset],
    response: xr.Dataset,
    kinds: np.ndarray,
    labels: np.ndarray,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Weights of the strings by name, controls' too; and why a way has none, where noise forbids it."""
    weights: dict[str, np.ndarray] = {}
    refused: dict[str, str] = {}
    ways = {LLC: partial(llc_plans, estimates)} | {name: partial(early_plans, each) for name, each in answers.items()}
    ways[RESPONSE] = partial(response_plans, response.sel(component=[OOD]))
    ways[HELD] = partial(response_plans, response)
    controlled = (LLC, next(iter(answers)), HELD)
    for way, plans in ways.items():
        try:
            made = {strength: plans(strength) for strength in settings.strengths}
        except pf.InfeasibleTargetError as why:
            refused[way] = str(why)
            continue
        for strength, both in made.items():
            for favoured, plan in both.items():
                weights[named(way, favoured, strength)] = spread(settings, plan, kinds)
        for favoured in (NESTED, COUNTING) if way in controlled else ():
            name = named(way, favoured, settings.strengths[-1])
            weights |= controls(name, weights[name], labels)
    return weights | {named(BY_HAND, COUNTING): by_hand(kinds)}, refused


def llc_plans(estimates: Mapping[str, xr.Dataset], strength: float) -> dict[str, pf.Plan]:
    """Weights by kind: more of what costs either solution less than the other."""
    return {
        favoured: pf.invert(
            estimates[favoured],
            pf.between_solutions(estimates[favoured], estimates[other]),
            strength=strength,
            negative_weights="clip",
        )
        for favoured, other in ((NESTED, COUNTING), (COUNTING, NESTED))
    }


def early_plans(answers: xr.Dataset, strength: float) -> dict[str, pf.Plan]:
    """Weights by kind of unbalanced strings: more of what raises nestedness early in training, or lowers it."""
    unbalanced = answers["kind"] != "balanced"
    chi = answers["chi"].sel(component=FULL, drop=True)
    mean = float((chi * answers["count"]).where(unbalanced).sum() / answers["count"].where(unbalanced).sum())
    direction = (chi - mean).where(unbalanced, 0.0)
    return {
        name: pf.invert(answers, sign * direction, strength=strength, negative_weights="clip")
        for name, sign in ((NESTED, 1.0), (COUNTING, -1.0))
    }


def response_plans(response: xr.Dataset, strength: float) -> dict[str, pf.Plan]:
    """Weights by kind: more of what raises accuracy out of distribution at the end of training, or lowers it, and
    leaves any other outcome where it is."""
    return {
        name: pf.invert(response, {OOD: sign}, strength=strength, negative_weights="clip")
        for name, sign in ((NESTED, 1.0), (COUNTING, -1.0))
    }


def weights_at_random(settings: Settings, kinds: np.ndarray) -> np.ndarray:
    """Weights of kinds `[runs, kinds]`, in pairs that are each other's inverse, so that only odd responses are left."""
    generator = np.random.default_rng(0)
    logs = settings.response_spread * generator.standard_normal((settings.response_runs // 2, len(np.unique(kinds))))
    return np.exp(np.concatenate((logs, -logs)))


def on_strings(weights: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Weights of strings `[runs, strings]`, of mean 1, from those of kinds."""
    rho = weights[:, np.unique(kinds, return_inverse=True)[1]]
    return np.asarray(rho / rho.mean(1, keepdims=True))


def response_of(settings: Settings, weights: np.ndarray, runs: list[Part], kinds: np.ndarray) -> xr.Dataset:
    """How accuracy out of distribution, and the error on the task, at the end of training answer to kinds of string."""
    ood, test = (torch.cat([each[name][:, -1] for each in runs]).double().numpy() for name in (OOD, "test accuracy"))
    names, counts = np.unique(kinds, return_counts=True)
    outcomes = {OOD: ood, FAILING: np.log(1.0 - test + 0.5 / settings.test_strings)}
    found = pf.training_response(outcomes, weights, names.tolist(), counts, name="kind")
    return found.assign(
        weights=(("run", "kind"), weights), outcomes=(("component", "run"), np.stack(list(outcomes.values())))
    )


def spread(settings: Settings, plan: pf.Plan, kinds: np.ndarray) -> np.ndarray:
    """The plan's weights of each string, mixed with weights of 1 so that none is below the least."""
    weights = pf.spread_weights(plan.weights, kinds).values
    return np.asarray(settings.least_weight + (1.0 - settings.least_weight) * weights)


def controls(name: str, weights: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The same weights dealt out at random, and their mean by label: what the balance of labels alone would do."""
    balance = np.array([weights[labels == label].mean() for label in (0, 1)])
    return {
        f"{name}, {SHUFFLED}": np.random.default_rng(0).permutation(weights),
        f"{name}, {BALANCE}": balance[labels],
    }


def by_hand(kinds: np.ndarray) -> np.ndarray:
    """Weights that no estimate has a part in: few of the strings that show more than the end that they are wrong."""
    dips = ~np.char.startswith(kinds, "never") & (kinds != "balanced")
    never = np.char.startswith(kinds, "never")
    if not never.any():
        return np.ones(len(kinds))
    more = 1.0 + (1.0 - BY_HAND_WEIGHT) * dips.sum() / never.sum()
    return np.where(dips, BY_HAND_WEIGHT, np.where(never, more, 1.0))


def verified_plan(
    settings: Settings, parameters: Tensor, estimates: Mapping[str, xr.Dataset], favoured: str
) -> dict[str, Any]:
    """Predicted against realised dμ of one solution, on the weights for it by learning coefficients."""
    kinds = kinds_of(drawn(settings))
    posterior = posterior_at(settings, parameters, settings.n_beta, settings.localization)
    sampler = pf.SGLD(settings.sampler_lr)
    chi = pf.sample(posterior, sampler, **sampling(settings)).susceptibilities().assign_coords(kind=("sample", kinds))
    plan = llc_plans(estimates, settings.strengths[-1])[favoured]
    direction = chi["chi"][0].copy(data=pf.spread_weights(plan.weights, kinds).values - 1.0)
    strength = float(direction.std())
    same = pf.invert(chi, direction, strength=strength, negative_weights="clip", unit="kind", unsettled=True)
    return verification(same, posterior, sampler, fractions=(0.1, 0.3, 1.0), seed=1, **sampling(settings))
