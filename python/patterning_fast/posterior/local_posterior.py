"""The localised tempered posterior at a trained point (arXiv:2308.12108)."""

from __future__ import annotations

import copy
import math

import torch
import xarray as xr
from torch import Tensor, nn

from patterning_fast.arguments import NonNegative, checked
from patterning_fast.domains import made_by
from patterning_fast.plain_torch import plain_torch
from patterning_fast.posterior.data import check_data, loss_shape, present_in, sample_count, to_device
from patterning_fast.posterior.devices import Device
from patterning_fast.posterior.losses import Batch, Data, Loss, weighted_mean
from patterning_fast.posterior.probing import Probe, few_samples
from patterning_fast.posterior.weights import shown, weights_for
from patterning_fast.posterior.wrapped import Model


@checked
@made_by("make one with pf.LocalPosterior(model, loss, data, n_beta=..., localization=...)")
class LocalPosterior:
    """p(w) ∝ exp(−n_beta·L_ρ(w) − (localization/2)·|w − w*|²) around the weights w* that `model` has now.

    Args:
        model: any nn.Module with float32 parameters. A copy is kept, in eval mode; `model` itself is never touched.
            Of a compiled, DataParallel or DistributedDataParallel model, the model within.
        loss: `loss(model, batch)` to `[batch]` or `[batch, tokens]` in nats, e.g. `pf.losses.next_token`.
        data: samples along the first dimension: a tensor, a tuple of tensors such as `(x, y)`, or a mapping of tensors;
            or `SparseFeatures`.
        n_beta: nβ ≥ 0, inverse temperature times n; 0 is the control that ignores the loss.
        localization: γ ≥ 0, strength of the pull to w*; one of the two must be positive.
        weights: ρ of each sample or token, shaped as the losses of `data`; None for all 1.
        random_loss: take a loss that draws random numbers. Their noise is then in every estimate, whose attributes say
            so, and results do not repeat.
        device: where to sample, such as "cuda"; None for where `model` is. The copy and the data go there, and `model`
            stays where it is.

    Parameters with `requires_grad=False` stay at w*, in every component.

    Raises:
        TypeError, ValueError: parameters that are not float32 or not finite, none that may move, empty data, ids
            outside the vocabulary, n_beta or localization out of range, losses that are reduced, random, of several
            samples together or without a gradient, that change their input or the model; weights that do not fit them;
            a device that is not there.
    """

    @plain_torch()
    def __init__(
        self,
        model: Model,
        loss: Loss,
        data: Data,
        *,
        n_beta: NonNegative,
        localization: NonNegative,
        weights: Tensor | xr.DataArray | None = None,
        random_loss: bool = False,
        device: Device | None = None,
    ) -> None:
        check_held(n_beta, localization)
        check_parameters(model)
        check_data("data", data, model)
        kept = copy.deepcopy(model) if device is None else copy.deepcopy(model).to(device)
        self.model = kept.eval().requires_grad_(False)
        self.data = to_device(data, str(self.device))
        self.n_beta, self.localization = n_beta, localization
        self.moving = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        """Names of the parameters that may move."""
        self.loss, self.random_loss = loss, random_loss
        shape = self.loss_shape(self.data)
        Probe(self.model, loss, few_samples(self.data)).check(self.moving, random_loss)
        present = present_in(loss, data, shape)
        self.present = None if present is None else present.to(self.device)
        """Which losses of the data there are, bool, shaped as they are; None for all."""
        self.share = self.share_present()
        """Of the losses that are there; every step divides by it."""
        self.weights = None if weights is None else self.laid_out(weights)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def item_count(self) -> int:
        """n: the samples or tokens that L_n is a mean over."""
        if self.present is not None:
            return int(self.present.sum())
        return sample_count(self.data) * math.prod(self.loss_shape(self.data))

    def loss_shape(self, data: Data) -> tuple[int, ...]:
        """Shape of one sample's losses: () or (tokens,)."""
        return loss_shape(self.model, self.loss, data)

    def mean_loss(self, model: nn.Module, batch: Batch, samples: Tensor) -> Tensor:
        """L_ρ on a minibatch: the mean of ρ·l of the given `samples`, whose data are `batch`."""
        if self.weights is None:
            return self.mean_unweighted(model, batch, samples, self.share)
        return weighted_mean(self.loss, model, batch, self.weights[samples] / self.share)

    def mean_unweighted(self, model: nn.Module, batch: Batch, samples: Tensor, share: float) -> Tensor:
        """The same without ρ, on samples drawn from some of which a `share` of the losses is present: 1 for all."""
        factors = None if self.present is None else self.present[samples].to(torch.float32) / share
        return weighted_mean(self.loss, model, batch, factors)

    def share_present(self, samples: Tensor | None = None) -> float:
        """The share of the losses of some samples, None for all, that is present."""
        if self.present is None:
            return 1.0
        some = self.present if samples is None else self.present[samples]
        return float(some.mean(dtype=torch.float64))

    def laid_out(self, weights: Tensor | xr.DataArray) -> Tensor:
        """ρ shaped as the losses of the data."""
        shape = self.loss_shape(self.data)
        return weights_for(weights, sample_count(self.data), shape, self.present).to(self.device)

    def reweighted(self, weights: Tensor | xr.DataArray) -> LocalPosterior:
        """The same posterior with weights ρ; model and data are shared."""
        same = copy.copy(self)
        same.weights = self.laid_out(weights)
        return same

    def tempered(self, n_beta: NonNegative, localization: NonNegative) -> LocalPosterior:
        """The same posterior at another nβ and γ; model and data are shared. Raises ValueError where both are 0."""
        check_held(n_beta, localization)
        same = copy.copy(self)
        same.n_beta, same.localization = n_beta, localization
        return same


def check_held(n_beta: float, localization: float) -> None:
    """Raise ValueError where nothing would hold the chains."""
    if n_beta == 0 and localization == 0:
        raise ValueError("n_beta and localization are both 0: nothing would hold the chains; set one of them > 0")


def check_parameters(model: nn.Module) -> None:
    """Raise TypeError or ValueError unless `model` has parameters, all float32 and finite."""
    parameters = dict(model.named_parameters())
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no parameters: there is nothing to sample")
    if not any(tensor.requires_grad for tensor in parameters.values()):
        raise ValueError(
            f"no parameter of {type(model).__name__} requires a gradient, so none may move: call "
            "model.requires_grad_(), or set requires_grad on what is to move"
        )
    wrong = [f"{name} of {tensor.dtype}" for name, tensor in parameters.items() if tensor.dtype != torch.float32]
    if wrong:
        raise TypeError(f"parameters must be float32, got {shown(wrong)}; use model.float()")
    broken = [name for name, tensor in parameters.items() if not bool(torch.isfinite(tensor.detach()).all())]
    if broken:
        raise ValueError(f"the parameters {shown(broken)} hold values that are not finite")
