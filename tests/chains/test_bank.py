"""The bank: parameters and gradients of every chain are views of two flat buffers."""

from __future__ import annotations

import torch
from torch.func import functional_call

import patterning_fast as pf
from patterning_fast.chains.bank import ChainBank
from patterning_fast.chains.plan import chain_plan
from patterning_fast.posterior.components import resolve_components
from tests.models import language_model, tokens


def test_rows_are_packed_views_that_start_at_w_star() -> None:
    model = language_model()
    parameters = dict(model.named_parameters())
    heads = pf.attention_heads(model)
    plan = chain_plan(resolve_components(model, heads), 2, False, None)
    bank = ChainBank(plan, parameters)
    sizes = [each.size(parameters) for each in plan.components for _ in range(2)]
    assert bank.row_starts.diff().tolist() == sizes
    assert bank.centers.numel() == sum(sizes) // 2
    first, last = bank.params.data_ptr(), bank.params.data_ptr() + 4 * bank.params.numel()
    for row in range(plan.rows):
        for name, tensor in bank.parameters(row).items():
            assert torch.equal(tensor, parameters[name])
        for leaf in bank.leaves[row].values():
            assert first <= leaf.data_ptr() < last
    assert float(bank.distances().max()) == 0


def test_gradients_land_in_the_bank_and_are_those_of_the_whole_model() -> None:
    model = language_model()
    parameters = dict(model.named_parameters())
    plan = chain_plan(resolve_components(model, pf.attention_heads(model)), 2, False, None)
    bank = ChainBank(plan, parameters)
    with torch.no_grad():
        bank.params += 0.01 * torch.randn(bank.params.shape, generator=torch.Generator().manual_seed(1))
    data = tokens()
    for row in range(plan.rows):
        moved = {name: tensor.detach().clone().requires_grad_() for name, tensor in bank.parameters(row).items()}
        logits = functional_call(model, moved, (data[:, :-1],))
        expected = dict(zip(moved, torch.autograd.grad(logits.square().mean(), list(moved.values())), strict=True))
        functional_call(model, bank.parameters(row), (data[:, :-1],)).square().mean().backward()
        packed = torch.cat(
            [
                expected[name].flatten() if index is None else expected[name].flatten()[index]
                for name, index in plan.components[plan.component(row)].coordinates.items()
            ]
        )
        start, stop = bank.row_starts[row : row + 2].tolist()
        assert torch.allclose(bank.grads[start:stop], packed, rtol=1e-5, atol=1e-8)
        assert float(packed.abs().max()) > 0


def test_rows_do_not_touch_each_other() -> None:
    model = language_model()
    plan = chain_plan(resolve_components(model, pf.attention_heads(model)), 2, False, None)
    bank = ChainBank(plan, dict(model.named_parameters()))
    with torch.no_grad():
        next(iter(bank.leaves[3].values())).add_(1.0)
    changed = [row for row in range(plan.rows) if float(bank.distances()[row]) > 0]
    assert changed == [3]
