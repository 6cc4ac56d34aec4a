"""Observables of the user's own: functions of the model, watched along chains beside the components' losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from torch import Tensor, nn

from patterning_fast.callbacks import calling
from patterning_fast.domains import Mend
from patterning_fast.posterior.probing import left_alone

Observable = Callable[[nn.Module], Tensor]
"""A number made of a model, as a 0-d tensor; it is called with one that has a chain's parameters."""

Observables = Annotated[
    Mapping[str, Observable], Mend("name each function of the model: observables={'name': function}")
]

PHI = "phi"
"""Name of the observable that there always is, L(w) − L(w*)."""


def values_at_center(model: nn.Module, observables: Mapping[str, Observable]) -> Tensor:
    """Values at w*, float32 `[observables]`; raises TypeError or ValueError for one that is no finite number."""
    values = []
    for name, function in observables.items():
        if name == PHI:
            raise ValueError(f"{PHI!r} is the name of L(w) - L(w*), which is always observed: choose another")
        with (
            torch.no_grad(),
            left_alone(model, f"observables[{name!r}]"),
            calling(f"observables[{name!r}]", "take the model and return a tensor of one number"),
        ):
            value = function(model)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"observables[{name!r}] must return a tensor of one number, got {shape}")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"observables[{name!r}] is {float(value)} at w*: it must be finite there")
        values.append(value.reshape(()).float().cpu())
    return torch.stack(values) if values else torch.zeros(0, dtype=torch.float32)
