"""How kinds of string score: by the adjoint of training, by χ, by losses and gradients, by λ̂; and by none of these."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

import patterning_fast as pf
from patterning_fast.models.sequence_classifier import SequenceClassifier
from patterning_fast.posterior.components import FULL
from patterning_fast.recipes.controls import non_negative
from patterning_fast.recipes.gradients import raised_along
from patterning_fast.recipes.responses import comparison

from .runs import drawn, new_model, task_of
from .settings import CHI, GRADIENT, LOW_LOSS, NO_LOSS, OOD, Part, Settings
from .strings import kinds_of

COMPARED = 64
"""Strings on which covariances are held against responses."""

SMOOTH_RUNS, SMOOTH_STRENGTH = 24, 0.5
"""Runs and strength at which halves of a change are compared."""

GRAM = 3
"""Letters in a row."""


def margin(settings: Settings, model: nn.Module) -> Tensor:
    """How far a model holds strings of equal counts that do not nest for unbalanced: the mean of its logits' margin."""
    logits = model(task_of(settings).equal_counts)
    return (logits[:, 0] - logits[:, 1]).mean()


def adjoint(settings: Settings, seeds: range) -> dict[str, np.ndarray]:
    """The response of the margin after the early step to strings `[runs, strings]`, by going back over training.

    With it `growth`, how chaotic runs are, and `agreement`, the share of some runs in which both halves of a change of
    weights along it move the margin the same way (see `pf.metasmoothness`).
    """
    task, outcomes = task_of(settings), {OOD: lambda model: margin(settings, model)}
    training: dict[str, Any] = {
        "steps": settings.early_step, "batch_size": settings.batch, "lr": settings.lr,
        "weight_decay": settings.weight_decay,
    }  # fmt: skip
    found = pf.training_adjoint(
        [new_model(settings, seed) for seed in seeds], task.training, pf.losses.cross_entropy, outcomes, seeds=seeds,
        clip=True, **training,
    )  # fmt: skip
    direction = torch.from_numpy(found["chi"].values[0]).double()
    rho = non_negative(direction - direction.mean(), SMOOTH_STRENGTH).float()
    some = seeds[:SMOOTH_RUNS]
    smooth = pf.metasmoothness(
        [new_model(settings, seed) for seed in some], task.training, pf.losses.cross_entropy, outcomes, rho, seeds=some,
        **training,
    )  # fmt: skip
    return {
        "chi": found["chi_group"].values[0],
        "growth": found["growth"].values[0],
        "agreement": smooth["agreement"].values,
    }


def model_at(settings: Settings, parameters: Tensor) -> SequenceClassifier:
    model = new_model(settings, 0)
    vector_to_parameters(parameters.to(settings.device), model.parameters())
    return model


def posterior_at(settings: Settings, parameters: Tensor, n_beta: float, localization: float) -> pf.LocalPosterior:
    """The posterior around a model, on the training strings."""
    return pf.LocalPosterior(
        model_at(settings, parameters), pf.losses.cross_entropy, task_of(settings).training, n_beta=n_beta,
        localization=localization,
    )  # fmt: skip


def sampling(settings: Settings) -> dict[str, Any]:
    return {
        "chains": settings.chains,
        "draws": settings.draws,
        "burn_in": settings.burn_in,
        "steps_between_draws": settings.steps_between_draws,
        "batch_size": settings.sampler_batch,
        "progress": False,
    }


