"""`comoments_update`: running first and second moments of losses and observables, by group of chains."""

from __future__ import annotations

import torch
from torch import Tensor

from patterning_fast import _C
from patterning_fast.ops import library
from patterning_fast.ops.checks import check_same_device, check_tensor
from patterning_fast.ops.reference.comoments_update import comoments_update as reference


def cpu(*tensors: Tensor) -> None:
    losses, observables, _, _, groups, count, *_ = tensors
    addresses = [tensor.data_ptr() for tensor in tensors]
    sizes = (*losses.shape, observables.shape[1], count.numel())
    status = _C.comoments_update(*addresses[:5], *sizes, *addresses[5:], torch.get_num_threads())
    if status:
        raise ValueError(f"comoments_update: groups must lie in [0, {count.numel()}), got {groups.tolist()}")


library.register(
    "comoments_update(Tensor losses, Tensor observables, Tensor loss_shift, Tensor observable_shift, Tensor groups, "
    "Tensor(a!) count, Tensor(b!) loss_sum, Tensor(c!) observable_sum, Tensor(d!) cross, "
    "Tensor(e!) observable_square) -> ()",
    reference,
    cpu,
)


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
    """Add one draw of every chain to the totals of its group, in place; l and φ are taken about their shifts.

    A shift common to all chains, near the values (the losses at w* are a good one), keeps the totals exact and lets
    totals of different chains, machines and runs merge by addition.

    Args:
        losses: float32 `[chains, losses]`; observables: float32 `[chains, observables]`.
        loss_shift: float32 `[losses]`; observable_shift: float32 `[observables]`.
        groups: int64 `[chains]`, the group each chain adds to.
        count: float64 `[groups]`, draws; loss_sum: `[groups, losses]`, Σl; observable_sum: `[groups, observables]`, Σφ;
        cross: `[groups, observables, losses]`, Σφl; observable_square: `[groups, observables, observables]`, Σφφᵀ.

    Raises:
        TypeError, ValueError: a tensor of the wrong dtype, shape, layout or device; a group that does not exist.
    """
    op = "comoments_update"
    if losses.dim() != 2 or observables.dim() != 2:
        raise ValueError(f"{op}: losses and observables need 2 dimensions, got {losses.dim()} and {observables.dim()}")
    chains, n = losses.shape
    k, g = observables.shape[1], count.numel()
    single, double = torch.float32, torch.float64
    arguments = {
        "losses": (losses, single, (chains, n)),
        "observables": (observables, single, (chains, k)),
        "loss_shift": (loss_shift, single, (n,)),
        "observable_shift": (observable_shift, single, (k,)),
        "groups": (groups, torch.int64, (chains,)),
        "count": (count, double, (g,)),
        "loss_sum": (loss_sum, double, (g, n)),
        "observable_sum": (observable_sum, double, (g, k)),
        "cross": (cross, double, (g, k, n)),
        "observable_square": (observable_square, double, (g, k, k)),
    }
    for name, (tensor, dtype, shape) in arguments.items():
        check_tensor(op, name, tensor, dtype, shape)
    tensors = {name: tensor for name, (tensor, _, _) in arguments.items()}
    check_same_device(op, tensors)
    torch.ops.patterning_fast.comoments_update(*tensors.values())
