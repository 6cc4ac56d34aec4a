"""SGLD preconditioned by RMSProp (Li et al. 2016, arXiv:1512.07666) on a bank of chains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from patterning_fast import ops
from patterning_fast.arguments import NonNegative, Positive, Seed, checked
from patterning_fast.chains.bank import ChainBank
from patterning_fast.domains import Within
from patterning_fast.samplers.langevin import Adjoint, Langevin, LangevinState


@dataclass(frozen=True)
@checked
class RMSPropSGLD(Langevin):
    """v ← decay·v + (1 − decay)·g², then SGLD with a step size of its own for each coordinate, lr/(√v̂ + stability).

    v̂ = v/(1 − decay^(step + 1)) with `bias_correction`, the form of arXiv:2609.00699; v without, that of devinterp.
    The drift that would make up for a changing preconditioner (Γ of Li et al., eq. 7) is left out, as it is there. That
    biases chains the more, the smaller stability is beside √v̂: on (a·b·x)² at nβ = 200, where λ̂ is .354, it came out as
    .353 with a stability of 1, the default, .381 with 0.1 and .518 with 0.01. Of step-size bias what is told takes
    lr/stability for every coordinate's step, the longest there is.
    Raises ValueError unless lr and stability are finite and > 0 and decay lies in [0, 1).
    """

    lr: Positive
    decay: Annotated[float, Within(least=0, below=1)] = 0.99
    stability: Positive = 1.0
    bias_correction: bool = True

    def init(self, bank: ChainBank, lr: Tensor, n_beta: Tensor, localization: Tensor, seed: Seed) -> LangevinState:
        """The state that goes with a bank, its second moment 0; the tensors are float32 `[rows]`."""
        state = super().init(bank, lr, n_beta, localization, seed)
        state.memory = torch.zeros_like(bank.params)
        return state

    def steepest(self, lr: Positive) -> float:
        """The curvature of the potential from which on chains may run away: where the gradient is small."""
        return 4 * self.stability / lr

    def heating(self, lr: Positive, n_beta: NonNegative) -> float:
        """Variance that minibatch gradients of variance 1 add to a step, over the variance injected; at most."""
        return lr / self.stability / 4 * n_beta**2

    def rule(self, state: LangevinState) -> ops.RMSProp:
        assert state.memory is not None
        return ops.RMSProp(state.memory, self.decay, self.stability, self.bias_correction)

    def force(self, bank: ChainBank, state: LangevinState, adjoint: Adjoint, grads: Tensor) -> Tensor:
        """What the step does with ∇U, turned round: half of each coordinate's step size times the adjoint.

        Step sizes are held as the chain has had them: they do not answer to the data, as noise does not.
        """
        assert state.memory is not None
        second = self.decay * state.memory + (1 - self.decay) * grads.square()
        if self.bias_correction:
            second /= 1 - self.decay ** (int(state.step) + 1)
        return bank.spread(state.lr / 2) / (second.sqrt_() + self.stability) * adjoint.position
