"""`extrapolate`: estimates at several step sizes, continued to a step size of 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
import xarray as xr

from patterning_fast.arguments import Name, checked
from patterning_fast.domains import Holds
from patterning_fast.estimators.labelled import labelled
from patterning_fast.plain_torch import plain_torch

SHARED = ("n_beta", "localization", "items", "weighted", "observable")
"""Attributes in which estimates must agree."""


@checked
@plain_torch()
def extrapolate(estimates: Annotated[Sequence[xr.Dataset], Holds(2)], name: Name = "chi") -> xr.Dataset:
    """An estimate at lr → 0, from runs that differ in lr: Richardson's extrapolation, with its error.

    The bias of SGLD is a series in lr, and so is what minibatch noise adds at a given batch size: two step sizes take
    off the first order, three the second. That of SGHMC is too; SGNHT's is not where minibatches are noisy. With
    `[lr, lr/2]` errors grow by √5 where runs are independent. Weights are applied group by group, so that errors know
    of noise that runs share by their seed. Let each run take about the same lr·steps: burn-in and
    `steps_between_draws` go with 1/lr. The bias of the longest step must be small: of a variance
    1/(a(1 − lr·a/4)) two step sizes leave −3 % where lr·a/4 is .2, and −33 % where it is .5.

    Args:
        estimates: what `llc()`, `susceptibilities()` or another method of `Statistics` return, one for each step size,
            of the same posterior, components, data and groups.
        name: the estimate: "llc", "chi", ...

    Returns `NAME`, `NAME_error`, `NAME_group` and `degrees_of_freedom`; groups that have lost their chains in one of
    the runs are left out. Attribute `lr` has the step sizes.

    Raises ValueError where step sizes are not distinct, or what else the estimates are of differs.
    """
    first = estimates[0]
    check_alike(estimates, name)
    sizes = [float(each.attrs["lr"]) for each in estimates]
    weights = [math.prod(other / (other - own) for other in sizes if other != own) for own in sizes]
    group = sum(
        weight * each[f"{name}_group"].values.astype(np.float64)
        for weight, each in zip(weights, estimates, strict=True)
    )
    values = torch.from_numpy(np.asarray(group))
    found = []
    for own in values:
        healthy = own.flatten(1).isfinite().all(1) if own.dim() > 1 else own.isfinite()
        alive = healthy.nonzero().squeeze(1)
        alive = alive if len(alive) > 1 else alive[:0]
        found.append((alive, own[alive]))
    dims = tuple(map(str, first[name].dims[1:]))
    where = {str(key): (dims[0], each.values) for key, each in first.coords.items() if dims and each.dims == dims[:1]}
    attrs = first[name].attrs
    result = labelled(
        name, list(map(str, first["component"].values)), found, values.shape[1], dims, where,
        f"{attrs['long_name']}, at lr -> 0", attrs["units"],
    )  # fmt: skip
    return result.assign_attrs(first.attrs, lr=sizes)


def check_alike(estimates: Sequence[xr.Dataset], name: str) -> None:
    """Raise ValueError unless estimates are of the same things at different step sizes."""
    first = estimates[0]
    for at, each in enumerate(estimates):
        missing = {name, f"{name}_group"} - set(each.data_vars)
        if missing or "lr" not in each.attrs:
            raise ValueError(
                f"estimates[{at}] lacks {sorted(missing) or 'the attribute lr'}: extrapolate needs what an estimate "
                f"of `sample` returns, with its values by group; it has {sorted(str(key) for key in each.data_vars)}"
            )
        differing = [key for key in SHARED if each.attrs.get(key) != first.attrs.get(key)]
        shapes = first[f"{name}_group"].sizes, each[f"{name}_group"].sizes
        if differing or shapes[0] != shapes[1] or not each[name].coords.equals(first[name].coords):
            raise ValueError(
                f"estimates[{at}] differs from the first in {', '.join(differing) or 'its components, data or groups'}"
                ": only lr, and the steps that go with it, may"
            )
    sizes = [float(each.attrs["lr"]) for each in estimates]
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"step sizes must be distinct, got {sizes}; sample once at each")
