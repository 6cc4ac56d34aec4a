"""`susceptibilities` and `compute_susceptibilities`: χ of tokens as devinterp defines it (arXiv:2504.18274, C.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import xarray as xr
from torch import nn

from patterning_fast.arguments import KeywordsOf, NonNegative, Positive, checked
from patterning_fast.domains import Holds
from patterning_fast.interop.devinterp.sampling import LossFunction, ParamMasks, sample, sample_each
from patterning_fast.interop.devinterp.settings import Settings
from patterning_fast.interop.devinterp.tokens import ObservableSpecs, TokenDataset, identifier
from patterning_fast.interop.devinterp.whole import dataset_of, whole_chains
from patterning_fast.posterior.components import FULL

LOSSES, IDS = "loss_", "input_ids_"
"""What names of an observable's variables begin with."""


@checked
def susceptibilities(
    model: nn.Module,
    dataset: TokenDataset,
    observables: ObservableSpecs,
    weight_restrictions: Annotated[Mapping[str, ParamMasks | None], Holds(2)],
    *,
    sampling_task: str,
    lr: Positive,
    n_beta: NonNegative,
    loss_fn: LossFunction | None = None,
    include_sampling_task: bool = False,
    **kwargs: Annotated[Any, KeywordsOf(sample)],
) -> xr.DataTree:
    """`compute_susceptibilities` of samples of each restriction, "full" among them, all of whose chains run together.

    Further keywords are those of `sample`; with `output_path="samples.zarr"` each restriction has a store of its own,
    "samples_l0h1.zarr". Raises what `sample` does, and ValueError without "full" or the sampling task.
    """
    if FULL not in weight_restrictions:
        raise ValueError('weight_restrictions must hold "full": add "full": None, the whole model')
    if sampling_task not in observables:
        raise ValueError(
            f"sampling_task must be one of the observables, {', '.join(observables)}, got {sampling_task!r}: the "
            "losses of what is sampled are observed too"
        )
    if not include_sampling_task and len(observables) == 1:
        raise ValueError(
            f"observables has {sampling_task!r} alone, of which no susceptibilities are wanted: add another, or pass "
            "include_sampling_task=True"
        )
    if "param_masks" in kwargs:
        raise TypeError("susceptibilities takes masks by weight_restrictions={name: masks}, not param_masks")
    output = kwargs.pop("output_path", None)
    base = None if output is None else Path(output)
    paths = {} if base is None else {
        name: base.with_name(f"{base.stem}_{name}{base.suffix}") for name in weight_restrictions
    }  # fmt: skip
    device = kwargs.pop("device", None)
    samples = sample_each(
        model, dataset, observables, weight_restrictions, Settings(lr=lr, n_beta=n_beta, **kwargs), device, paths,
        loss_fn,
    )  # fmt: skip
    return compute_susceptibilities(samples, sampling_task, include_sampling_task=include_sampling_task)


@checked
def compute_susceptibilities(
    wr_map: Mapping[str, xr.DataTree],
    sampling_task: str,
    observable_names: Sequence[str] | None = None,
    include_sampling_task: bool = False,
) -> xr.DataTree:
    """χ = E[φ·L] − E[φ·l] − E[φ]·(E_full[L] − E_full[l]) of each token's loss l, devinterp's definition.

    E is the mean over a restriction's chains and draws, E_full that over those of "full"; L is the mean loss of the
    sampling task's observable, and φ = L − the mean of "full"'s `init_loss`, which is of other sequences.

    Returns a tree of `/susceptibilities`, `sus` `[sus_flat, wr]`, and `/context`, `input_ids` `[ctx_flat]`, with
    coordinates that say of each number its dataset, sequence and position. Chains that have diverged are left out.

    Raises ValueError for trees without "full" or the observables, or of several sets of sequences; ChainDivergedError
    where no chain is left.
    """
    if FULL not in wr_map or len(wr_map) == 1:
        raise ValueError(f'wr_map must hold "full" and at least one other, got {", ".join(wr_map) or "nothing"}')
    datasets = {name: dataset_of(each) for name, each in wr_map.items()}
    full, task = datasets[FULL], identifier(sampling_task)
    there = [str(each)[len(LOSSES) :] for each in full.data_vars if str(each).startswith(LOSSES)]
    wanted = [each for each in there if include_sampling_task or each != task]
    wanted = wanted if observable_names is None else list(map(identifier, observable_names))
    if missing := [each for each in (task, *wanted) if each not in there]:
        raise ValueError(f"wr_map has no losses of {', '.join(missing)}; it has those of {', '.join(there)}")
    if not wanted:
        raise ValueError(
            f"no observable but the sampling task, {task}: pass include_sampling_task=True, or sample more"
        )
    wanted = sorted(wanted)
    center = float(full["init_loss"].mean(dtype="float64"))
    full_task, full_losses = moments(FULL, full, task, wanted)
    means = {name: each.mean((0, 1), dtype=np.float64) for name, each in full_losses.items()}
    found: dict[str, np.ndarray] = {}
    for name, own in datasets.items():
        if name == FULL:
            continue
        for each in wanted:
            if not np.array_equal(own[IDS + each].values, full[IDS + each].values):
                raise ValueError(f"{name} has other sequences of {each} than full: sample both with one obs_seed")
        of_task, losses = moments(name, own, task, wanted)
        phi = of_task - center
        parts = []
        for each in wanted:
            by_chain = zip(phi, losses[each], strict=True)
            with_phi = sum(np.tensordot(own_phi, own.astype(np.float64), 1) for own_phi, own in by_chain)
            drift = full_task.mean() - means[each]
            parts.append((phi * of_task).mean() - with_phi / phi.size - phi.mean() * drift)
        found[name] = np.concatenate([each.astype(np.float32).ravel() for each in parts])
    ids = {each: full[IDS + each].values for each in wanted}
    shapes = [(len(each), each.shape[1] - 1) for each in ids.values()]
    chi = xr.Dataset(
        {"sus": (("sus_flat", "wr"), np.stack(list(found.values()), -1))},
        coords=places("sus_flat", "target_position", shapes, first=1) | {"wr": list(found)},
        attrs={"dataset_id_to_name": wanted},
    )
    context = xr.Dataset(
        {"input_ids": ("ctx_flat", np.concatenate([each.ravel() for each in ids.values()]))},
        coords=places("ctx_flat", "position", [each.shape for each in ids.values()], first=0),
        attrs={"dataset_id_to_name": wanted},
    )
    return xr.DataTree.from_dict({"/susceptibilities": chi, "/context": context})


def moments(
    name: str, samples: xr.Dataset, task: str, wanted: Sequence[str]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """L `[chains, draws]` in float64, and the losses of observables, of chains that have not diverged."""
    losses = {each: samples[LOSSES + each] for each in dict.fromkeys((task, *wanted))}
    of_task = losses[task].mean(losses[task].dims[2:], dtype="float64", skipna=False)
    whole = whole_chains(of_task, name)
    return of_task.values[whole], {each: losses[each].values[whole] for each in wanted}


def places(dimension: str, along: str, shapes: Sequence[tuple[int, ...]], first: int) -> dict[str, Any]:
    """Where each number of a flat dimension comes from; positions begin with `first`."""
    index = [np.indices(shape).reshape(2, -1) for shape in shapes]
    return {
        "dataset_id": (dimension, np.repeat(np.arange(len(shapes)), [each.shape[1] for each in index])),
        "batch": (dimension, np.concatenate([each[0] for each in index])),
        along: (dimension, np.concatenate([each[1] for each in index]) + first),
    }
