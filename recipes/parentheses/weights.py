"""Weights of strings for either solution, in every way, and their controls."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import xarray as xr

import patterning_fast as pf
from patterning_fast.recipes.controls import dealt_out

from .settings import (
    AT_LAST_STRENGTH,
    BALANCE,
    BY_HAND,
    CONTROLLED,
    COUNTING,
    NESTED,
    OOD,
    SHUFFLED,
    Part,
    Settings,
    named,
)

BY_HAND_WEIGHT = 0.2
"""Of unbalanced strings that dip below 0, by hand; all others of them share what these lose."""


def all_weights(
    settings: Settings, scores: Mapping[str, xr.Dataset], kinds: np.ndarray, labels: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Weights of the strings by name, controls' too; and why a way has none, where noise forbids it."""
    weights: dict[str, np.ndarray] = {}
    refused: dict[str, str] = {}
    for way, score in scores.items():
        for strength in settings.strengths[-1:] if way in AT_LAST_STRENGTH else settings.strengths:
            try:
                made = plans(score, strength)
            except pf.InfeasibleTargetError as why:
                refused[way] = str(why)
                break
            for favoured, plan in made.items():
                name = named(way, favoured, strength)
                weights[name] = spread(settings, plan, kinds)
                if way == CONTROLLED and strength == settings.strengths[-1]:
                    weights |= controls(name, weights[name], labels)
    return weights | {named(BY_HAND, COUNTING): by_hand(kinds)}, refused


def plans(score: xr.Dataset, strength: float) -> dict[str, pf.Plan]:
    """Weights by kind of unbalanced strings: more of what scores high, for Nested, or low; balanced ones stay."""
    unbalanced = score["kind"] != "balanced"
    chi = score["chi"].sel(component=OOD, drop=True)
    direction = (chi - mean_of_unbalanced(score)).where(unbalanced, 0.0)
    return {
        name: pf.invert(score, sign * direction, strength=strength, negative_weights="clip")
        for name, sign in ((NESTED, 1.0), (COUNTING, -1.0))
    }


def mean_of_unbalanced(score: xr.Dataset) -> float:
    """The mean score of unbalanced strings."""
    counts = score["count"].where(score["kind"] != "balanced", 0)
    return float((score["chi"].sel(component=OOD) * counts).sum() / counts.sum())


def weights_at_random(settings: Settings, kinds: np.ndarray) -> np.ndarray:
    """Weights of kinds `[runs, kinds]`, in pairs that are each other's inverse, so that only odd responses are left."""
    generator = np.random.default_rng(0)
    logs = settings.fit_spread * generator.standard_normal((settings.fit_runs // 2, len(np.unique(kinds))))
    return np.exp(np.concatenate((logs, -logs)))


def on_strings(weights: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Weights of strings `[runs, strings]`, of mean 1, from those of kinds."""
    rho = weights[:, np.unique(kinds, return_inverse=True)[1]]
    return np.asarray(rho / rho.mean(1, keepdims=True))


def fit_of(weights: np.ndarray, runs: list[Part], kinds: np.ndarray) -> xr.Dataset:
    """How accuracy out of distribution at the end of training answers to kinds of string, fitted to whole runs."""
    ood = torch.cat([each[OOD][:, -1] for each in runs]).double().numpy()
    names, counts = np.unique(kinds, return_counts=True)
    found = pf.training_response({OOD: ood}, weights, names.tolist(), counts, name="kind")
    return found.assign(weights=(("run", "kind"), weights), outcome=("run", ood))


def spread(settings: Settings, plan: pf.Plan, kinds: np.ndarray) -> np.ndarray:
    """The plan's weights of each string, mixed with weights of 1 so that none is below the least."""
    weights = pf.spread_weights(plan.weights, kinds).values
    return np.asarray(settings.least_weight + (1.0 - settings.least_weight) * weights)


def controls(name: str, weights: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The same weights dealt out at random, and their mean by label: what the balance of labels alone would do."""
    balance = np.array([weights[labels == label].mean() for label in (0, 1)])
    return {
        f"{name}, {SHUFFLED}": dealt_out(torch.from_numpy(weights), 0).numpy(),
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
