"""Plans made again on the way: each replica gets more of what it leaves out.

A polygon that leaves out a feature is a minimum of the loss. It stops being one where that feature weighs some 2.2
times what the others do. One-off weights cannot use this, as replicas leave out different features.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

import patterning_fast as pf

from .estimates import losses_of, posterior_at, sampling
from .polygons import left_out, one_active, polygons
from .replicas import as_wanted, stepped
from .settings import Settings

UNWANTED = 0.1
"""Factor of the weights of features that the wanted polygon leaves out."""

ADAPTIVE, DEALT, HIGHEST_LOSS, ALONE = (
    "adaptive", "the factor dealt to another feature", "the factor for the feature of highest loss",
    "adaptive, without the one-off plan",
)  # fmt: skip
"""The way, and what it must beat."""


def raised(settings: Settings, parameters: Tensor, feature: int) -> float:
    """How many times what others weigh a feature must weigh, by χ of the loss on it around a model."""
    own = one_active(settings.features, settings.magnitudes).feature == feature
    statistics = pf.sample(
        posterior_at(settings, parameters), pf.SGLD(settings.sampling_lr),
        loss_samples=torch.from_numpy(np.flatnonzero(own)), **sampling(settings),
    )  # fmt: skip
    chi = statistics.susceptibilities().assign_coords(own=("sample", own.astype(int)))
    plan = pf.invert(
        chi, {"full": -1.0}, strength=settings.raising, unit="own", negative_weights="clip", unsettled=True
    )
    return float(plan.weights[own][0] / plan.weights[~own][0])


def adapted(settings: Settings, seed: int, sides: int, one_off: Tensor, way: str) -> dict[str, Any]:
    """What replicas become that are trained in stages, each on a one-off plan and more of what it leaves out.

    Before every stage χ is estimated around a replica of the commonest polygon that leaves out a wanted feature. The
    last steps are on weights of 1, so that what replicas end as is a minimum of the true loss.
    """
    feature = torch.from_numpy(one_active(settings.features, settings.magnitudes).feature)
    plan = torch.where(feature < sides, one_off, UNWANTED * one_off)
    plan = torch.ones_like(plan) if way == ALONE else plan / plan.mean()
    generator = np.random.default_rng(seed)
    parameters = stepped(settings, None, seed, settings.first_steps, plan)
    lacking, factors = [], []
    for at in range(settings.first_steps, settings.steps - settings.last_steps, settings.stage_steps):
        missing = left_out(parameters.numpy(), settings.features, sides)
        factor = factor_for(settings, parameters, missing)
        lacking.append(int((missing >= 0).sum()))
        factors.append(factor)
        if way == DEALT:
            others = (missing + generator.integers(1, sides, len(missing))) % sides
            missing = np.where(missing < 0, missing, others)
        elif way == HIGHEST_LOSS:
            losses = losses_of(settings, parameters).reshape(len(parameters), settings.features, -1)
            missing = losses.mean(2)[:, :sides].argmax(1)
        for each in np.unique(missing).tolist():
            own = torch.from_numpy(missing == each)
            weights = plan * torch.where(feature == each, factor, 1.0)
            parameters[own] = stepped(
                settings, parameters[own], 1000 * seed + at + each, settings.stage_steps, weights / weights.mean()
            )
    parameters = stepped(settings, parameters, 1000 * seed + settings.steps, settings.last_steps, None)
    found = polygons(parameters.numpy(), settings.features)
    return {
        "share": float(as_wanted(found, sides).mean()),
        "kinds": dict(Counter(found.names.tolist()).most_common(4)),
        "lacking": lacking,
        "factors": factors,
    }


def factor_for(settings: Settings, parameters: Tensor, missing: np.ndarray) -> float:
    """The factor for what is left out, by χ around one replica of the commonest polygon that leaves out a feature."""
    names = polygons(parameters.numpy(), settings.features).names
    lacking = np.flatnonzero((missing >= 0) & (names != "other"))
    if not len(lacking):
        return 1.0
    commonest = Counter(names[lacking].tolist()).most_common(1)[0][0]
    model = lacking[names[lacking] == commonest][0]
    return raised(settings, parameters[model], int(missing[model]))
