"""The bank: parameters and gradients of every chain are views of two flat buffers."""

from __future__ import annotations

import pytest
import torch

import patterning_fast as pf
from patterning_fast.chains.bank import ChainBank
from patterning_fast.chains.plan import Setting, chain_plan
from patterning_fast.posterior.components import resolve_components
from tests.models import language_model

SETTINGS = (Setting(1e-3, 10.0, 100.0), Setting(1e-4, 10.0, 100.0))


def bank(chains: int = 2) -> ChainBank:
    model = language_model()
    plan = chain_plan(resolve_components(model, pf.attention_heads(model)), chains, False, None, SETTINGS)
    return ChainBank(plan, dict(model.named_parameters()))


def test_rows_are_packed_views_that_start_at_w_star() -> None:
    parameters, each = dict(language_model().named_parameters()), bank()
    sizes = [component.size(parameters) for component in each.plan.components for _ in range(4)]
    assert each.row_starts.diff().tolist() == sizes
    assert each.centers.numel() == sum(sizes) // 4
    first, last = each.params.data_ptr(), each.params.data_ptr() + 4 * each.params.numel()
    for row in range(each.plan.rows):
        for name, leaf in each.leaves(slice(row, row + 1)).items():
            index = each.plan.components[each.plan.component(row)].coordinates[name]
            expected = parameters[name] if index is None else parameters[name].flatten()[index]
            assert torch.equal(leaf[0], expected)
            assert first <= leaf.data_ptr() < last
    assert float(each.distances().max()) == 0


@pytest.mark.parametrize("rows", [slice(4, 5), slice(4, 8)])
def test_gradients_land_in_the_bank(rows: slice) -> None:
    """The gradient of Σ cᵢ|leaf of row i|² is 2cᵢ times the row, for one row and for several at once."""
    each = bank(chains=4)
    factor = torch.arange(1.0, 1 + rows.stop - rows.start)
    leaves = each.leaves(rows)
    squares = [(factor * leaf.flatten(1).square().sum(1)).sum() for leaf in leaves.values()]
    each.add_gradients(torch.stack(squares).sum(), leaves, rows)
    start, stop = each.starts[rows.start], each.starts[rows.stop]
    params, grads = (flat[start:stop].view(len(factor), -1) for flat in (each.params, each.grads))
    assert torch.equal(grads, 2 * factor[:, None] * params)
    assert float(each.grads[:start].abs().max()) == 0
    assert float(each.grads[stop:].abs().max()) == 0


def test_rows_do_not_touch_each_other() -> None:
    each = bank()
    with torch.no_grad():
        next(iter(each.leaves(slice(3, 4)).values())).add_(1.0)
    changed = [row for row in range(each.plan.rows) if float(each.distances()[row]) > 0]
    assert changed == [3]
