"""Stochastic gradient Langevin dynamics (Welling & Teh 2011) on a bank of chains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from patterning_fast import ops
from patterning_fast.chains.bank import ChainBank


@dataclass(frozen=True)
class SGLD:
    """w ← w − (lr/2)·[n_beta·g + localization·(w − w*)] + √lr·ξ, g the minibatch mean gradient.

    `lr` is ε > 0, the step size of that recursion. Raises ValueError for any other.
    """

    lr: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be a finite number > 0, got {self.lr}")

    def init(self, bank: ChainBank, n_beta: float, localization: float, seed: int) -> SGLDState:
        """The state that goes with a bank."""
        device, rows = bank.params.device, bank.plan.rows
        return SGLDState(
            lr=torch.full((rows,), self.lr, device=device),
            n_beta=torch.full((rows,), n_beta, device=device),
            localization=torch.full((rows,), localization, device=device),
            noise_scale=bank.plan.noise_scale().to(device),
            chain_ids=bank.plan.chain_ids().to(device),
            seed=torch.tensor(seed, device=device),
            step=torch.tensor(0, device=device),
        )

    def update(self, bank: ChainBank, state: SGLDState) -> None:
        """One step of every chain on the gradients in the bank, which it leaves at 0."""
        ops.langevin_step(
            bank.params,
            bank.grads,
            bank.centers,
            lr=state.lr,
            n_beta=state.n_beta,
            localization=state.localization,
            noise_scale=state.noise_scale,
            chain_ids=state.chain_ids,
            row_starts=bank.row_starts,
            center_starts=bank.center_starts,
            seed=state.seed,
            step=state.step,
        )
        state.step += 1


@dataclass
class SGLDState:
    """What the update reads beside the bank: `[rows]` each, and the 0-d seed and step of the noise."""

    lr: Tensor
    n_beta: Tensor
    localization: Tensor
    noise_scale: Tensor
    chain_ids: Tensor
    seed: Tensor
    step: Tensor
