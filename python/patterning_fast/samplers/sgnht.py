"""The stochastic gradient Nosé–Hoover thermostat (Ding et al. 2014) on a bank of chains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from patterning_fast import ops
from patterning_fast.arguments import NonNegative, Positive, Seed, checked
from patterning_fast.chains.bank import ChainBank
from patterning_fast.ops.reference.philox import INDEX_BITS
from patterning_fast.samplers.langevin import Langevin, LangevinState

MOMENTUM_STEP = 2**INDEX_BITS - 1
"""Where in the noise the first momentum is drawn: the last step there is, which no chain comes to."""


@dataclass(frozen=True)
@checked
class SGNHT(Langevin):
    """p ← (1 − thermostat·lr)·p − lr·∇U + √(2·diffusion·lr)·ξ, w ← w + lr·p: Ding et al. 2014, algorithm 2.

    Each chain's thermostat moves by lr·(|p|²/params − 1), so that unknown noise of the gradients is taken out again.
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

    def rule(self, state: LangevinState) -> ops.SGNHT:
        assert state.memory is not None
        assert state.thermostat is not None
        return ops.SGNHT(state.memory, state.thermostat, self.diffusion)
