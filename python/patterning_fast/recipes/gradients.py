"""How losses change along a gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

STEP = 1e-3
"""Length of the step of the directional derivative, in parameters."""


def raised_along(model: M, value: Callable[[M], Tensor], losses: Callable[[M], Tensor]) -> Tensor:
    """By how much losses go up over a step either way along the gradient of a value of the model, in float64."""
    return raised(model, torch.autograd.grad(value(model), list(model.parameters())), losses)


def raised(model: M, direction: Sequence[Tensor], losses: Callable[[M], Tensor]) -> Tensor:
    """By how much losses go up over a step either way along a direction, a tensor a parameter, in float64."""
    moved = copy.deepcopy(model)
    parameters = list(moved.parameters())
    step = STEP / float(torch.cat([each.flatten() for each in direction]).norm())

    def after(length: float) -> Tensor:
        with torch.no_grad():
            for parameter, slope in zip(parameters, direction, strict=True):
                parameter.add_(slope, alpha=length)
            found = losses(moved).double().cpu()
            for parameter, slope in zip(parameters, direction, strict=True):
                parameter.sub_(slope, alpha=length)
        return found

    return after(step) - after(-step)
