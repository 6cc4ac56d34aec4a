"""`fused_draw`: exactly its two parts, in one launch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import patterning_fast as pf
from tests.ops import test_comoments_update, test_per_sample_langevin_step
from tests.ops.forms import FORMS, skip_if_interpreted, use_form


def inputs(
    chains: int, batch: int, params: int, n: int, k: int, generator: torch.Generator
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    step = test_per_sample_langevin_step.inputs(chains, batch, params, generator)
    return step, test_comoments_update.inputs(chains, n, k, 3, generator)


SIZES = [(1, 2, 1, 1, 1), (5, 3, 67, 1025, 3), (0, 3, 5, 4, 2), (4, 2, 0, 0, 0), (70, 4, 130, 33, 17)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("chains", "batch", "params", "n", "k"), SIZES)
def test_is_its_two_parts(
    chains: int, batch: int, params: int, n: int, k: int, form: str, generator: torch.Generator
) -> None:
    skip_if_interpreted(form, chains, n)
    step, totals = inputs(chains, batch, params, n, k, generator)
    with use_form("fused_draw", form) as device:

        def moved(arguments: dict[str, Any]) -> list[Any]:
            values = arguments.values()
            return [value.to(device, copy=True) if isinstance(value, Tensor) else value for value in values]

        fused = moved(step), moved(totals)
        torch.ops.patterning_fast.fused_draw(*fused[0], *fused[1])
        apart = moved(step), moved(totals)
        torch.ops.patterning_fast.per_sample_langevin_step(*apart[0])
        torch.ops.patterning_fast.comoments_update(*apart[1])
    for one, other in zip([*fused[0], *fused[1]], [*apart[0], *apart[1]], strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def test_public_face_adds_where_the_chains_are_and_moves_them(generator: torch.Generator) -> None:
    step, totals = inputs(3, 4, 10, 6, 2, generator)
    numbers = {name: step[name] for name in ("lr", "n_beta", "localization", "noise_scale", "chain_ids")}
    w, alone = step["params"].clone(), step["params"].clone()
    apart = {name: tensor.clone() for name, tensor in totals.items()}
    scale = pf.ops.fused_draw(w, step["grads"], step["center"], *totals.values(), seed=1, step=2, **numbers)
    expected = pf.ops.per_sample_langevin_step(alone, step["grads"], step["center"], seed=1, step=2, **numbers)
    pf.ops.comoments_update(**apart)
    assert torch.equal(w, alone)
    assert torch.equal(scale, expected)
    assert all(torch.equal(totals[name], apart[name]) for name in totals)


def test_a_group_that_does_not_exist_moves_nothing(generator: torch.Generator) -> None:
    step, totals = inputs(3, 2, 5, 4, 1, generator)
    totals["groups"] = torch.tensor([0, 3, 1])
    before = step["params"].clone()
    with pytest.raises(ValueError, match="fused_draw: groups must lie in"):
        torch.ops.patterning_fast.fused_draw(*step.values(), *totals.values())
    assert torch.equal(step["params"], before)


def test_opcheck(generator: torch.Generator) -> None:
    step, totals = inputs(2, 3, 5, 4, 2, generator)
    torch.library.opcheck(torch.ops.patterning_fast.fused_draw.default, (*step.values(), *totals.values()))
