"""`rotary_attention`: causal attention of rotated queries and keys, for the short contexts of small language models."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patterning_fast import _C
from patterning_fast.arguments import explained
from patterning_fast.ops import library
from patterning_fast.ops.checks import address, check_dimensions, check_same_device, check_tensor
from patterning_fast.ops.reference import rotary_attention as reference

HALF = torch.bfloat16, torch.float16
REAL = torch.float32, torch.float64, *HALF


def fields(qkv: Tensor, *others: Tensor) -> tuple[int, ...]:
    """The fields of csrc's RotaryAttention, or of its RotaryAttentionGradient, in order."""
    batch, length, _, heads, width = qkv.shape
    return (*map(address, (qkv, *others)), batch, length, heads, width)


def cpp(*tensors: Tensor) -> None:
    _C.rotary_attention(fields(*tensors), torch.get_num_threads())


def gradient_cpp(*tensors: Tensor) -> None:
    _C.rotary_attention_gradient(fields(*tensors), torch.get_num_threads())


library.register(
    "rotary_attention(Tensor qkv, Tensor cos, Tensor sin, Tensor(a!) mixed, Tensor(b!) log_sums) -> ()",
    reference=reference.rotary_attention,
    cpp=cpp,
)
library.register(
    "rotary_attention_gradient(Tensor qkv, Tensor cos, Tensor sin, Tensor mixed, Tensor log_sums, Tensor grad_mixed, "
    "Tensor(a!) grad_qkv) -> ()",
    reference=reference.rotary_attention_gradient,
    cpp=gradient_cpp,
)


@explained
def rotary_attention(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Σ softmax(q·k/√head_width)·v over earlier positions, q and k turned by rotary angles (arXiv:2104.09864).

    Differentiable twice in `qkv`, the second time by torch's own operations; works under `torch.func.vmap`. Torch's own
    runs elsewhere and in half precision.

    Args:
        qkv: queries, keys and values, of any real dtype, `[batch, T, 3, heads, head_width]`; float64 runs on the
            reference.
        cos, sin: of the angles, `[T, head_width]`, the second half of each row as the first; float32 for half precision
            too.

    Returns what the heads gather, one after another: `[batch, T, heads · head_width]`.

    Raises:
        TypeError, ValueError: a tensor of the wrong dtype, shape, layout or device; an odd head_width.
    """
    op = "rotary_attention"
    check_dimensions(op, "qkv", qkv, 5)
    _, length, three, _, width = qkv.shape
    if three != 3 or width % 2:
        raise ValueError(f"{op}: qkv has shape {list(qkv.shape)}, but must have [batch, T, 3, heads, an even width]")
    check_tensor(op, "qkv", qkv, REAL, tuple(qkv.shape))
    for name, table in (("cos", cos), ("sin", sin)):
        check_tensor(op, name, table, (qkv.dtype, torch.float32) if qkv.dtype in HALF else qkv.dtype, (length, width))
    check_same_device(op, {"qkv": qkv, "cos": cos, "sin": sin})
    if qkv.device.type != "cpu" or qkv.dtype in HALF:
        query, key, value = (each.to(qkv.dtype) for each in reference.parts(qkv, cos, sin))
        return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)
    mixed, _ = Mixed.apply(qkv, cos, sin)  # type: ignore[no-untyped-call]
    return mixed.flatten(2)


class Mixed(torch.autograd.Function):
    """What heads gather `[batch, T, heads, head_width]`, and the logarithms of their sums of exponentials."""

    @staticmethod
    def forward(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        batch, length, _, heads, width = qkv.shape
        mixed, log_sums = qkv.new_empty(batch, length, heads, width), qkv.new_empty(batch, heads, length)
        torch.ops.patterning_fast.rotary_attention(qkv, cos, sin, mixed, log_sums)
        return mixed, log_sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad_mixed: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        qkv, cos, sin, mixed, log_sums = ctx.saved_tensors
        return Gradient.apply(qkv, cos, sin, mixed, log_sums, grad_mixed.contiguous()), None, None  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Any, Any]:
        mixed, log_sums = Mixed.apply(joined(info.batch_size, qkv, in_dims[0]), cos, sin)  # type: ignore[no-untyped-call]
        return tuple(each.unflatten(0, (info.batch_size, -1)) for each in (mixed, log_sums)), (0, 0)


class Gradient(torch.autograd.Function):
    """The gradient by qkv."""

    @staticmethod
    def forward(qkv: Tensor, cos: Tensor, sin: Tensor, mixed: Tensor, log_sums: Tensor, grad_mixed: Tensor) -> Tensor:
        grad_qkv = torch.empty_like(qkv)
        torch.ops.patterning_fast.rotary_attention_gradient(qkv, cos, sin, mixed, log_sums, grad_mixed, grad_qkv)
        return grad_qkv

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        qkv, cos, sin, _, _, grad_mixed = inputs
        ctx.save_for_backward(qkv, cos, sin, grad_mixed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """By torch's own operations; what heads gathered counts as a function of qkv."""
        qkv, cos, sin, grad_mixed = ctx.saved_tensors
        with torch.enable_grad():
            leaves = qkv.detach().requires_grad_(), grad_mixed.detach().requires_grad_()
            query, key, value = reference.parts(leaves[0], cos, sin)
            mixed = (reference.scores(query, key).softmax(-1) @ value).transpose(1, 2)
            (gradient,) = torch.autograd.grad(mixed, leaves[0], leaves[1], create_graph=True)
            by_qkv, by_grad_mixed = torch.autograd.grad(gradient, leaves, grad)
        return by_qkv, None, None, None, None, by_grad_mixed

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        inputs = [
            each if at in (1, 2) else joined(info.batch_size, each, in_dim)
            for at, (each, in_dim) in enumerate(zip(tensors, in_dims, strict=True))
        ]
        return Gradient.apply(*inputs).unflatten(0, (info.batch_size, -1)), 0  # type: ignore[no-untyped-call]


def joined(count: int, tensor: Tensor, in_dim: int | None) -> Tensor:
    """The examples of a vmap as one batch."""
    tensor = tensor.expand(count, *tensor.shape) if in_dim is None else tensor.movedim(in_dim, 0)
    return tensor.flatten(0, 1).contiguous()
