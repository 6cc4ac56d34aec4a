"""Banks of chains that the samplers are tried on, and every sampler."""

from __future__ import annotations

import torch
from torch import Tensor

import patterning_fast as pf
from patterning_fast.chains.bank import ChainBank
from patterning_fast.chains.plan import Setting, chain_plan
from patterning_fast.posterior.components import resolve_components
from patterning_fast.samplers.langevin import LangevinState, Sampler
from tests.models import language_model

SAMPLERS: list[Sampler] = [
    pf.SGLD(1e-3),
    pf.RMSPropSGLD(1e-3),
    pf.RMSPropSGLD(1e-3, bias_correction=False),
    pf.SGHMC(1e-3),
    pf.SGNHT(1e-2),
]


UNUSED = Setting(1.0, 1.0, 1.0)
"""Of the plan: `begin` gives each row its own numbers."""


def heads_bank(chains: int = 4, antithetic: bool = False, only: str | None = None) -> ChainBank:
    """The chains of a small language model's heads, or of `only` one of them, and of the full model."""
    model = language_model()
    heads = {name: each for name, each in pf.attention_heads(model).items() if only in (None, name)}
    heads |= pf.components(model, "full")
    plan = chain_plan(resolve_components(model, heads), chains, antithetic, None, (UNUSED,))
    return ChainBank(plan, dict(model.named_parameters()))


def begin(sampler: Sampler, bank: ChainBank, seed: int = 3) -> LangevinState:
    """A state with other numbers in every row."""
    rows = torch.arange(bank.plan.rows)
    return sampler.init(bank, sampler.lr * (1 + rows / len(rows)), 10.0 + rows, 50.0 - 0.5 * rows, seed)


def gradients(bank: ChainBank, step: int) -> Tensor:
    """Some gradients, the same in every bank of the same rows."""
    noise = torch.randn(bank.params.shape, generator=torch.Generator().manual_seed(step))
    return bank.params + noise


def advance(sampler: Sampler, bank: ChainBank, state: LangevinState, steps: range) -> None:
    for step in steps:
        bank.grads.copy_(gradients(bank, step))
        sampler.update(bank, state)
