"""Models trained side by side against the same trained one by one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

import patterning_fast as pf
from patterning_fast.training.side_by_side import train_side_by_side


@pytest.mark.parametrize("weighted", ["no", "alike", "each its own"])
def test_side_by_side_is_one_by_one(weighted: str) -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(30, 5, generator=generator), torch.randint(3, (30,), generator=generator)
    own = torch.rand(3, 30, generator=generator)
    own[1, 4] = 0.0  # is never drawn
    weights = {"no": None, "alike": own[1], "each its own": own}[weighted]
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3)))
    alone = copy.deepcopy(models)
    settings: dict[str, Any] = {"steps": 7, "batch_size": 4, "lr": 1e-2, "weight_decay": 0.1}
    measured: list[tuple[int, torch.Tensor]] = []

    def measure(step: int) -> None:
        measured.append((step, parameters_to_vector(models[1].parameters()).detach()))

    train_side_by_side(
        models,
        data,
        pf.losses.cross_entropy,
        seeds=[4, 5, 4],
        weights=weights,
        measure=measure,
        measure_every=3,
        **settings,
    )
    for at, (model, seed) in enumerate(zip(alone, (4, 5, 4), strict=True)):
        its = own[at] if weighted == "each its own" else weights
        pf.train(model, data, pf.losses.cross_entropy, seed=seed, weights=its, progress=False, **settings)
    for model, other in zip(models, alone, strict=True):
        # Adam divides a gradient by its own size, so that roundings of it, 1e-7, go into steps of 1e-2 as such.
        assert torch.allclose(
            parameters_to_vector(model.parameters()), parameters_to_vector(other.parameters()), atol=1e-5
        )
    assert [step for step, _ in measured] == [3, 6]
    assert not torch.equal(measured[0][1], measured[1][1])
