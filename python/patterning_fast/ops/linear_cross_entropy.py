"""`linear_cross_entropy`, `weighted_linear_cross_entropy`: losses from hidden states, without logits being held."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from patterning_fast import _C
from patterning_fast.arguments import explained
from patterning_fast.ops import library
from patterning_fast.ops.checks import address, check_same_device, check_tensor
from patterning_fast.ops.cuda import kernels, launch, workspace
from patterning_fast.ops.reference import cross_entropy
from patterning_fast.ops.reference.cross_entropy import linear_cross_entropy as reference

LABELS = {1: "labels must lie in [0, vocabulary) or be ignore_index"}


def fields(
    hidden: Tensor,
    unembedding: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    offset: Tensor | None,
    offset_scale: Tensor | None,
    ignore_index: int,
    losses: Tensor,
    grad_hidden: Tensor | None,
    grad_unembedding: Tensor | None,
    grad_offset_scale: Tensor | None,
) -> tuple[int, ...]:
    """The fields of csrc's LinearCrossEntropy, in order."""
    tensors = (hidden, unembedding, labels, weights, offset, offset_scale)
    outputs = (losses, grad_hidden, grad_unembedding, grad_offset_scale)
    offsets = 0 if offset is None else offset.shape[0]
    sizes = (*hidden.shape, unembedding.shape[1], unembedding.shape[0], offsets)
    return (*map(address, (*tensors, *outputs)), ignore_index, *sizes)


def cpp(*arguments: Any) -> None:
    status = _C.linear_cross_entropy(fields(*arguments), torch.get_num_threads())
    if status:
        raise ValueError(f"linear_cross_entropy: {LABELS[status]}")


def cuda(*arguments: Any) -> None:
    labels = arguments[2]
    exponentials = workspace(2 * labels.numel(), torch.float32, labels.device)
    launch(kernels().linear_cross_entropy, labels.device, fields(*arguments), exponentials.data_ptr())


library.register(
    "linear_cross_entropy(Tensor hidden, Tensor unembedding, Tensor labels, Tensor? weights, Tensor? offset, "
    "Tensor? offset_scale, int ignore_index, Tensor(a!) losses, Tensor(b!)? grad_hidden, Tensor(c!)? grad_unembedding, "
    "Tensor(d!)? grad_offset_scale) -> ()",
    reference=reference,
    cpp=cpp,
    triton="patterning_fast.ops.triton.linear_cross_entropy:linear_cross_entropy",
    cuda=cuda,
)


