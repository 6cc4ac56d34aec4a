"""`comoments_update`, `loss_comoments_update`: running moments of losses and observables, by group of chains."""

from __future__ import annotations

import torch
from torch import Tensor

from patterning_fast import _C
from patterning_fast.arguments import explained
from patterning_fast.ops import library
from patterning_fast.ops.checks import address, check_dimensions, check_same_device, check_tensor
from patterning_fast.ops.cuda import kernels, launch
from patterning_fast.ops.reference import comoments_update as reference

GROUPS = {1: "groups must lie in [0, groups of the totals)"}


def fields(*tensors: Tensor) -> tuple[int, ...]:
    """The fields of csrc's ComomentsUpdate, in order."""
    losses, observables, _, _, _, count, *_ = tensors
    return (*map(address, tensors), *losses.shape, observables.shape[1], count.numel())


def loss_fields(*tensors: Tensor) -> tuple[int, ...]:
    """The fields of csrc's LossComomentsUpdate, in order."""
    losses, _, _, count, *_ = tensors
    return (*map(address, tensors), *losses.shape, count.numel())


def refuse(op: str, status: int) -> None:
    """Raise ValueError for a status that is not 0."""
    if status:
        raise ValueError(f"{op}: {GROUPS[status]}")


def cpp(*tensors: Tensor) -> None:
    refuse("comoments_update", _C.comoments_update(fields(*tensors), torch.get_num_threads()))


def loss_cpp(*tensors: Tensor) -> None:
    refuse("loss_comoments_update", _C.loss_comoments_update(loss_fields(*tensors), torch.get_num_threads()))


def cuda(*tensors: Tensor) -> None:
    launch(kernels().comoments_update, tensors[0].device, fields(*tensors))


def loss_cuda(*tensors: Tensor) -> None:
    launch(kernels().loss_comoments_update, tensors[0].device, loss_fields(*tensors))


SCHEMA = (
    "Tensor losses, Tensor observables, Tensor loss_shift, Tensor observable_shift, Tensor groups, Tensor(c!) count, "
    "Tensor(d!) loss_sum, Tensor(e!) observable_sum, Tensor(f!) cross, Tensor(g!) observable_square"
)

library.register(
    f"comoments_update({SCHEMA}) -> ()",
    reference=reference.comoments_update,
    cpp=cpp,
    triton="patterning_fast.ops.triton.comoments_update:comoments_update",
    cuda=cuda,
)
library.register(
    "loss_comoments_update(Tensor losses, Tensor loss_shift, Tensor groups, Tensor(a!) count, Tensor(b!) loss_sum, "
    "Tensor(c!) loss_square) -> ()",
    reference=reference.loss_comoments_update,
    cpp=loss_cpp,
    triton="patterning_fast.ops.triton.comoments_update:loss_comoments_update",
    cuda=loss_cuda,
)


@explained
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
            On a GPU the last cannot be told without a wait: the chain is left out.
    """
    tensors = checked(
        "comoments_update", losses, observables, loss_shift, observable_shift, groups, count, loss_sum, observable_sum,
        cross, observable_square,
    )  # fmt: skip
    torch.ops.patterning_fast.comoments_update(*tensors)


def checked(
    op: str,
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
) -> tuple[Tensor, ...]:
    """The op's arguments, or the error."""
    check_dimensions(op, "losses", losses, 2)
    check_dimensions(op, "observables", observables, 2)
    (chains, n), k, g = losses.shape, observables.shape[1], count.numel()
    return check_all(
        op,
        {
            "losses": (losses, torch.float32, (chains, n)),
            "observables": (observables, torch.float32, (chains, k)),
            "loss_shift": (loss_shift, torch.float32, (n,)),
            "observable_shift": (observable_shift, torch.float32, (k,)),
            "groups": (groups, torch.int64, (chains,)),
            "count": (count, torch.float64, (g,)),
            "loss_sum": (loss_sum, torch.float64, (g, n)),
            "observable_sum": (observable_sum, torch.float64, (g, k)),
            "cross": (cross, torch.float64, (g, k, n)),
            "observable_square": (observable_square, torch.float64, (g, k, k)),
        },
    )


@explained
def loss_comoments_update(
    losses: Tensor, loss_shift: Tensor, groups: Tensor, count: Tensor, loss_sum: Tensor, loss_square: Tensor
) -> None:
    """`comoments_update` with the losses as their own observables, for loss kernels; Σllᵀ is symmetric: half the work.

    Args:
        losses: float32 `[chains, losses]`; loss_shift: float32 `[losses]`; groups: int64 `[chains]`.
        count: float64 `[groups]`; loss_sum: `[groups, losses]`, Σl; loss_square: `[groups, losses, losses]`, Σllᵀ.

    Raises:
        TypeError, ValueError: a tensor of the wrong dtype, shape, layout or device; a group that does not exist.
            On a GPU the last cannot be told without a wait: the chain is left out.
    """
    op = "loss_comoments_update"
    check_dimensions(op, "losses", losses, 2)
    (chains, n), g = losses.shape, count.numel()
    tensors = check_all(
        op,
        {
            "losses": (losses, torch.float32, (chains, n)),
            "loss_shift": (loss_shift, torch.float32, (n,)),
            "groups": (groups, torch.int64, (chains,)),
            "count": (count, torch.float64, (g,)),
            "loss_sum": (loss_sum, torch.float64, (g, n)),
            "loss_square": (loss_square, torch.float64, (g, n, n)),
        },
    )
    torch.ops.patterning_fast.loss_comoments_update(*tensors)


def check_all(op: str, wanted: dict[str, tuple[Tensor, torch.dtype, tuple[int, ...]]]) -> tuple[Tensor, ...]:
    """The tensors, once each has its dtype and shape and all are on one device."""
    for name, (tensor, dtype, shape) in wanted.items():
        check_tensor(op, name, tensor, dtype, shape)
    check_same_device(op, {name: tensor for name, (tensor, _, _) in wanted.items()})
    return tuple(tensor for tensor, _, _ in wanted.values())
