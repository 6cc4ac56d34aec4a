"""Chains on models of parentheses: learning coefficients, contributions and susceptibilities by kind of string."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

import patterning_fast as pf
from patterning_fast.posterior.components import FULL
from patterning_fast.recipes.responses import comparison

from .runs import drawn, new_model, task_of
from .settings import Part, Settings
from .strings import kinds_of

COMPARED = 64
"""Strings on which covariances are held against responses."""

NESTEDNESS = "nestedness"


def posterior_at(settings: Settings, parameters: Tensor, n_beta: float, localization: float) -> pf.LocalPosterior:
    """The posterior around a model, on the training strings."""
    model = new_model(settings, 0)
    vector_to_parameters(parameters.to(settings.device), model.parameters())
    return pf.LocalPosterior(
        model, pf.losses.cross_entropy, task_of(settings).training, n_beta=n_beta, localization=localization
    )


def responses(settings: Settings, parameters: Tensor) -> dict[str, Any]:
    """χ of some strings by covariances against that by responses."""
    posterior = posterior_at(settings, parameters, settings.n_beta, settings.localization)
    inputs, labels = task_of(settings).training
    return comparison(
        posterior, pf.SGLD(settings.sampler_lr), None, probes={"some": (inputs[:COMPARED], labels[:COMPARED])},
        loss_samples=min(256, len(inputs)), **sampling(settings),
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


def contributions(settings: Settings, parameters: Tensor) -> Part:
    """λ̂ of a solution, what each kind of string contributes to it, and their χ."""
    posterior = posterior_at(settings, parameters, settings.n_beta, settings.localization)
    statistics = pf.sample(posterior, pf.SGLD(settings.sampler_lr), **sampling(settings))
    both = statistics.contributions().assign(statistics.susceptibilities()[["chi", "chi_error", "chi_group"]].data_vars)
    return by_kind(settings, both.assign_attrs(n_beta=settings.n_beta))


def susceptibilities(settings: Settings, parameters: Tensor) -> Part:
    """χ of nestedness by kind of string."""
    posterior = posterior_at(settings, parameters, settings.early_n_beta, settings.early_localization)
    (test, classes), others = task_of(settings).test, task_of(settings).equal_counts

    def nestedness(model: nn.Module) -> Tensor:
        """How far strings of equal counts that do not nest are from balanced ones, on the way to all others."""
        logits = model(torch.cat((test, others)))
        margin = logits[:, 0] - logits[:, 1]
        of_test = margin[: len(test)]
        balanced, unbalanced = of_test[classes == 1].mean(), of_test[classes == 0].mean()
        return (margin[len(test) :].mean() - balanced) / (unbalanced - balanced)

    fewer = {"chains": settings.early_chains, "draws": settings.early_draws, "observables": {NESTEDNESS: nestedness}}
    statistics = pf.sample(posterior, pf.SGLD(settings.sampler_lr), **sampling(settings) | fewer)
    return by_kind(settings, statistics.susceptibilities(observable=NESTEDNESS))


def by_kind(settings: Settings, estimates: xr.Dataset) -> Part:
    """Estimates by kind of string, as arrays; none by group of chains: see `averaged`."""
    kinds = kinds_of(drawn(settings))
    found = pf.aggregate(estimates, kinds, name="kind").sel(component=FULL)
    kept = {str(name): each for name, each in found.data_vars.items() if "group" not in each.dims}
    return {
        "kind": [str(name) for name in found["kind"].values],
        "count": torch.from_numpy(found["count"].values),
        "n_beta": float(found.attrs["n_beta"]),
        **{name: torch.from_numpy(each.values.copy()) for name, each in kept.items()},
    }


def averaged(parts: list[Part]) -> xr.Dataset:
    """Estimates by kind, over models: means of χ, with errors of how models differ, which are its independent groups;
    and the median contributions, each with its error from chains, as some solutions' are ten times those of others.
    """
    first = parts[0]
    kind = {"kind": first["kind"], "count": ("kind", first["count"].numpy())}
    dataset = xr.Dataset(coords={"component": [FULL]} | kind, attrs={"n_beta": first["n_beta"]})
    by_model = np.stack([part["chi"].double().numpy() for part in parts])[None]
    dataset["chi"] = (("component", "kind"), by_model.mean(1))
    dataset["chi_error"] = (("component", "kind"), by_model.std(1, ddof=1) / np.sqrt(len(parts)))
    dataset["chi_group"] = (("component", "group", "kind"), by_model)
    if "contribution" in first:
        values = np.stack([part["contribution"].double().numpy() for part in parts])
        middle = np.argsort(values, 0)[None, (len(parts) - 1) // 2]
        for name in ("contribution", "contribution_error"):
            of_models = np.stack([part[name].double().numpy() for part in parts])
            dataset[name] = (("component", "kind"), np.take_along_axis(of_models, middle, 0))
    for name in ("llc", "llc_error", "mu", "r_hat"):
        if name in first:
            dataset[name] = ("model", [float(part[name]) for part in parts])
    return dataset