@explained
def linear_cross_entropy(
    hidden: Tensor,
    unembedding: Tensor,
    labels: Tensor,
    *,
    offset: Tensor | None = None,
    offset_scale: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Cross entropy of the logits `hidden @ unembedding.T` against `labels`, of labels' shape; 0 where ignored.

    With `offset`, logits of which a part is known: `hidden @ unembedding.T + offset_scale[..., None] * offset`. Where
    little of a network moves, that part stays the same, and the product with what moves may be narrow.

    Differentiable in `hidden`, `unembedding` and `offset_scale`. The backward pass makes the logits again, some at a
    time; second derivatives hold them all. Under `torch.func.vmap` examples become chains.

    Args:
        hidden: float32 `[tokens, width]` or `[chains, tokens, width]`; float64 runs on the reference.
        unembedding: `[vocabulary, width]`, or `[chains, vocabulary, width]` for each chain its own.
        labels: int64 `[tokens]` or `[chains, tokens]`, each in [0, vocabulary) or `ignore_index`.
        offset: of hidden's dtype, `[tokens, vocabulary]`, or `[chains, tokens, vocabulary]` for each chain its own;
            finite; a constant, without a gradient.
        offset_scale: of hidden's dtype and labels' shape; there where `offset` is.

    Raises:
        TypeError, ValueError: a tensor of the wrong dtype, shape, layout or device; one of `offset` and `offset_scale`
            without the other; an offset that wants a gradient; a label that does not exist.
            On a GPU the last cannot be told without a wait: the token's loss is NaN, its gradient 0.
    """
    check("linear_cross_entropy", hidden, unembedding, labels, None, offset, offset_scale)
    losses: Tensor = Losses.apply(  # type: ignore[no-untyped-call]
        hidden, unembedding, labels, offset, offset_scale, ignore_index
    )
    return losses


@explained
def weighted_linear_cross_entropy(
    hidden: Tensor,
    unembedding: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    offset: Tensor | None = None,
    offset_scale: Tensor | None = None,
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor]:
    """Σ weights·losses, a 0-d tensor, and the losses of `linear_cross_entropy`, detached.

    Where a gradient will be wanted it is made in the same pass, so that the logits are made only once. Under
    `torch.func.vmap` that of an unembedding all examples share is made for each of them, and then added up.

    Args:
        hidden, unembedding, labels, offset, offset_scale, ignore_index: as for `linear_cross_entropy`.
        weights: of hidden's dtype and labels' shape; any sign.

    Raises:
        TypeError, ValueError: as `linear_cross_entropy`.
    """
    check("weighted_linear_cross_entropy", hidden, unembedding, labels, weights, offset, offset_scale)
    wanted = wants_gradient(hidden), wants_gradient(unembedding), wants_gradient(offset_scale)
    losses, *gradients = LossesAndGradients.apply(  # type: ignore[no-untyped-call]
        hidden, unembedding, labels, weights, offset, offset_scale, ignore_index, wanted
    )
    total: Tensor = WeightedTotal.apply(  # type: ignore[no-untyped-call]
        hidden, unembedding, offset_scale, weights, losses, *gradients
    )
    return total, losses


def check(
    op: str,
    hidden: Tensor,
    unembedding: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    offset: Tensor | None,
    offset_scale: Tensor | None,
) -> None:
    """Raise unless the op can run on these."""
    if hidden.dim() not in (2, 3):
        raise ValueError(f"{op}: hidden has shape {list(hidden.shape)}, but must have 2 or 3 dimensions")
    real = hidden.dtype if hidden.dtype == torch.float64 else torch.float32
    check_shared_by_chains(op, "unembedding", unembedding, hidden)
    vocabulary, width = unembedding.shape[-2], hidden.shape[-1]
    check_tensor(op, "hidden", hidden, real, tuple(hidden.shape))
    check_tensor(op, "unembedding", unembedding, real, (*hidden.shape[: unembedding.dim() - 2], vocabulary, width))
    check_tensor(op, "labels", labels, torch.int64, tuple(hidden.shape[:-1]))
    tensors = {"hidden": hidden, "unembedding": unembedding, "labels": labels}
    if weights is not None:
        check_tensor(op, "weights", weights, real, tuple(labels.shape))
        tensors["weights"] = weights
    if (offset is None) != (offset_scale is None):
        given, missing = ("offset_scale", "offset") if offset is None else ("offset", "offset_scale")
        raise ValueError(f"{op}: {given} is given without {missing}; pass both, or neither")
    if offset is not None and offset_scale is not None:
        check_shared_by_chains(op, "offset", offset, hidden)
        check_tensor(op, "offset", offset, real, (*hidden.shape[: offset.dim() - 2], hidden.shape[-2], vocabulary))
        check_tensor(op, "offset_scale", offset_scale, real, tuple(labels.shape))
        if wants_gradient(offset):
            raise ValueError(f"{op}: offset wants a gradient, but is a constant here; pass offset.detach()")
        tensors |= {"offset": offset, "offset_scale": offset_scale}
    check_same_device(op, tensors)


def check_shared_by_chains(op: str, name: str, tensor: Tensor, hidden: Tensor) -> None:
    """Raise ValueError unless `tensor` is a matrix, or one for each chain where `hidden` has chains."""
    if tensor.dim() not in range(2, hidden.dim() + 1):
        must = "2 dimensions" if hidden.dim() == 2 else "2 or 3 dimensions"
        raise ValueError(f"{op}: {name} has shape {list(tensor.shape)}, but must have {must}")


def wants_gradient(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad and torch.is_grad_enabled()


Results = tuple[Tensor | None, ...]
"""Losses, and the gradients in hidden, unembedding and offset_scale that are wanted."""


def run(
    hidden: Tensor,
    unembedding: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    offset: Tensor | None,
    offset_scale: Tensor | None,
    ignore_index: int,
    wanted: tuple[bool, bool, bool],
) -> Results:
    """The op on new tensors."""
    losses = torch.empty_like(labels, dtype=hidden.dtype)
    grad_hidden = torch.empty_like(hidden) if wanted[0] else None
    grad_unembedding = torch.empty_like(unembedding) if wanted[1] else None
    grad_offset_scale = torch.empty_like(losses) if wanted[2] else None
    torch.ops.patterning_fast.linear_cross_entropy(
        with_chains(hidden, 3), with_chains(unembedding, 3), with_chains(labels, 2), with_chains(weights, 2),
        with_chains(offset, 3), with_chains(offset_scale, 2), ignore_index, with_chains(losses, 2),
        with_chains(grad_hidden, 3), with_chains(grad_unembedding, 3), with_chains(grad_offset_scale, 2),
    )  # fmt: skip
    return losses, grad_hidden, grad_unembedding, grad_offset_scale


def with_chains(tensor: Tensor | None, dimensions: int) -> Tensor | None:
    """A view with a dimension of one chain, where it has none."""
    return tensor if tensor is None or tensor.dim() == dimensions else tensor[None]


class Examples:
    """The examples of a vmap and the chains in each of them, as the chains of one run."""

    def __init__(self, count: int, hidden: Tensor, in_dim: int | None) -> None:
        self.count = count
        shape = [size for dim, size in enumerate(hidden.shape) if dim != in_dim]
        self.chains = shape[0] if len(shape) == 3 else None

    def join(
        self, tensor: Tensor | None, in_dim: int | None, dimensions: int, may_share: bool = False
    ) -> Tensor | None:
        """`[examples · chains, ...]` of a tensor with so many dimensions for a chain; as it is where all share it."""
        if tensor is None or (may_share and in_dim is None and tensor.dim() == dimensions):
            return tensor
        tensor = tensor.expand(self.count, *tensor.shape) if in_dim is None else tensor.movedim(in_dim, 0)
        if self.chains is not None:
            if tensor.dim() == 1 + dimensions:
                tensor = tensor[:, None].expand(-1, self.chains, *tensor.shape[1:])
            tensor = tensor.flatten(0, 1)
        return tensor.contiguous()

    def part(self, tensor: Tensor | None) -> Tensor | None:
        """`[examples, ...]` of what was made of what `join` made."""
        return tensor if tensor is None or self.chains is None else tensor.unflatten(0, (self.count, self.chains))


class Losses(torch.autograd.Function):
    """The losses; their gradient from the op once more, with the upstream gradient for weights."""

    @staticmethod
    def forward(
        hidden: Tensor,
        unembedding: Tensor,
        labels: Tensor,
        offset: Tensor | None,
        offset_scale: Tensor | None,
        ignore_index: int,
    ) -> Tensor:
        nothing = False, False, False
        losses: Tensor = run(hidden, unembedding, labels, None, offset, offset_scale, ignore_index, nothing)[0]  # type: ignore[assignment]
        return losses

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:-1])
        ctx.ignore_index = inputs[-1]

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        hidden, unembedding, labels, offset, offset_scale = ctx.saved_tensors
        needed = ctx.needs_input_grad
        grad_hidden, grad_unembedding, grad_offset_scale = Gradients.apply(  # type: ignore[no-untyped-call]
            hidden, unembedding, labels, grad_losses.contiguous(), offset, offset_scale, ctx.ignore_index,
            (needed[0], needed[1], needed[4]),
        )  # fmt: skip
        return grad_hidden, grad_unembedding, None, None, grad_offset_scale, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor | None, int]:
        hidden, unembedding, labels, offset, offset_scale, ignore_index = inputs
        examples = Examples(info.batch_size, hidden, in_dims[0])
        losses = Losses.apply(  # type: ignore[no-untyped-call]
            examples.join(hidden, in_dims[0], 2),
            examples.join(unembedding, in_dims[1], 2, may_share=True),
            examples.join(labels, in_dims[2], 1),
            examples.join(offset, in_dims[3], 2, may_share=True),
            examples.join(offset_scale, in_dims[4], 1),
            ignore_index,
        )
        return examples.part(losses), 0


class Gradients(torch.autograd.Function):
    """The gradients in hidden, unembedding and offset_scale of the weighted losses, themselves differentiable."""

    @staticmethod
    def forward(
        hidden: Tensor,
        unembedding: Tensor,
        labels: Tensor,
        weights: Tensor,
        offset: Tensor | None,
        offset_scale: Tensor | None,
        ignore_index: int,
        wanted: tuple[bool, bool, bool],
    ) -> Results:
        return run(hidden, unembedding, labels, weights, offset, offset_scale, ignore_index, wanted)[1:]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
        ctx.save_for_backward(*inputs[:-2])
        ctx.ignore_index, ctx.wanted = inputs[-2:]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, unembedding, labels, weights, offset, scale = ctx.saved_tensors
        at = [place for place, wanted in enumerate(ctx.wanted) if wanted]

        def gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
            *differentiated, weights = inputs
            losses_of = partial(cross_entropy.losses, labels=labels, offset=offset, ignore_index=ctx.ignore_index)
            found: tuple[Tensor, ...] = torch.func.vjp(losses_of, *differentiated)[1](weights)
            return tuple(found[place] for place in at)

        inputs = [each for each in (hidden, unembedding, scale, weights) if each is not None]
        grads = tuple(each for place, each in enumerate(upstream) if place in at)
        *found, by_weights = torch.func.vjp(gradients, *inputs)[1](grads)
        by_scale = None if scale is None else found[2]
        return found[0], found[1], None, by_weights, None, by_scale, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Results, tuple[int | None, ...]]:
        return over_examples(Gradients, info, in_dims, inputs)


class LossesAndGradients(torch.autograd.Function):
    """The op as a function that has a rule for vmap, and no derivative."""

    @staticmethod
    def forward(
        hidden: Tensor,
        unembedding: Tensor,
        labels: Tensor,
        weights: Tensor,
        offset: Tensor | None,
        offset_scale: Tensor | None,
        ignore_index: int,
        wanted: tuple[bool, bool, bool],
    ) -> Results:
        return run(hidden, unembedding, labels, weights, offset, offset_scale, ignore_index, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
        ctx.mark_non_differentiable(*(tensor for tensor in output if tensor is not None))

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:  # torch.compile asks for one
        return (None,) * 8

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Results, tuple[int | None, ...]]:
        return over_examples(LossesAndGradients, info, in_dims, inputs)


def over_examples(
    function: Any, info: Any, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]
) -> tuple[Results, tuple[int | None, ...]]:
    """The rule for vmap of what `run` computes: examples are chains."""
    hidden, unembedding, labels, weights, offset, offset_scale, ignore_index, wanted = inputs
    # Within a vmap tensors do not tell that they want a gradient; here, outside it, they do.
    differentiated = hidden, unembedding, offset_scale
    wanted = tuple(wants or wants_gradient(x) for wants, x in zip(wanted, differentiated, strict=True))
    examples = Examples(info.batch_size, hidden, in_dims[0])
    results = function.apply(
        examples.join(hidden, in_dims[0], 2),
        # Each example gets the gradient of its own losses.
        examples.join(unembedding, in_dims[1], 2, may_share=not wanted[1]),
        examples.join(labels, in_dims[2], 1),
        examples.join(weights, in_dims[3], 1),
        examples.join(offset, in_dims[4], 2, may_share=True),
        examples.join(offset_scale, in_dims[5], 1),
        ignore_index,
        wanted,
    )
    *first, grad_unembedding, grad_offset_scale = map(examples.part, results)
    if grad_unembedding is not None and grad_unembedding.dim() > unembedding.dim() + (in_dims[1] is None):
        grad_unembedding = grad_unembedding.sum(1)  # over chains, which share it
    parts = *first, grad_unembedding, grad_offset_scale
    return parts, tuple(None if part is None else 0 for part in parts)


class WeightedTotal(torch.autograd.Function):
    """Σ weights·losses, whose gradient was made with the losses and is scaled by the upstream one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        hidden: Tensor,
        unembedding: Tensor,
        offset_scale: Tensor | None,
        weights: Tensor,
        losses: Tensor,
        *gradients: Tensor | None,
    ) -> Tensor:
        return (weights * losses).sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[4:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        losses, *gradients = ctx.saved_tensors
        of_inputs = [None if gradient is None else grad_total * gradient for gradient in gradients]
        of_weights = grad_total * losses if ctx.needs_input_grad[3] else None
        return (*of_inputs, of_weights, None, None, None, None)
