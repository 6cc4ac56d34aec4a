"""`bif` and `compute_bif`: Bayesian influence, correlations of losses along chains, as devinterp defines it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from patterning_fast.arguments import Count, KeywordsOf, NonNegative, Positive, Whole, checked
from patterning_fast.interop.devinterp.response import IDS, LOSSES
from patterning_fast.interop.devinterp.sampling import LossFunction, ParamMasks, sample
from patterning_fast.interop.devinterp.tokens import ObservableSpecs, TokenDataset
from patterning_fast.interop.devinterp.whole import dataset_of, whole_chains

CorrelationMethod = Literal["token", "sequence"]
ChainReduction = Literal["stack", "mean"]
All = Literal["all"]


@checked
def bif(
    model: nn.Module,
    dataset: TokenDataset,
    observables: ObservableSpecs,
    *,
    lr: Positive,
    n_beta: NonNegative,
    param_masks: ParamMasks | None = None,
    correlation_method: CorrelationMethod = "token",
    reduce_chain_dimension_method: ChainReduction = "stack",
    average_tokenwise_bif: bool = False,
    compute_covariance: bool = False,
    bif_batch_size: Count = 32,
    bif_device: str | torch.device | None = None,
    loss_fn: LossFunction | None = None,
    **kwargs: Annotated[Any, KeywordsOf(sample)],
) -> xr.Dataset:
    """`compute_bif` of what `sample` gives, which takes all further keywords."""
    samples = sample(
        model, dataset, observables, lr=lr, n_beta=n_beta, param_masks=param_masks, loss_fn=loss_fn, **kwargs
    )
    return compute_bif(
        samples,
        correlation_method=correlation_method,
        reduce_chain_dimension_method=reduce_chain_dimension_method,
        average_tokenwise_bif=average_tokenwise_bif,
        compute_covariance=compute_covariance,
        batch_size=bif_batch_size,
        device=bif_device,
    )


@checked
def compute_bif(
    samples: xr.DataTree,
    *,
    correlation_method: CorrelationMethod = "token",
    reduce_chain_dimension_method: ChainReduction = "stack",
    loss_keys: All | Sequence[str] = "all",
    batch_index_range_1: All | Sequence[Whole] = "all",
    batch_index_range_2: All | Sequence[Whole] = "all",
    average_tokenwise_bif: bool = False,
    compute_covariance: bool = False,
    batch_size: Count = 32,
    device: str | torch.device | None = None,
) -> xr.Dataset:
    """Correlations of losses of sequences over chains and draws, devinterp's definition.

    Args:
        samples: what `sample` returns.
        correlation_method: of each token with each ("token"), or of the means of sequences.
        reduce_chain_dimension_method: take draws of all chains together, or of the mean of chains.
        loss_keys: the observables, in this order; "all" in that of the alphabet.
        batch_index_range_1, batch_index_range_2: which of their sequences, by number; "all" for all.
        average_tokenwise_bif: give the mean over pairs of tokens, which takes no more than sequences do.
        compute_covariance: in place of correlations.
        batch_size: sequences whose pairs of tokens are correlated at a time. device: where.

    Returns `influences` `[batch_1, batch_2]`, for tokens `[batch_1, batch_2, target_position, target_position_T]`,
    float32, and `input_ids` `[batch, position]`. Chains that have diverged are left out.

    Raises ValueError for other trees, observables or sequences that there are not; ChainDivergedError.
    """
    found = dataset_of(samples)
    there = sorted(str(each)[len(LOSSES) :] for each in found.data_vars if str(each).startswith(LOSSES))
    keys = there if loss_keys == "all" else list(loss_keys)
    if missing := [each for each in keys if each not in there]:
        raise ValueError(f"loss_keys must be among {', '.join(there)}, got {', '.join(missing)}")
    losses = np.concatenate([found[LOSSES + each].values for each in keys], 2)
    losses = losses[whole_chains(xr.DataArray(losses.mean((2, 3)), dims=("chain", "draw")), "compute_bif")]
    series = torch.as_tensor(losses, device=device or ("cuda" if torch.cuda.is_available() else "cpu")).double()
    if correlation_method == "sequence":
        series = series.mean(3, keepdim=True)
    series = series.mean(0) if reduce_chain_dimension_method == "mean" else series.flatten(0, 1)
    series = standardised(series.permute(1, 2, 0), compute_covariance)
    which = [chosen(name, each, len(series)) for name, each in
             (("batch_index_range_1", batch_index_range_1), ("batch_index_range_2", batch_index_range_2))]  # fmt: skip
    one, other = (series[each] for each in which)
    dims, coords = ("batch_1", "batch_2"), dict[str, Any](zip(("batch_1", "batch_2"), which, strict=True))
    if correlation_method == "sequence" or average_tokenwise_bif:
        influences = products(one.mean(1, keepdim=True), other.mean(1, keepdim=True), batch_size)[..., 0, 0]
    else:
        influences = products(one, other, batch_size)
        positions = np.arange(1, series.shape[1] + 1)
        dims = (*dims, "target_position", "target_position_T")  # type: ignore[assignment]
        coords |= {"target_position": positions, "target_position_T": positions}
    ids = np.concatenate([found[IDS + each].values for each in keys])
    variables = {"influences": (dims, influences), "input_ids": (("batch", "position"), ids)}
    return xr.Dataset(variables, coords=coords)


def standardised(series: Tensor, covariance: bool) -> Tensor:
    """Series `[..., N]` scaled so that their products are correlations, or covariances; float32."""
    centred = series - series.mean(-1, keepdim=True)
    scale = centred.shape[-1] ** 0.5 * centred.std(-1, correction=0, keepdim=True)
    return (centred / ((centred.shape[-1] - 1) ** 0.5 if covariance else scale)).float()


def chosen(name: str, which: All | Sequence[int], count: int) -> np.ndarray:
    """Numbers of sequences; raises ValueError for those that there are not."""
    numbers = np.arange(count) if which == "all" else np.asarray(which, dtype=np.int64)
    if numbers.size == 0 or numbers.max() >= count:
        raise ValueError(f"{name} must be numbers of the {count} sequences, below {count}, got {which}")
    return numbers


def products(one: Tensor, other: Tensor, batch_size: int) -> np.ndarray:
    """Sums over N of `[n, t, N]` times `[m, t, N]`: `[n, m, t, t]`, float32, so many n at a time."""
    found = np.empty((len(one), len(other), one.shape[1], other.shape[1]), np.float32)
    for start in range(0, len(one), batch_size):
        part = torch.einsum("atn,bsn->abts", one[start : start + batch_size], other)
        found[start : start + batch_size] = part.cpu().numpy()
    return found
