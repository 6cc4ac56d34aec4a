"""`training_adjoint`: how what training comes to answers to each datum, by going back over the steps of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from patterning_fast.arguments import Count, NonNegative, Positive, Seed, checked
from patterning_fast.callbacks import calling
from patterning_fast.domains import Holds
from patterning_fast.estimators.labelled import labelled, reliabilities, split_half_reliability
from patterning_fast.plain_torch import plain_torch
from patterning_fast.posterior.losses import Batch, Loss
from patterning_fast.posterior.observables import Observable
from patterning_fast.posterior.wrapped import Model
from patterning_fast.training.retraceable import Optimizing, retraceable


@checked
@plain_torch()
def training_adjoint(
    models: Annotated[Sequence[Model], Holds(2)],
    data: Batch,
    loss: Loss,
    outcomes: Annotated[Mapping[str, Observable], Holds(1)],
    *,
    steps: Count,
    batch_size: Count,
    lr: Positive,
    seeds: Sequence[Seed],
    weights: Tensor | xr.DataArray | None = None,
    weight_decay: NonNegative = 0.0,
    optimizer: Optimizing = "adamw",
    clip: bool = False,
) -> xr.Dataset:
    """Response χ of outcomes of training to every datum, dE[O] = Σ_j χ_j(ρ_j − 1)/n, from one training of each model.

    What `training_response` fits to many trainings, this differentiates: each training is a function of the weights
    of its data, with its minibatches held fixed, and is gone back over step by step (arXiv:2503.13751). That takes the
    time of some five trainings, for all data at once. It is exact for small changes of the weights. Whether that says
    anything of larger ones depends on how smooth training is: ask `metasmoothness` before a plan is made of it.

    Trains `models` in place, as `train` would each with its one of `seeds`, on losses that are differentiable twice and
    that `torch.vmap` takes. The time of a step does not grow with the models as long as they are small.

    Args:
        models: at least 2, alike but for their parameters, from whose scatter errors come.
        loss: per sample or per token.
        outcomes: by name, differentiable functions of a trained model that return a number.
        steps: to see how an early stage of training answers, stop there.
        weights: ρ of each sample or token around which the response is taken; None for all 1.
        optimizer: "adamw", with torch's betas and eps, or "sgd", without momentum.
        clip: scale responses of models that are larger than the median one down to its size. In training that is a
            little chaotic a few models have derivatives a thousand times those of others, which say nothing of larger
            changes and drown the rest; the direction that most models agree on is left, and χ is too small.

    Returns `chi`, `chi_error` and `chi_group` (component, sample or token), with outcomes for components and models for
    groups, of mean 0 over the data; `chi_reliability`; `mean`, the mean outcome, and `outcome` by model; and `growth`
    by model, the natural logarithm of how much larger the outcome's derivative is by the first parameters than by the
    last: from some 5 on, training is chaotic and χ the noise of a few models. `invert` and `aggregate` take the result,
    with nβ = 1.

    Raises ValueError for other than one seed a model, models that differ in shape, a loss without a second derivative,
    and an outcome that is not one
    finite number with a gradient; FloatingPointError where no two models have a finite response.
    """
    training = retraceable(
        models, data, loss, weights, steps=steps, batch_size=batch_size, lr=lr, seeds=seeds, weight_decay=weight_decay,
        optimizer=optimizer,
    )  # fmt: skip
    training.check_second_derivative()
    training.run()
    values, gradients = zip(*(of_outcomes(model, outcomes) for model in models), strict=True)
    found, growth = training.back(torch.stack(gradients, 1))
    result = dataset(list(outcomes), found.flatten(2).cpu(), tuple(training.rho.shape[1:]), clip)
    result["mean"] = ("component", torch.stack(values, 1).mean(1).numpy())
    result["outcome"] = (("component", "group"), torch.stack(values, 1).numpy())
    result["growth"] = (("component", "group"), growth.cpu().numpy())
    return result.assign_attrs(n_beta=1.0, runs=len(models), steps=steps, estimator="adjoint of training")


def of_outcomes(model: nn.Module, outcomes: Mapping[str, Observable]) -> tuple[Tensor, Tensor]:
    """Outcomes of a model `[outcomes]`, and their gradients `[outcomes, params]`."""
    leaves = list(model.parameters())
    values, gradients = [], []
    for name, function in outcomes.items():
        with calling(f"outcomes[{name!r}]", "take the model and return a tensor of one number"):
            value = function(model)
        if not isinstance(value, Tensor) or value.numel() != 1 or not bool(torch.isfinite(value).all()):
            raise ValueError(f"outcomes[{name!r}] must return one finite number, got {value}; change the function")
        if not value.requires_grad:
            raise ValueError(
                f"outcomes[{name!r}] has no gradient: it may round, count or detach; make it differentiable, e.g. a "
                "mean loss in place of an accuracy"
            )
        found = torch.autograd.grad(value.sum(), leaves, materialize_grads=True)
        values.append(value.detach().reshape(()).double().cpu())
        gradients.append(parameters_to_vector(found))
    return torch.stack(values), torch.stack(gradients)


def dataset(names: list[str], found: Tensor, shape: tuple[int, ...], clip: bool) -> xr.Dataset:
    """Derivatives by weights `[outcomes, models, data]` as χ, with errors from models whose numbers are all finite."""
    alive = found.isfinite().all(2).all(0).nonzero().squeeze(1)
    if len(alive) < 2:
        raise FloatingPointError(
            f"{len(alive)} of {found.shape[1]} models have a finite response: take fewer steps, or a smaller lr"
        )
    chi = found.shape[2] * (found - found.mean(2, keepdim=True))
    if clip:
        size = chi.norm(dim=2, keepdim=True)
        chi = chi * (size[:, alive].median(1, keepdim=True).values / size).clamp(max=1.0)
    dimension = "token" if len(shape) > 1 else "sample"
    places = np.indices(shape).reshape(len(shape), -1).astype(np.int32)
    where = {level: (dimension, each) for level, each in zip(("sample", "position"), places, strict=False)}
    healthy = [(alive, each[alive]) for each in chi]
    result = labelled("chi", names, healthy, found.shape[1], (dimension,), where, "response of training", "outcome")
    reliable = [
        split_half_reliability(len(alive), lambda chosen, own=each[alive]: own[chosen].mean(0))  # type: ignore[misc]
        for each in chi
    ]
    result.update(reliabilities("chi", "response of training", reliable))
    return result