def early_scores(settings: Settings, parameters: Tensor) -> dict[str, Tensor]:
    """Scores of the training strings `[strings]` around a model after the early step; more of what is high is to
    favour Nested."""
    model, task = model_at(settings, parameters), task_of(settings)

    def test_loss(model: nn.Module) -> Tensor:
        return pf.losses.cross_entropy(model, task.test).mean()

    where = posterior_at(settings, parameters, settings.n_beta, settings.localization)
    keywords = sampling(settings)
    found = pf.linear_response(where, pf.SGLD(settings.sampler_lr), observable={"test loss": test_loss}, **keywords)
    blind = pf.sample(
        posterior_at(settings, parameters, 0.0, settings.localization), pf.SGLD(settings.sampler_lr),
        observables={"test loss": test_loss}, **keywords | {"chains": 8},
    ).susceptibilities(observable="test loss")  # fmt: skip
    with torch.no_grad():
        losses = pf.losses.cross_entropy(model, task.training)
    return {
        CHI: -torch.from_numpy(found["chi"].sel(component=FULL).values).double(),
        NO_LOSS: -torch.from_numpy(blind["chi"].sel(component=FULL).values).double(),
        LOW_LOSS: -losses.double().cpu(),
        GRADIENT: -raised_along(
            model,
            lambda model: margin(settings, model),
            lambda model: pf.losses.cross_entropy(model, task.training),
        ),
    }


def by_n_grams(settings: Settings) -> np.ndarray:
    """How alike a training string's runs of letters are to those of equal counts `[strings]`: no model has a part."""
    task = drawn(settings)

    def counts(tokens: Tensor) -> np.ndarray:
        runs = tokens.unfold(1, GRAM, 1).numpy() @ 8 ** np.arange(GRAM)
        found = np.stack([np.bincount(row, minlength=8**GRAM) for row in runs]).astype(np.float64)
        found[:, 0] = 0.0  # of what is after the end
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    return counts(task.training[0]) @ counts(task.equal_counts).mean(0)


def averaged(settings: Settings, scores: np.ndarray, n_beta: float) -> xr.Dataset:
    """Scores of strings `[models, strings]` by kind, over models, which are the independent groups of errors.

    Models whose scores are larger than the median one's are scaled down to its size: a few would drown the rest.
    """
    kinds = kinds_of(drawn(settings))
    names, codes, counts = np.unique(kinds, return_inverse=True, return_counts=True)
    by_kind = np.stack([np.bincount(codes, row - row.mean()) / counts for row in scores])
    size = np.linalg.norm(by_kind * np.sqrt(counts), axis=1, keepdims=True)
    by_kind *= np.minimum(1.0, np.median(size) / size)
    error = by_kind.std(0, ddof=1) / np.sqrt(len(by_kind)) if len(by_kind) > 1 else np.zeros(len(names))
    return xr.Dataset(
        {
            "chi": (("component", "kind"), by_kind.mean(0)[None]),
            "chi_error": (("component", "kind"), error[None]),
            "chi_group": (("component", "group", "kind"), by_kind[None]),
        },
        coords={"component": [OOD], "kind": names, "count": ("kind", counts)},
        attrs={"n_beta": n_beta},
    )


def learning_coefficient(settings: Settings, parameters: Tensor) -> Part:
    """λ̂ of a solution, whether its chains had settled, and what strings contribute to it `[strings]`."""
    where = posterior_at(settings, parameters, settings.llc_n_beta, settings.llc_localization)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pf.UnsettledWarning)  # the table says so
        statistics = pf.sample(
            where, pf.SGLD(settings.llc_lr), chains=settings.llc_chains, draws=settings.llc_draws,
            burn_in=settings.llc_burn_in, steps_between_draws=settings.llc_steps_between_draws,
            batch_size=settings.sampler_batch, loss_samples=min(1000, settings.strings), progress=False,
        )  # fmt: skip
        found, contributions = statistics.llc().isel(component=0), statistics.contributions()
    numbers = ("llc", "llc_error", "r_hat", "settled", "relaxation_steps")
    return {name: float(found[name]) for name in numbers if name in found} | {
        "contribution": torch.from_numpy(contributions["contribution"].values[0]).double()
    }


def responses(settings: Settings, parameters: Tensor) -> dict[str, Any]:
    """χ of some strings by covariances against that by responses, after the early step."""
    inputs, labels = task_of(settings).training
    return comparison(
        posterior_at(settings, parameters, settings.n_beta, settings.localization), pf.SGLD(settings.sampler_lr), None,
        probes={"some": (inputs[:COMPARED], labels[:COMPARED])}, loss_samples=min(256, len(inputs)),
        **sampling(settings) | {"chains": 8},
    )  # fmt: skip
