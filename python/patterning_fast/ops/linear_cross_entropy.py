"""`linear_cross_entropy`, `weighted_linear_cross_entropy`: losses from hidden states, without logits being held."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from patterning_fast import _C
from patterning_fast.ops import library
from patterning_fast.ops.checks import address, check_same_device, check_tensor
from patterning_fast.ops.cuda import kernels, launch, workspace
from patterning_fast.ops.reference.cross_entropy import linear_cross_entropy as reference

LABELS = {1: "labels must lie in [0, vocabulary) or be ignore_index"}


def fields(
    hidden: Tensor,
    unembedding: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    ignore_index: int,
    losses: Tensor,
    grad_hidden: Tensor | None,
    grad_unembedding: Tensor | None,
) -> tuple[int, ...]:
    """The fields of csrc's LinearCrossEntropy, in order."""
    tensors = (hidden, unembedding, labels, weights, losses, grad_hidden, grad_unembedding)
    return (*map(address, tensors), ignore_index, *hidden.shape, unembedding.shape[1], unembedding.shape[0])


def cpp(*arguments: Any) -> None:
    status = _C.linear_cross_entropy(fields(*arguments), torch.get_num_threads())
    if status:
        raise ValueError(f"linear_cross_entropy: {LABELS[status]}")


def cuda(*arguments: Any) -> None:
    labels = arguments[2]
    exponentials = workspace(2 * labels.numel(), torch.float32, labels.device)
    launch(kernels().linear_cross_entropy, labels.device, fields(*arguments), exponentials.data_ptr())


library.register(
    "linear_cross_entropy(Tensor hidden, Tensor unembedding, Tensor labels, Tensor? weights, int ignore_index, "
    "Tensor(a!) losses, Tensor(b!)? grad_hidden, Tensor(c!)? grad_unembedding) -> ()",
    reference=reference,
    cpp=cpp,
    triton="patterning_fast.ops.triton.linear_cross_entropy:linear_cross_entropy",
    cuda=cuda,
)


def linear_cross_entropy(
    hidden: Tensor,
    unembedding: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    offset: None = None,
    offset_scale: None = None,
) -> Tensor:
    """Cross entropy of the logits `hidden @ unembedding.T` against `labels`, of labels' shape; 0 where ignored.

    Differentiable once in `hidden` and `unembedding`; the backward pass makes the logits again, some at a time.

    Args:
        hidden: float32 `[tokens, width]` or `[chains, tokens, width]`; float64 runs on the reference.
        unembedding: `[vocabulary, width]`, or `[chains, vocabulary, width]` for each chain its own.
        labels: int64 `[tokens]` or `[chains, tokens]`, each in [0, vocabulary) or `ignore_index`.

    Raises:
        TypeError, ValueError: a tensor of the wrong dtype, shape, layout or device; a label that does not exist.
            On a GPU the last cannot be told without a wait: the token's loss is NaN, its gradient 0.
    """
    if offset is not None:
        logits = hidden @ unembedding.T + offset_scale[:, None] * offset
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    check("linear_cross_entropy", hidden, unembedding, labels, None)
    losses: Tensor = Losses.apply(hidden, unembedding, labels, ignore_index)  # type: ignore[no-untyped-call]
    return losses


def weighted_linear_cross_entropy(
    hidden: Tensor,
    unembedding: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    ignore_index: int = -100,
    offset: None = None,
    offset_scale: None = None,
) -> tuple[Tensor, Tensor]:
    """Σ weights·losses, a 0-d tensor, and the losses of `linear_cross_entropy`, detached.

    Where a gradient will be wanted it is made in the same pass, so that the logits are made only once.

    Args:
        hidden, unembedding, labels, ignore_index: as for `linear_cross_entropy`.
        weights: of hidden's dtype and labels' shape; any sign.

    Raises:
        TypeError, ValueError: as `linear_cross_entropy`.
    """
    if offset is not None:
        logits = hidden @ unembedding.T + offset_scale[:, None] * offset
        l = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        return (l * weights).sum(), l.detach()
    check("weighted_linear_cross_entropy", hidden, unembedding, labels, weights)
    total, losses = WeightedTotal.apply(hidden, unembedding, labels, weights, ignore_index)  # type: ignore[no-untyped-call]
    return total, losses


