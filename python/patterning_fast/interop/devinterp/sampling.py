"""`sample`: chains of one restriction, with the losses of every step and draw in a tree of devinterp's layout."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from patterning_fast.arguments import Count, NonNegative, Positive, Seed, Whole, checked
from patterning_fast.categories import SubstitutionWarning
from patterning_fast.chains.plan import ChainPlan, Setting
from patterning_fast.domains import Mend
from patterning_fast.durable import make_folder, put_folder, writing
from patterning_fast.engine.evaluation import EvaluationSet, evaluation_sets
from patterning_fast.engine.identity import VERSIONS, fingerprint, run_identity
from patterning_fast.interop.devinterp.chains import Traces, trace_chains
from patterning_fast.interop.devinterp.settings import SamplingMethod, Settings
from patterning_fast.interop.devinterp.tokens import (
    ObservableSpecs,
    TokenDataset,
    batches,
    in_turn,
    observed,
    token_ids,
)
from patterning_fast.plain_torch import plain_torch
from patterning_fast.posterior.components import FULL, Component, component, component_of
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.losses import next_token

ParamMasks = Annotated[
    Mapping[str, Tensor | None], Mend('pass create_param_masks(model, "l0h1"), or {parameter: bool mask or None}')
]
"""What moves: a bool mask of each parameter's shape, None for all of it."""

LossFunction = Callable[[nn.Module, Tensor], Tensor]
"""`(model, input_ids [batch, T + 1])` to losses `[batch, T]`."""

RUN = "run"
"""Attribute of a tree: hash of all that its numbers depend on."""


@checked
def sample(
    model: nn.Module,
    dataset: TokenDataset,
    observables: ObservableSpecs,
    *,
    lr: Positive,
    n_beta: NonNegative,
    param_masks: ParamMasks | None = None,
    num_chains: Count = 4,
    num_draws: Count = 200,
    batch_size: Count = 32,
    num_burnin_steps: Whole = 0,
    num_steps_bw_draws: Count = 1,
    num_init_loss_batches: Count = 32,
    init_seed: Seed = 100,
    batches_per_draw: Count = 3,
    obs_seed: int = 1337,
    gradient_accumulation_steps: Count = 1,
    localization: NonNegative = 0.0,
    noise_level: float = 1.0,
    llc_weight_decay: float = 0.0,
    bounding_box_size: Positive | None = None,
    sampling_method: SamplingMethod = "sgmcmc_sgld",
    sampling_method_kwargs: Mapping[str, object] | None = None,
    rmsprop_eps: Positive | None = None,
    rmsprop_alpha: NonNegative | None = None,
    shuffle: bool = True,
    match_sampling_input_ids_across_chains: bool = True,
    init_noise: NonNegative | None = None,
    device: str | None = None,
    save_metrics: bool = False,
    output_path: str | Path | None = None,
    loss_fn: LossFunction | None = None,
) -> xr.DataTree:
    """Sample the posterior of `model` restricted to `param_masks`, and keep all losses, as devinterp's `sample` does.

    Arguments are devinterp's, and so are the sequences that a seed gives. What is not supported is refused by name:
    `noise_level`, `llc_weight_decay`, `init_noise`, `save_metrics`. Without `output_path` the tree is in memory; with
    it, a Zarr store is written there, complete or not at all, and read again by the very same call.

    Returns a tree with `sampling_loss` `[chain, draw, batch, token_pos]`, `sampling_loss_micro` and
    `sampling_input_ids_micro` of every step, `init_loss` `[chain, token_pos]`, and for each observable `loss_NAME`
    `[chain, draw, batch_NAME, token_pos]` and `input_ids_NAME`; losses in nats, NaN from where a chain has diverged.

    Raises:
        TypeError, ValueError: arguments that cannot work, and what is not supported; a store of another run at
            `output_path`. ChainDivergedError: all chains have diverged. ImportError: a store without zarr.
    """
    settings = Settings(
        lr=lr, n_beta=n_beta, batch_size=batch_size, num_chains=num_chains, num_draws=num_draws,
        num_burnin_steps=num_burnin_steps, num_steps_bw_draws=num_steps_bw_draws,
        gradient_accumulation_steps=gradient_accumulation_steps, num_init_loss_batches=num_init_loss_batches,
        init_seed=init_seed, localization=localization, noise_level=noise_level, llc_weight_decay=llc_weight_decay,
        bounding_box_size=bounding_box_size, sampling_method=sampling_method,
        sampling_method_kwargs=sampling_method_kwargs, init_noise=init_noise, save_metrics=save_metrics,
        shuffle=shuffle, match_sampling_input_ids_across_chains=match_sampling_input_ids_across_chains,
        rmsprop_eps=rmsprop_eps, rmsprop_alpha=rmsprop_alpha, batches_per_draw=batches_per_draw, obs_seed=obs_seed,
    )  # fmt: skip
    paths = {} if output_path is None else {FULL: Path(output_path)}
    return sample_each(model, dataset, observables, {FULL: param_masks}, settings, device, paths, loss_fn)[FULL]


