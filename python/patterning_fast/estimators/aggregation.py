"""Estimates of documents, domains or other groups of data: means over their tokens, with errors that hold for means."""

from __future__ import annotations

import numpy as np
import xarray as xr

from patterning_fast.arguments import Labels, Name, checked
from patterning_fast.posterior.weights import one_probe, shown


@checked
def aggregate(estimates: xr.Dataset, groups: Labels, name: Name = "document") -> xr.Dataset:
    """Means of estimates by sample or token over the documents, domains or other groups that data belong to.

    Errors of tokens go together, so those of means come from the independent groups of chains (`NAME_group`), not from
    the errors of tokens. `invert` takes a χ so made, with a weight for each group, as with `unit=name`;
    `spread_weights` lays such weights out on the data.

    Args:
        estimates: what `susceptibilities()`, `influence()`, `contributions()` or `linear_response` return.
        groups: name of the group of each sample `[samples]`, or of each token `[samples, tokens]`, of all data.
        name: of the dimension of groups in the result.

    Returns the estimates along `name`, and as coordinate `count` how many samples or tokens each mean is of. What is
    about the spread over single data (reliabilities, correlations) is left out. Raises ValueError for groups that do
    not fit the data or are missing, and for estimates of several probes, of pairs of losses, or without values by
    group.
    """
    dimension, averaged = data_dimension(estimates)
    names, codes, counts = np.unique(
        labels_of(estimates, dimension, np.asarray(groups)), return_inverse=True, return_counts=True
    )
    result = xr.Dataset(
        {
            each: variable
            for each, variable in estimates.data_vars.items()
            if dimension not in variable.dims
            and not str(each).endswith(("_reliability", "r_0.9", "_correlation", "_correlation_error"))
        },
        coords={"component": estimates["component"].values, name: names, "count": (name, counts)},
        attrs=estimates.attrs,
    )
    for each in averaged:
        group = means_by_unit(estimates[f"{each}_group"].values, codes, counts)
        mean = means_by_unit(estimates[each].values, codes, counts)
        values = {each: mean, f"{each}_error": error_of_means(group), f"{each}_group": group.astype(np.float32)}
        for variable, numbers in values.items():
            result[variable] = ((*estimates[variable].dims[:-1], name), numbers, estimates[variable].attrs)
    return result


def data_dimension(estimates: xr.Dataset) -> tuple[str, list[str]]:
    """The dimension of data, and the estimates along it; raises ValueError where there are none, or of pairs."""
    for dimension in ("token", "sample"):
        averaged = [str(each) for each in estimates.data_vars if f"{each}_group" in estimates]
        averaged = [each for each in averaged if dimension in estimates[each].dims]
        if not averaged:
            continue
        if any(estimates[each].dims != ("component", dimension) for each in averaged):
            raise ValueError(
                f"estimates must have dimensions (component, {dimension}), got {estimates[averaged[0]].dims}"
            )
        return dimension, averaged
    raise ValueError(
        "there are no estimates by token or sample with their values by group of chains (NAME_group), which errors of "
        f"means come from; the dataset has {sorted(map(str, estimates.data_vars))}"
    )


def labels_of(estimates: xr.Dataset, dimension: str, groups: np.ndarray) -> np.ndarray:
    """The group of each datum `[data]`, by its sample and position; raises ValueError for groups that do not fit."""
    one_probe(estimates[dimension] if "probe" not in estimates.coords else estimates["probe"])
    levels = ["sample", *(["position"] if dimension == "token" else [])]
    places = [estimates[level].values.astype(np.int64) for level in levels]
    sizes = [int(place.max()) + 1 for place in places]
    if list(groups.shape) not in (sizes[:1], sizes):
        expected = " or ".join(str(each) for each in ([sizes[:1], sizes] if len(sizes) > 1 else [sizes]))
        raise ValueError(f"groups of shape {list(groups.shape)} do not fit the data of the estimates: want {expected}")
    missing = np.vectorize(lambda each: each is None or each != each, otypes=[bool])(groups)  # NaN is not itself
    if missing.any():
        raise ValueError(f"{int(missing.sum())} groups have no name, the first at {np.argwhere(missing)[0].tolist()}")
    labels = groups[tuple(places[: groups.ndim])]
    lost = np.setdiff1d(groups, labels)
    if lost.size:
        raise ValueError(f"these groups have no estimates: {shown(lost.tolist())}; give estimates of all the data")
    return labels


def means_by_unit(values: np.ndarray, codes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Means over each unit's data: `[..., data]` to `[..., units]`, a row at a time."""
    result = np.empty((*values.shape[:-1], len(counts)))
    for index in np.ndindex(*values.shape[:-1]):
        result[index] = np.bincount(codes, values[index], minlength=len(counts)) / counts
    return result


def error_of_means(group: np.ndarray) -> np.ndarray:
    """Standard error of the mean over the healthy groups of `[component, group, ...]`; NaN where there are none."""
    healthy = np.isfinite(group).sum(1)
    centred = group - np.nansum(group, 1, keepdims=True) / np.maximum(healthy, 1)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(np.nansum(centred**2, 1) / (healthy - 1) / healthy)
