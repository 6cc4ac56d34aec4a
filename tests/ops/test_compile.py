"""Ops without a compile test of their own go through `torch.compile(fullgraph=True)`, beside other work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import patterning_fast as pf
from tests.ops.test_comoments_update import inputs as comoments_inputs
from tests.ops.test_per_sample_langevin_step import inputs as step_inputs


def compiled(function: Any) -> Any:
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def test_normal() -> None:
    def draw(out: Tensor) -> Tensor:
        return pf.ops.normal_(out, seed=1, step=2) * 2

    assert torch.equal(compiled(draw)(torch.empty(2, 9)), draw(torch.empty(2, 9)))


def test_comoments_update(generator: torch.Generator) -> None:
    def update(*tensors: Tensor) -> Tensor:
        pf.ops.comoments_update(*tensors)
        return tensors[-2] + 1

    arguments = comoments_inputs(4, 5, 2, 3, generator)
    once, twice = ([tensor.clone() for tensor in arguments.values()] for _ in range(2))
    assert torch.equal(compiled(update)(*once), update(*twice))
    assert torch.equal(once[-1], twice[-1])


def test_fused_draw(generator: torch.Generator) -> None:
    def draw(w: Tensor, g: Tensor, center: Tensor, *totals: Tensor) -> Tensor:
        scale = pf.ops.fused_draw(w, g, center, *totals, lr=0.1, n_beta=1.0, localization=1.0, seed=0, step=0)
        return w + scale[:, None]

    step = step_inputs(4, 3, 7, generator)
    totals = comoments_inputs(4, 5, 2, 3, generator)
    tensors = [step["params"], step["grads"], step["center"], *totals.values()]
    once, twice = ([tensor.clone() for tensor in tensors] for _ in range(2))
    assert torch.equal(compiled(draw)(*once), draw(*twice))