@plain_torch()
def sample_each(
    model: nn.Module,
    dataset: TokenDataset,
    observables: Mapping[str, TokenDataset],
    restrictions: Mapping[str, ParamMasks | None],
    settings: Settings,
    device: str | None,
    paths: Mapping[str, Path],
    loss_fn: LossFunction | None,
    draws: bool = True,
) -> dict[str, xr.DataTree]:
    """The trees of several restrictions, sampled in one bank, which shares what chains recall of minibatches.

    Without `draws` the observables' losses are left out.
    """
    known = {id(dataset): token_ids("dataset", dataset)}
    ids = known[id(dataset)]
    probes = observed(observables, known, settings)
    for name, probe in probes.items():
        if probe.shape[1] != ids.shape[1]:
            raise ValueError(
                f"observables: {name} has sequences of {probe.shape[1]} tokens and dataset of {ids.shape[1]}; "
                "cut them to one length"
            )
    posterior = LocalPosterior(
        in_float32(model),
        next_token if loss_fn is None else loss_fn,  # type: ignore[arg-type]  # of token ids alone
        ids,
        n_beta=settings.n_beta,
        localization=settings.localization,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
    )
    shape = posterior.loss_shape(posterior.data)
    if shape != (ids.shape[1] - 1,):
        raise ValueError(
            f"loss_fn must return a loss of each next token, [batch, {ids.shape[1] - 1}], got [batch, "
            f"{', '.join(map(str, shape))}]"
        )
    moving = {name: restriction(posterior, name, masks) for name, masks in restrictions.items()}
    sets = evaluation_sets(posterior, [(name, probe.to(posterior.device)) for name, probe in probes.items()])
    runs = {name: run_of(posterior, each, sets, settings) for name, each in moving.items() if name in paths}
    trees = {
        name: stored(path, runs[name], settings) for name, path in paths.items() if name in moving and path.exists()
    }
    plan = plan_of([each for name, each in moving.items() if name not in trees], settings)
    if plan.components:
        order = batches(len(ids), settings)
        traces = trace_chains(posterior, plan, sets, order.to(posterior.device), settings, draws)
        for at, each in enumerate(plan.components):
            made = tree(traces, at, ids, probes if draws else {}, order, settings)
            if each.name in paths:
                made = keep(made, paths[each.name], runs[each.name])
            trees[each.name] = made
    return {name: trees[name] for name in moving}


def in_float32(model: nn.Module) -> nn.Module:
    """The model; a copy in float32, where it is not."""
    narrow = {str(each.dtype) for each in model.parameters() if each.is_floating_point()} - {"torch.float32"}
    if narrow:
        warnings.warn(
            f"the model's parameters are {', '.join(sorted(narrow))}: chains run on a copy in float32, as narrower "
            "weights round their steps away",
            SubstitutionWarning,
            stacklevel=5,
        )
    return copy.deepcopy(model).float() if narrow else model


def restriction(posterior: LocalPosterior, name: str, masks: ParamMasks | None) -> Component:
    """The component of masks; of all that may move, for None."""
    if masks is None:
        return component_of(dict(posterior.model.named_parameters()), name, posterior.moving)
    frozen = {each for each, _ in posterior.model.named_parameters()} - set(posterior.moving)
    return component(posterior.model, name, {each: mask for each, mask in masks.items() if each not in frozen})