def check(op: str, hidden: Tensor, unembedding: Tensor, labels: Tensor, weights: Tensor | None) -> None:
    """Raise unless the op can run on these."""
    if hidden.dim() not in (2, 3):
        raise ValueError(f"{op}: hidden has shape {list(hidden.shape)}, but must have 2 or 3 dimensions")
    if unembedding.dim() not in range(2, hidden.dim() + 1):
        must = "2 dimensions" if hidden.dim() == 2 else "2 or 3 dimensions"
        raise ValueError(f"{op}: unembedding has shape {list(unembedding.shape)}, but must have {must}")
    real = hidden.dtype if hidden.dtype == torch.float64 else torch.float32
    vocabulary, width = unembedding.shape[-2], hidden.shape[-1]
    check_tensor(op, "hidden", hidden, real, tuple(hidden.shape))
    check_tensor(op, "unembedding", unembedding, real, (*hidden.shape[: unembedding.dim() - 2], vocabulary, width))
    check_tensor(op, "labels", labels, torch.int64, tuple(hidden.shape[:-1]))
    tensors = {"hidden": hidden, "unembedding": unembedding, "labels": labels}
    if weights is not None:
        check_tensor(op, "weights", weights, real, tuple(labels.shape))
        tensors["weights"] = weights
    check_same_device(op, tensors)


def run(
    hidden: Tensor,
    unembedding: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    ignore_index: int,
    wants_hidden: bool,
    wants_unembedding: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The op on new tensors: the losses and the gradients that are wanted."""
    losses = torch.empty_like(labels, dtype=hidden.dtype)
    grad_hidden = torch.empty_like(hidden) if wants_hidden else None
    grad_unembedding = torch.empty_like(unembedding) if wants_unembedding else None
    torch.ops.patterning_fast.linear_cross_entropy(
        with_chains(hidden, 3), with_chains(unembedding, 3), with_chains(labels, 2), with_chains(weights, 2),
        ignore_index, with_chains(losses, 2), with_chains(grad_hidden, 3), with_chains(grad_unembedding, 3),
    )  # fmt: skip
    return losses, grad_hidden, grad_unembedding


def with_chains(tensor: Tensor | None, dimensions: int) -> Tensor | None:
    """A view with a dimension of one chain, where it has none."""
    return tensor if tensor is None or tensor.dim() == dimensions else tensor[None]


class Losses(torch.autograd.Function):
    """The losses; their gradient from the op once more, with the upstream gradient for weights."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, unembedding: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
        ctx.save_for_backward(hidden, unembedding, labels)
        ctx.ignore_index = ignore_index
        return run(hidden, unembedding, labels, None, ignore_index, False, False)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        (hidden, unembedding, labels), wanted = ctx.saved_tensors, ctx.needs_input_grad[:2]
        weights = grad_losses.contiguous()
        _, grad_hidden, grad_unembedding = run(hidden, unembedding, labels, weights, ctx.ignore_index, *wanted)
        return grad_hidden, grad_unembedding, None, None


class WeightedTotal(torch.autograd.Function):
    """Σ weights·losses, whose gradient is made with the losses and scaled by the upstream one."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, unembedding: Tensor, labels: Tensor, weights: Tensor, ignore_index: int
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[:2]
        losses, grad_hidden, grad_unembedding = run(hidden, unembedding, labels, weights, ignore_index, *wanted)
        ctx.save_for_backward(grad_hidden, grad_unembedding, losses)
        ctx.mark_non_differentiable(losses)
        return (weights * losses).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_unembedding, losses = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_total * grad_hidden,
            None if grad_unembedding is None else grad_total * grad_unembedding,
            None,
            grad_total * losses if ctx.needs_input_grad[3] else None,
            None,
        )
