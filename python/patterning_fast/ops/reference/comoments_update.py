"""`comoments_update` and `loss_comoments_update` in plain torch, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def comoments_update(
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
) -> None:
    """The contract is that of `patterning_fast.ops.comoments_update`."""
    loss = losses.double() - loss_shift.double()
    phi = observables.double() - observable_shift.double()
    count.index_add_(0, groups, torch.ones_like(groups, dtype=torch.float64))
    loss_sum.index_add_(0, groups, loss)
    observable_sum.index_add_(0, groups, phi)
    cross.index_add_(0, groups, phi[:, :, None] * loss[:, None, :])
    observable_square.index_add_(0, groups, phi[:, :, None] * phi[:, None, :])


def loss_comoments_update(
    losses: Tensor, loss_shift: Tensor, groups: Tensor, count: Tensor, loss_sum: Tensor, loss_square: Tensor
) -> None:
    """The contract is that of `patterning_fast.ops.loss_comoments_update`."""
    loss = losses.double() - loss_shift.double()
    count.index_add_(0, groups, torch.ones_like(groups, dtype=torch.float64))
    loss_sum.index_add_(0, groups, loss)
    loss_square.index_add_(0, groups, loss[:, :, None] * loss[:, None, :])
