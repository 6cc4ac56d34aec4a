"""The stochastic gradient Nosé–Hoover thermostat (Ding et al. 2014) on a bank of chains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patterning_fast import ops
from patterning_fast.arguments import NonNegative, Numbers, Positive, Seed, checked
from patterning_fast.chains.bank import ChainBank
from patterning_fast.ops.reference.philox import INDEX_BITS
from patterning_fast.samplers.langevin import Langevin, LangevinState

MOMENTUM_STEP = 2**INDEX_BITS - 1
"""Where in the noise the first momentum is drawn: the last step there is, which no chain comes to."""


@dataclass(frozen=True)
@checked
class SGNHT(Langevin):
    """p ← (1 − thermostat·lr)·p − lr·∇U + √(2·diffusion·lr)·ξ, w ← w + lr·p: Ding et al. 2014, algorithm 2.

    Each chain's thermostat moves by lr·(|p|²/params − 1), so that unknown noise of the gradients is taken out again, as
    far as it is the same at all places and in all coordinates. Noise that grows with the place is not: on (a·b·x)² at
    nβ = 5,000 with minibatches of 64, where λ̂ is .400, it came out as .468 with R̂ 1.005; SGHMC met it.
    ∇U = n_beta·g + localization·(w − w*). On U = ½a(w − w*)² the stationary variance is (1 − thermostat·lr/2)/a in
    chains of many parameters, and lr must be well below 2/√a: it is a time, where SGLD's is a time squared.
    Raises ValueError unless lr is finite and > 0 and diffusion finite and ≥ 0.
    """

    lr: Positive
    diffusion: NonNegative = 0.01

    def init(self, bank: ChainBank, lr: Tensor, n_beta: Tensor, localization: Tensor, seed: Seed) -> LangevinState:
        """The state that goes with a bank; the tensors are float32 `[rows]`.

        The momentum is standard normal, a pure function of (seed, chain id), and opposite in the two chains of an
        antithetic pair; the thermostat is `diffusion`.
        """
        state = super().init(bank, lr, n_beta, localization, seed)
        state.memory = torch.empty_like(bank.params)
        state.thermostat = torch.full_like(state.lr, self.diffusion)
        for row in range(bank.plan.rows):
            momentum = state.memory[state.place(row)]
            ops.normal_(momentum[None], seed=state.seed, step=MOMENTUM_STEP, chain_ids=state.chain_ids[row : row + 1])
            momentum *= state.noise_scale[row]
        return state

    def steepest(self, lr: Positive) -> float:
        """The curvature of the potential from which on chains run away."""
        return 4 / lr**2

    def inflation(self, curvature: Numbers, lr: Positive) -> np.ndarray:
        """Stationary variance over the posterior's 1/a, on U = ½a(w − w*)², without noise of gradients."""
        left = 1 / super().inflation(curvature, lr)
        thermostat = np.divide(self.diffusion, left, out=np.full_like(left, np.inf), where=left > 0)
        return np.where(left > 0, np.maximum(1 - thermostat * lr / 2, 0.0), np.inf)

    def heating(self, lr: Positive, n_beta: NonNegative) -> float:
        """NaN: the thermostat takes out what is the same everywhere, and how much is left is not known."""
        return math.nan

    def rule(self, state: LangevinState) -> ops.SGNHT:
        assert state.memory is not None
        assert state.thermostat is not None
        return ops.SGNHT(state.memory, state.thermostat, self.diffusion)
