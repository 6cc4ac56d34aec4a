"""`llc` and `compute_llc`: the local learning coefficient as devinterp defines it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import xarray as xr
from torch import nn

from patterning_fast.arguments import KeywordsOf, NonNegative, Positive, checked
from patterning_fast.categories import BiasWarning
from patterning_fast.interop.devinterp.sampling import LossFunction, ParamMasks, sample, sample_each
from patterning_fast.interop.devinterp.settings import Settings
from patterning_fast.interop.devinterp.tokens import ObservableSpecs, TokenDataset
from patterning_fast.interop.devinterp.whole import dataset_of, whole_chains
from patterning_fast.posterior.components import FULL


@checked
def llc(
    model: nn.Module,
    dataset: TokenDataset,
    observables: ObservableSpecs,
    *,
    lr: Positive,
    n_beta: NonNegative,
    param_masks: ParamMasks | None = None,
    loss_fn: LossFunction | None = None,
    **kwargs: Annotated[Any, KeywordsOf(sample)],
) -> xr.Dataset:
    """`compute_llc` of what `sample` gives, which takes all further keywords.

    Losses of observables, which the LLC does not need, are taken only where `output_path` keeps them.
    """
    output, device = kwargs.pop("output_path", None), kwargs.pop("device", None)
    paths = {} if output is None else {FULL: Path(output)}
    settings = Settings(lr=lr, n_beta=n_beta, **kwargs)
    samples = sample_each(
        model, dataset, observables, {FULL: param_masks}, settings, device, paths, loss_fn, draws=output is not None
    )
    return compute_llc(samples[FULL])


@checked
def compute_llc(samples: xr.DataTree) -> xr.Dataset:
    """λ̂ = nβ·(mean of the minibatches' losses along chains − mean of `init_loss`), devinterp's definition.

    Returns `llc_mean`, `llc_std`, `llc_scalar`, `llc_per_chain` `[chain]`, `loss_trace` `[chain, step]` and `init_loss`
    [nats]. The steps of burn-in count too, of which a warning tells: leave them out by
    `compute_llc(samples.isel(step=slice(num_burnin_steps, None)))`. Chains that have diverged are NaN, and left out.

    Raises ValueError for other trees, ChainDivergedError where no chain is left.
    """
    found = dataset_of(samples)
    sampler = found.attrs["metadata"]["config"]["sampler"]
    steps = sampler["num_burnin_steps"] + sampler["num_draws"] * sampler["num_steps_bw_draws"]
    if sampler["num_burnin_steps"] and found.sizes["step"] == steps:
        warnings.warn(
            f"the LLC counts {sampler['num_burnin_steps']} steps of burn-in, as devinterp's does: leave them out by "
            f"compute_llc(samples.isel(step=slice({sampler['num_burnin_steps']}, None)))",
            BiasWarning,
            stacklevel=3,
        )
    center = float(found["init_loss"].mean(dtype="float64"))
    trace = found["sampling_loss_micro"].astype("float64").mean(("batch_sampling", "token_pos"), skipna=False)
    whole = whole_chains(trace, "compute_llc")
    per_chain = sampler["n_beta"] * (trace.mean("step", skipna=False) - center)
    mean = per_chain.isel(chain=whole).mean()
    return xr.Dataset({
        "llc_mean": mean,
        "llc_std": per_chain.isel(chain=whole).std(),
        "llc_per_chain": per_chain,
        "llc_scalar": mean.copy(),
        "loss_trace": trace,
        "init_loss": center,
    })  # fmt: skip
