"""`fused_draw`: one draw of every chain in one launch, `comoments_update` and then `per_sample_langevin_step`."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from patterning_fast import _C
from patterning_fast.arguments import Seed, Whole, explained
from patterning_fast.domains import Within
from patterning_fast.ops import library
from patterning_fast.ops.comoments_update import SCHEMA as COMOMENTS_SCHEMA
from patterning_fast.ops.comoments_update import checked as checked_comoments
from patterning_fast.ops.comoments_update import fields as comoments_fields
from patterning_fast.ops.comoments_update import refuse
from patterning_fast.ops.cuda import arrivals, kernels, launch, workspace
from patterning_fast.ops.per_sample_langevin_step import SCHEMA as STEP_SCHEMA
from patterning_fast.ops.per_sample_langevin_step import checked as checked_step
from patterning_fast.ops.per_sample_langevin_step import fields as step_fields
from patterning_fast.ops.reference.fused_draw import STEP_ARGUMENTS
from patterning_fast.ops.reference.fused_draw import fused_draw as reference


def fields(*arguments: Tensor) -> tuple[tuple[int | float, ...], tuple[int, ...]]:
    """The fields of csrc's PerSampleLangevinStep and of its ComomentsUpdate."""
    return step_fields(*arguments[:STEP_ARGUMENTS]), comoments_fields(*arguments[STEP_ARGUMENTS:])  # type: ignore[arg-type]


def cpp(*arguments: Tensor) -> None:
    refuse("fused_draw", _C.fused_draw(*fields(*arguments), torch.get_num_threads()))


def cuda(*arguments: Tensor) -> None:
    (step, comoments), device = fields(*arguments), arguments[0].device
    sums = workspace(kernels().per_sample_sums(step), torch.float64, device)
    count = arrivals(len(arguments[0]), device)
    launch(kernels().fused_draw, device, step, comoments, sums.data_ptr(), count.data_ptr())


library.register(
    f"fused_draw({STEP_SCHEMA}, {COMOMENTS_SCHEMA}) -> ()",
    reference=reference,
    cpp=cpp,
    triton="patterning_fast.ops.triton.fused_draw:fused_draw",
    cuda=cuda,
)


@explained
def fused_draw(
    params: Tensor,
    grads: Tensor,
    center: Tensor,
    losses: Tensor,
    observables: Tensor,
    loss_shift: Tensor,
    observable_shift: Tensor,
    groups: Tensor,
    count: Tensor,
    loss_sum: Tensor,
    observable_sum: Tensor,
    cross: Tensor,
    observable_square: Tensor,
    *,
    lr: float | Tensor,
    n_beta: float | Tensor,
    localization: float | Tensor,
    seed: Seed | Tensor,
    step: Whole | Tensor,
    noise_scale: float | Tensor = 1.0,
    chain_ids: Tensor | None = None,
    sample_weights: Tensor | None = None,
    sampled_fraction: Annotated[float, Within(least=0, most=1)] = 0.0,
) -> Tensor:
    """Add the losses and observables of where the chains are to the totals, and move the chains on.

    Args:
        params to center, and all by keyword: as for `per_sample_langevin_step`.
        losses to observable_square: as for `comoments_update`; its chains need not be those that move.

    Returns:
        The gradient noise scale of each chain, float64 `[chains]`.

    Raises:
        TypeError, ValueError: as those two ops.
    """
    step_arguments = checked_step(
        "fused_draw", params, grads, center, lr, n_beta, localization, seed, step, noise_scale, chain_ids,
        sample_weights, sampled_fraction,
    )  # fmt: skip
    totals = checked_comoments(
        "fused_draw", losses, observables, loss_shift, observable_shift, groups, count, loss_sum, observable_sum, cross,
        observable_square,
    )  # fmt: skip
    torch.ops.patterning_fast.fused_draw(*step_arguments, *totals)
    return step_arguments[-1]  # type: ignore[return-value]
