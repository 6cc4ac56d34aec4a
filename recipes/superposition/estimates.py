"""Chains on toy models: posteriors, learning coefficients, losses; and exact polygons to run them at."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import patterning_fast as pf
from patterning_fast.models.superposition import TiedAutoencoder
from patterning_fast.recipes.responses import comparison

from .polygons import one_active, polygons, regular_polygon
from .settings import Settings


def exact_polygon(settings: Settings, sides: int, positive: int = 0) -> Tensor:
    """The parameters of an exact critical point."""
    model = regular_polygon(settings.features, sides, settings.magnitudes, positive)
    return parameters_to_vector(model.parameters()).detach()


def exact_kinds(settings: Settings) -> dict[str, tuple[int, int]]:
    """Polygons of four corners and more, with features left out dead or positive, by name."""
    size = settings.features
    kinds = [(sides, more) for sides in range(size, 3, -1) for more in range(size - sides + 1)]
    return {f"exact {sides}" + "+" * more: (sides, more) for sides, more in kinds}


def posterior_at(settings: Settings, parameters: Tensor) -> pf.LocalPosterior:
    """The posterior around a model."""
    model = TiedAutoencoder(settings.features)
    vector_to_parameters(parameters, model.parameters())
    x = one_active(settings.features, settings.magnitudes).x
    return pf.LocalPosterior(
        model, pf.losses.squared_error, (x, x), n_beta=settings.n_beta, localization=settings.localization
    )


def sampling(settings: Settings) -> dict[str, Any]:
    """How chains are run."""
    return {
        "chains": settings.chains,
        "draws": settings.draws,
        "burn_in": settings.burn_in,
        "steps_between_draws": settings.steps_between_draws,
        "batch_size": settings.sampling_batch,
        "antithetic": True,
        "progress": False,
    }


def sampled(settings: Settings, parameters: Tensor) -> pf.Statistics:
    """Chains around a model."""
    return pf.sample(posterior_at(settings, parameters), pf.SGLD(settings.sampling_lr), **sampling(settings))


def responses(settings: Settings, parameters: Tensor) -> dict[str, Any]:
    """χ of the data by covariances against that by responses."""
    keywords = sampling(settings)
    return comparison(posterior_at(settings, parameters), pf.SGLD(settings.sampling_lr), None, **keywords)


def coefficient(settings: Settings, parameters: Tensor) -> dict[str, Any]:
    """λ̂ of a model with its error, R̂ of the chains, and what the model is."""
    statistics = sampled(settings, parameters)
    llc = statistics.llc().sel(component="full")
    return {
        "kind": str(polygons(parameters[None].numpy(), settings.features).names[0]),
        "loss": float(losses_of(settings, parameters[None]).mean()),
        "λ̂": float(llc["llc"]),
        "error": float(llc["llc_error"]),
        "R̂": float(statistics.diagnostics()["r_hat"].sel(component="full")),
    }


def losses_of(settings: Settings, parameters: Tensor) -> np.ndarray:
    """Losses `[models, samples]` of models `[models, 3 · features]`."""
    x = one_active(settings.features, settings.magnitudes).x
    weight, bias = parameters[:, : -settings.features].unflatten(1, (2, -1)), parameters[:, -settings.features :]
    said = torch.relu(torch.einsum("sf,mhf,mhg->msg", x, weight, weight) + bias[:, None])
    return (0.5 * (said - x).square().sum(-1)).numpy()
