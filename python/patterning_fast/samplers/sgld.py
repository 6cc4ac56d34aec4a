"""Stochastic gradient Langevin dynamics (Welling & Teh 2011) on a bank of chains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from patterning_fast import ops
from patterning_fast.arguments import Positive, Whole, checked
from patterning_fast.chains.bank import ChainBank
from patterning_fast.samplers.langevin import Adjoint, Langevin, LangevinState


@dataclass(frozen=True)
@checked
class SGLD(Langevin):
    """w ← w − (lr/2)·[n_beta·g + localization·(w − w*)] + √lr·ξ, g the minibatch mean gradient.

    On U = ½a(w − w*)² the stationary variance is 1/(a(1 − lr·a/4)). With `gradient_noise_correction` only as much noise
    is injected as the minibatch lacks (Welling & Teh 2011, §4; Ahn et al. 2012; Vollmer et al. 2016), coordinate by
    coordinate; that takes the gradient of each sample. Where minibatches bring more noise than is to be injected there
    is nothing to take off: `sample` refuses that at w*, naming the largest lr that can be corrected, and warns of it
    at the last draws. Raises ValueError unless lr is finite and > 0.
    """

    lr: Positive
    gradient_noise_correction: bool = False

    def update(self, bank: ChainBank, state: LangevinState) -> None:
        """One step of every chain on the gradients in the bank, which it leaves at 0.

        Raises ValueError with `gradient_noise_correction`, which mean gradients cannot tell.
        """
        if self.gradient_noise_correction:
            raise ValueError("gradient_noise_correction needs per-sample gradients: call update_row for every row")
        super().update(bank, state)

    def force(self, bank: ChainBank, state: LangevinState, adjoint: Adjoint, grads: Tensor) -> Tensor:
        """What the step does with ∇U, turned round: lr/2·adjoint, in the places of `bank.params`."""
        return bank.spread(state.lr / 2) * adjoint.position

    def update_row(self, bank: ChainBank, state: LangevinState, row: Whole, per_sample_grads: Tensor) -> Tensor:
        """One corrected step of one chain, at `state.step`, which is left to the caller to advance after all rows.

        `per_sample_grads` is `[batch, params of the row]`, of samples drawn with replacement. Returns the row's
        gradient noise scale in samples, 0-d float64 (McCandlish et al. 2018); NaN for a frozen row, which stays.
        """
        if row in state.frozen:
            return torch.tensor(math.nan, dtype=torch.float64, device=bank.params.device)
        own = slice(row, row + 1)
        return ops.per_sample_langevin_step(
            bank.params[state.place(row)][None],
            per_sample_grads[None],
            bank.centers[state.center_place(row)],
            lr=state.lr[own],
            n_beta=state.n_beta[own],
            localization=state.localization[own],
            noise_scale=state.noise_scale[own],
            chain_ids=state.chain_ids[own],
            seed=state.seed,
            step=state.step,
        )[0]