def plan_of(components: list[Component], settings: Settings) -> ChainPlan:
    setting = Setting(settings.lr, settings.n_beta, settings.localization)
    return ChainPlan(components, settings.num_chains, False, settings.num_chains, (setting,))


def run_of(posterior: LocalPosterior, moving: Component, sets: list[EvaluationSet], settings: Settings) -> str:
    """Hash of all that a restriction's numbers depend on, but for versions."""
    identity = run_identity(posterior, settings.sampler(), plan_of([moving], settings), sets, {}, settings.as_stored())
    return fingerprint({name: part for name, part in identity.items() if name != VERSIONS})


def tree(
    traces: Traces, at: int, ids: Tensor, probes: Mapping[str, Tensor], order: Tensor, settings: Settings
) -> xr.DataTree:
    """A component's samples, as devinterp lays them out."""
    micro = traces.minibatches[at]
    chains, steps, _, tokens = micro.shape
    at_draws = micro[:, list(settings.draw_steps)]
    drawn = at_draws.reshape(chains, len(settings.draw_steps), -1, settings.batch_size, tokens).mean(2)
    first = order[:1] if settings.match_sampling_input_ids_across_chains else order
    seen = in_turn(first, 0, steps * settings.gradient_accumulation_steps)
    read = ids[seen].numpy().reshape(len(first), *micro.shape[1:3], tokens + 1)
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {
        "init_loss": (("chain", "token_pos"), traces.init),
        "sampling_loss": (("chain", "draw", "batch", "token_pos"), drawn),
        "sampling_loss_micro": (("chain", "step", "batch_sampling", "token_pos"), micro),
        "sampling_input_ids_micro": (
            ("chain", "step", "batch_sampling", "token"),
            np.broadcast_to(read, (chains, *read.shape[1:])),
        ),
    }
    for name, each in probes.items():
        variables[f"loss_{name}"] = (("chain", "draw", f"batch_{name}", "token_pos"), traces.observables[name][at])
        variables[f"input_ids_{name}"] = ((f"batch_{name}", "token"), each.numpy())
    config = {
        "sampler": settings.as_stored(),
        "observables": [
            {
                "type": "ObserveDifferentDataset",
                "obs_id": name,
                "batches_per_draw": len(each) // settings.batch_size,
            }
            for name, each in probes.items()
        ],
        "chain_buffer_size": min(50, settings.num_draws),
        "shared_observable_dims": ["token", "token_pos"],
        "tokenizer_context_length": tokens + 1,
    }
    return xr.DataTree(xr.Dataset(variables, attrs={"metadata": {"config": config}, "completed": 1}))


def keep(made: xr.DataTree, path: Path, run: str) -> xr.DataTree:
    """Write a tree to a Zarr store, whole or not at all; the tree, read from there when it is looked at."""
    made.attrs[RUN] = run
    path = path.absolute()
    with writing("samples", path):
        make_folder(path.parent)
        try:
            put_folder(path, lambda partial: made.to_zarr(partial, consolidated=False, zarr_format=3))
        except ImportError as error:
            raise ImportError(
                "samples are written by zarr, which is not installed: pip install 'patterning_fast[traces]', or leave "
                "out output_path"
            ) from error
    return opened(path)


def opened(path: Path) -> xr.DataTree:
    return xr.open_datatree(path, engine="zarr", consolidated=False)


def stored(path: Path, run: str, settings: Settings) -> xr.DataTree:
    """The tree of this very run at a path; raises ValueError where something else is there."""
    try:
        found = opened(path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"output_path: {path} is there, and is no store of samples: remove it, or name another"
        ) from error
    if found.attrs.get(RUN) == run:
        return found
    before = found.attrs.get("metadata", {}).get("config", {}).get("sampler", {})
    differ = [
        f"{name} was {before.get(name)}, and is {value}"
        for name, value in settings.as_stored().items()
        if before.get(name) != value
    ]
    what = "; ".join(differ) or "the model, its data, the loss, or what moves"
    raise ValueError(
        f"output_path: {path} has the samples of another run, which differs by {what}: remove it, or name another"
    )
