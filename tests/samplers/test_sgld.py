"""SGLD corrected for the gradients' noise: row by row the bits of the op on the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import patterning_fast as pf
from patterning_fast.chains.bank import ChainBank
from patterning_fast.chains.plan import chain_plan
from patterning_fast.posterior.components import resolve_components
from tests.models import language_model
from tests.samplers.banks import UNUSED, begin, heads_bank

SAMPLER = pf.SGLD(1e-3, gradient_noise_correction=True)
BATCH = 5


def per_sample(bank: ChainBank, row: int, step: int) -> Tensor:
    size = int(bank.row_starts.diff()[row])
    return torch.randn(BATCH, size, generator=torch.Generator().manual_seed(100 * step + row))


def test_rows_one_by_one_are_the_op_on_all() -> None:
    model = language_model()
    parameters = dict(model.named_parameters())
    bank = ChainBank(chain_plan(resolve_components(model, None), 4, True, None, (UNUSED,)), parameters)
    state = begin(SAMPLER, bank)
    whole, center = bank.params.clone().view(4, -1), bank.centers.clone()
    for step in range(3):
        grads = [per_sample(bank, row, step) for row in range(4)]
        scales = torch.stack([SAMPLER.update_row(bank, state, row, grads[row]) for row in range(4)])
        assert int(state.step) == step
        state.step += 1
        expected = pf.ops.per_sample_langevin_step(
            whole, torch.stack(grads), center, lr=state.lr, n_beta=state.n_beta, localization=state.localization,
            noise_scale=state.noise_scale, chain_ids=state.chain_ids, seed=3, step=step,
        )  # fmt: skip
        assert torch.equal(bank.params.view(4, -1), whole)
        assert torch.equal(scales, expected)
        assert scales.dtype == torch.float64


def test_rows_of_any_lengths_have_their_own_place_center_and_noise() -> None:
    """Gradients that do not differ within the batch need no correction: the step is that of their mean, to rounding."""
    bank, other = heads_bank(), heads_bank()
    state, plain = begin(SAMPLER, bank), begin(pf.SGLD(1e-3), other)
    for step in range(3):
        for row in reversed(range(bank.plan.rows)):
            mean = per_sample(bank, row, step)[0]
            SAMPLER.update_row(bank, state, row, mean.expand(BATCH, -1).contiguous())
            other.grads[state.place(row)] = mean
        state.step += 1
        pf.SGLD(1e-3).update(other, plain)
    # Parameters are below 4; each step rounds at most four times, in both.
    assert float((bank.params - other.params).abs().max()) < 3 * 8 * 4 * 2.0**-24
    assert float(bank.distances().min()) > 0.01


def test_a_frozen_row_stays() -> None:
    bank = heads_bank()
    state = begin(SAMPLER, bank)
    state.freeze(bank, 5)
    held = bank.params.clone()
    scale = SAMPLER.update_row(bank, state, 5, torch.full_like(per_sample(bank, 5, 0), torch.nan))
    assert torch.equal(bank.params, held)
    assert bool(scale.isnan())
    SAMPLER.update_row(bank, state, 6, per_sample(bank, 6, 0))
    changed = (bank.params != held).nonzero()
    assert state.place(6).start <= int(changed.min())
    assert int(changed.max()) < state.place(6).stop


def test_bad_gradients_are_refused() -> None:
    bank = heads_bank()
    state = begin(SAMPLER, bank)
    with pytest.raises(ValueError, match="call update_row for every row"):
        SAMPLER.update(bank, state)
    with pytest.raises(ValueError, match="at least 2 samples"):
        SAMPLER.update_row(bank, state, 0, per_sample(bank, 0, 0)[:1])
    with pytest.raises(ValueError, match="grads has shape"):
        SAMPLER.update_row(bank, state, 0, per_sample(bank, bank.plan.rows - 1, 0))
