"""Stochastic gradient Hamiltonian Monte Carlo (Chen et al. 2014) on a bank of chains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from patterning_fast import ops
from patterning_fast.arguments import NonNegative, Positive, Seed, Share, checked
from patterning_fast.chains.bank import ChainBank
from patterning_fast.samplers.langevin import Adjoint, Langevin, LangevinState


@dataclass(frozen=True)
@checked
class SGHMC(Langevin):
    """p ← (1 − friction)·p − lr·∇U + √(2·friction·lr)·ξ, w ← w + p: Chen et al. 2014, eq. 15; p is 0 at first.

    ∇U = n_beta·g + localization·(w − w*). On U = ½a(w − w*)² the stationary variance is
    1/(a(1 − lr·a/(2(2 − friction)))). Raises ValueError unless lr is finite and > 0 and friction lies in (0, 1].
    """

    lr: Positive
    friction: Share = 0.1

    def init(self, bank: ChainBank, lr: Tensor, n_beta: Tensor, localization: Tensor, seed: Seed) -> LangevinState:
        """The state that goes with a bank, its momentum 0; the tensors are float32 `[rows]`."""
        state = super().init(bank, lr, n_beta, localization, seed)
        state.memory = torch.zeros_like(bank.params)
        return state

    def steepest(self, lr: Positive) -> float:
        """The curvature of the potential from which on chains run away."""
        return 2 * (2 - self.friction) / lr

    def heating(self, lr: Positive, n_beta: NonNegative) -> float:
        """Variance that minibatch gradients of variance 1 add to a step, over the variance injected."""
        return lr * n_beta**2 / (2 * self.friction)

    def rule(self, state: LangevinState) -> ops.SGHMC:
        assert state.memory is not None
        return ops.SGHMC(state.memory, self.friction)

    def force(self, bank: ChainBank, state: LangevinState, adjoint: Adjoint, grads: Tensor) -> Tensor:
        """What the step does with ∇U, turned round: lr·adjoint of the new momentum, which is taken back over it too."""
        if adjoint.momentum is None:
            adjoint.momentum = torch.zeros_like(adjoint.position)
        new = adjoint.momentum.add_(adjoint.position)  # the position moves by the new momentum
        force = bank.spread(state.lr) * new
        new.mul_(1 - self.friction)
        return force
