"""`weighted_cross_entropy`: the weighted sum of the losses of given logits, and its gradient in the same pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from patterning_fast import _C
from patterning_fast.arguments import explained
from patterning_fast.ops import library
from patterning_fast.ops.checks import address, check_dimensions, check_same_device, check_tensor
from patterning_fast.ops.cuda import kernels, launch
from patterning_fast.ops.linear_cross_entropy import LABELS
from patterning_fast.ops.reference.cross_entropy import weighted_cross_entropy as reference


def fields(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    ignore_index: int,
    losses: Tensor,
    grad_logits: Tensor | None,
) -> tuple[int, ...]:
    """The fields of csrc's WeightedCrossEntropy, in order."""
    return (*map(address, (logits, labels, weights, losses, grad_logits)), ignore_index, *logits.shape)


def cpp(*arguments: Any) -> None:
    status = _C.weighted_cross_entropy(fields(*arguments), torch.get_num_threads())
    if status:
        raise ValueError(f"weighted_cross_entropy: {LABELS[status]}")


def cuda(*arguments: Any) -> None:
    launch(kernels().weighted_cross_entropy, arguments[0].device, fields(*arguments))


library.register(
    "weighted_cross_entropy(Tensor logits, Tensor labels, Tensor? weights, int ignore_index, Tensor(a!) losses, "
    "Tensor(b!)? grad_logits) -> ()",
    reference=reference,
    cpp=cpp,
    triton="patterning_fast.ops.triton.weighted_cross_entropy:weighted_cross_entropy",
    cuda=cuda,
)


@explained
def weighted_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, *, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """Σ weights·losses, a 0-d tensor, and the cross entropy of each token, detached; 0 where ignored.

    Args:
        logits: float32 `[tokens, vocabulary]`; float64 runs on the reference.
        labels: int64 `[tokens]`, each in [0, vocabulary) or `ignore_index`.
        weights: of logits' dtype, `[tokens]`, any sign; None for 1.

    Raises:
        TypeError, ValueError: a tensor of the wrong dtype, shape, layout or device; a label that does not exist.
            On a GPU the last cannot be told without a wait: the token's loss is NaN, its gradient 0.
    """
    op = "weighted_cross_entropy"
    check_dimensions(op, "logits", logits, 2)
    real = logits.dtype if logits.dtype == torch.float64 else torch.float32
    check_tensor(op, "logits", logits, real, tuple(logits.shape))
    check_tensor(op, "labels", labels, torch.int64, (logits.shape[0],))
    tensors = {"logits": logits, "labels": labels}
    if weights is not None:
        check_tensor(op, "weights", weights, real, (logits.shape[0],))
        tensors["weights"] = weights
    check_same_device(op, tensors)
    total, losses = WeightedTotal.apply(logits, labels, weights, ignore_index)  # type: ignore[no-untyped-call]
    return total, losses


class WeightedTotal(torch.autograd.Function):
    """Σ weights·losses, whose gradient is made with the losses and scaled by the upstream one."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, weights: Tensor | None, ignore_index: int
    ) -> tuple[Tensor, Tensor]:
        losses = torch.empty_like(labels, dtype=logits.dtype)
        grad_logits = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        torch.ops.patterning_fast.weighted_cross_entropy(logits, labels, weights, ignore_index, losses, grad_logits)
        ctx.save_for_backward(grad_logits, losses)
        ctx.mark_non_differentiable(losses)
        return (losses if weights is None else weights * losses).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_logits, losses = ctx.saved_tensors
        return (
            None if grad_logits is None else grad_total * grad_logits,
            None,
            grad_total * losses if ctx.needs_input_grad[2] else None,
            None,
        )
