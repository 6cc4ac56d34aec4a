"""`metasmoothness`: whether training answers to a change of weights as its derivative there says it would."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from patterning_fast.arguments import Count, NonNegative, Positive, Seed, checked
from patterning_fast.domains import Holds
from patterning_fast.plain_torch import plain_torch
from patterning_fast.posterior.losses import Batch, Loss
from patterning_fast.posterior.observables import Observable, values_at_center
from patterning_fast.posterior.weights import weights_for
from patterning_fast.posterior.wrapped import Model
from patterning_fast.training.retraceable import Optimizing, retraceable


@checked
@plain_torch()
def metasmoothness(
    models: Annotated[Sequence[Model], Holds(2)],
    data: Batch,
    loss: Loss,
    outcomes: Annotated[Mapping[str, Observable], Holds(1)],
    weights: Tensor | xr.DataArray,
    *,
    steps: Count,
    batch_size: Count,
    lr: Positive,
    seeds: Sequence[Seed],
    weight_decay: NonNegative = 0.0,
    optimizer: Optimizing = "adamw",
) -> xr.Dataset:
    """Whether outcomes of training change alike over the first and the second half of the way from weights 1 to others.

    Trains copies of each model on weights 1, half way and `weights`, with the same minibatches. Where training is
    smooth on the scale of these weights both halves change an outcome in the same direction; where it is chaotic, in
    one as often as in the other, and its derivative says nothing of the weights (arXiv:2503.13751, §4).

    Args:
        models: as they start; they are not changed. weights: ρ of each sample or token, e.g. `plan.weights`.
        outcomes: by name, functions of a trained model that return a number.
        others: as for `training_adjoint`.

    Returns `first` and `second` (component, group), the changes over each half by outcome and model; `agreement`, the
    share of models in which these have the same sign, ½ where training is chaotic, with `agreement_error`.
    Raises ValueError as `training_adjoint` does.
    """
    ends = []
    for part in (0.0, 0.5, 1.0):
        copies = [copy.deepcopy(model) for model in models]
        training = retraceable(
            copies, data, loss, None, steps=steps, batch_size=batch_size, lr=lr, seeds=seeds,
            weight_decay=weight_decay, optimizer=optimizer,
        )  # fmt: skip
        samples, *shape = training.rho.shape[1:]
        present = training.rho[0] != 0
        rho = weights_for(weights, samples, tuple(shape), present).to(training.rho)
        drawn = rho[present.view(samples, -1).any(1)]
        training.rho = training.rho + part * (rho / drawn.mean() - training.rho)
        training.run()
        ends.append(torch.stack([values_at_center(model, outcomes) for model in copies], 1).double().numpy())
    first, second = np.diff(np.stack(ends), axis=0)
    agreement = (np.sign(first) == np.sign(second)).mean(1)
    dims = ("component", "group")
    return xr.Dataset(
        {
            "first": (dims, first),
            "second": (dims, second),
            "agreement": ("component", agreement),
            "agreement_error": ("component", np.sqrt(agreement * (1 - agreement) / len(models))),
        },
        coords={"component": list(outcomes)},
        attrs={"steps": steps},
    )
