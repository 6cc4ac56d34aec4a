"""Weights and the data they belong to: a mismatch is an error, never a silent shift."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

from patterning_fast.arguments import Labels, checked
from patterning_fast.plain_torch import without_inference

SHOWN = 5
"""Names an error lists before it only counts them."""


def weights_for(
    weights: Tensor | xr.DataArray, samples: int, loss_shape: tuple[int, ...], present: Tensor | None = None
) -> Tensor:
    """ρ as float32 `[samples]` or `[samples, tokens]`, shaped as the losses it multiplies; 0 where none is `present`.

    Weights with coordinates `sample` (and `position`) go where these say, in whatever order they come; tensors, and
    arrays without coordinates, are taken as they lie. Weights of samples hold for all tokens of a sample.

    Raises ValueError for weights of another shape or of several probes, that miss data or name some twice, whose
    coordinates do not say which sample each belongs to, and for values that are not finite, negative in sum, or all
    zero.
    """
    shape = (samples, *loss_shape)
    if isinstance(weights, xr.DataArray):
        one_probe(weights)
        there = None if present is None else present.cpu().numpy()
        values = placed(weights, shape, there) if "sample" in weights.coords else in_order(weights)
        tensor = torch.from_numpy(values.astype(np.float32))
    else:
        tensor = without_inference(weights.detach().to(torch.float32))
    if tensor.shape == shape[:1]:
        tensor = tensor.view(-1, *(1 for _ in loss_shape)).expand(shape).contiguous()
    if tensor.shape not in {shape, (int(np.prod(shape)),)}:
        raise ValueError(
            f"weights of shape {list(tensor.shape)} do not fit the data, whose losses have shape {list(shape)}: "
            "they must come from a plan on this very data"
        )
    tensor = tensor.view(shape)
    if present is not None:
        tensor = torch.where(present.to(tensor.device), tensor, 0.0)
    check_values(tensor)
    return tensor


def one_probe(weights: xr.DataArray) -> None:
    """Raise ValueError for weights of several probes."""
    if "probe" in weights.coords and len(np.unique(weights["probe"].values)) > 1:
        names = np.unique(weights["probe"].values).tolist()
        raise ValueError(f"the weights belong to several probes {names}; select one of them first")


def check_values(weights: Tensor) -> None:
    """Raise ValueError for weights that no loss can be weighted by."""
    if not bool(torch.isfinite(weights).all()):
        raise ValueError(f"{int((~torch.isfinite(weights)).sum())} weights are not finite")
    if not bool(weights.any()):
        raise ValueError("the weights are all zero: that leaves no data")
    if float(weights.sum(dtype=torch.float64)) <= 0:
        raise ValueError(f"weights must have a positive sum, got {float(weights.sum(dtype=torch.float64)):.6g}")


def placed(
    weights: xr.DataArray, shape: tuple[int, ...], present: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.floating]:
    """The values where their coordinates say: one for each sample, or one for each token, of `shape`.

    Tokens that are not `present` need none, and get 0.
    """
    names = ["sample", *(["position"] if "position" in weights.coords else [])]
    if len(names) > len(shape):
        raise ValueError(
            f"weights of tokens do not fit the data, whose losses have shape {list(shape)}, one a sample: "
            "they must come from a plan on this very data"
        )
    places = [weights[name].broadcast_like(weights).values.ravel() for name in names]
    grid = shape[: len(names)]
    for name, numbers, size in zip(names, places, grid, strict=True):
        whole = np.issubdtype(numbers.dtype, np.integer)
        wrong = numbers[(numbers < 0) | (numbers >= size)] if whole else numbers
        if wrong.size:
            raise ValueError(
                f"the weights' {name} must be numbers of the data, 0 to {size - 1}, got {shown(np.unique(wrong))}: "
                "they must come from a plan on this very data"
            )
    at = np.ravel_multi_index(places, grid)
    times = np.bincount(at, minlength=int(np.prod(grid)))
    items = "tokens" if "position" in names else "samples"
    needed = np.ones(grid, dtype=bool) if present is None or len(grid) < 2 else present
    for amiss, what in (((times == 0) & needed.ravel(), "miss"), (times > 1, "give more than once")):
        if amiss.any():
            first = zip(names, np.unravel_index(int(amiss.argmax()), grid), strict=True)
            raise ValueError(
                f"the weights {what} {int(amiss.sum())} of the data's {amiss.size} {items}, the first at "
                f"{', '.join(f'{name} {number}' for name, number in first)}: "
                "they must come from a plan on this very data"
            )
    result = np.zeros(grid, dtype=np.float64)
    result.ravel()[at] = weights.values.ravel()
    return result


def in_order(weights: xr.DataArray) -> npt.NDArray[np.floating]:
    """The values as they lie; raises ValueError where coordinates may say another order than that of the data."""
    for name, each in weights.coords.items():
        if each.ndim and not (each.ndim == 1 and np.array_equal(each.values, np.arange(each.size))):
            raise ValueError(
                f"the weights have the coordinate {str(name)!r} and none that says which sample each belongs to: give "
                "them the coordinate 'sample', or a tensor of the values in the order of the data"
            )
    return weights.values


@checked
def spread_weights(weights: xr.DataArray, groups: Labels) -> xr.DataArray:
    """ρ of each sample or token, from weights of the documents, domains or other groups that they belong to.

    Args:
        weights: of groups, along one dimension with a coordinate that names each, e.g. `domain`.
        groups: name of the group of each sample `[samples]`, or of each token `[samples, tokens]`.

    Returns weights along `sample`, or along `token` with coordinates `sample` and `position`; each with its group.
    Raises ValueError for groups that are named twice, that have data and no weight, or a weight and no data.
    """
    of = np.asarray(groups)
    if weights.ndim != 1 or weights.dims[0] not in weights.coords or of.ndim not in (1, 2):
        raise ValueError(
            "weights must have one dimension with a coordinate that names its groups, and groups one name a sample "
            f"[samples] or token [samples, tokens]; got dimensions {weights.dims} with coordinates "
            f"{list(weights.coords)}, and groups of shape {list(of.shape)}"
        )
    (dimension,) = weights.dims
    names = weights[dimension].values.tolist()
    place = {name: at for at, name in enumerate(names)}
    unique, which = np.unique(of.ravel(), return_inverse=True)
    found = dict.fromkeys(unique.tolist())
    for wrong, what in (
        ([name for name, times in Counter(names).items() if times > 1], "are weighted twice"),
        ([name for name in found if name not in place], "have data and no weight"),
        ([name for name in names if name not in found], "have a weight and no data"),
    ):
        if wrong:
            raise ValueError(f"these groups {what}: {shown(wrong)}; weights and groups must be of the same data")
    at = np.array([place[name] for name in found])[which]
    along, levels = ("sample", ("sample",)) if of.ndim == 1 else ("token", ("sample", "position"))
    places = zip(levels, np.indices(of.shape).reshape(of.ndim, -1).astype(np.int32), strict=True)
    coordinates = {level: (along, numbers) for level, numbers in places} | {str(dimension): (along, of.ravel())}
    return xr.DataArray(weights.values[at], dims=along, coords=coordinates, name="weight", attrs=weights.attrs)


def shown(names: Iterable[Hashable]) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(str(name) for name in listed[:SHOWN]) + more
