"""`rotary_attention`: every form against the reference, torch's attention, derivatives, vmap, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from patterning_fast.models.attention_only import rotary_table
from patterning_fast.ops.reference import rotary_attention as reference
from patterning_fast.ops.rotary_attention import rotary_attention
from tests.ops.forms import FORMS, use_form

OP = "rotary_attention"
CPP_FORMS = [form for form in FORMS if form.startswith("cpp@")]
SIZES = [  # batch, length, heads, width
    (1, 1, 1, 2),
    (0, 5, 2, 16),
    (2, 7, 3, 6),
    (3, 16, 2, 16),
    (2, 17, 1, 32),
    (1, 65, 4, 16),
    (2, 64, 2, 64),
    (1, 131, 1, 20),
    (1, 0, 2, 16),
]


def inputs(size: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """qkv with scores of spread 3 about, the rotary table, and a gradient of what heads gather."""
    batch, length, heads, width = size
    qkv = 1.7 * torch.randn(batch, length, 3, heads, width, generator=generator)
    return qkv, *rotary_table(length, width), torch.randn(batch, length, heads, width, generator=generator)


def run(qkv: Tensor, cos: Tensor, sin: Tensor, grad_mixed: Tensor) -> tuple[Tensor, ...]:
    """What heads gather, the logs of their sums and the gradient of qkv, from outputs full of NaN."""
    batch, length, _, heads, _ = qkv.shape
    mixed, log_sums = torch.full_like(grad_mixed, math.nan), qkv.new_full((batch, heads, length), math.nan)
    gradient = torch.full_like(qkv, math.nan)
    torch.ops.patterning_fast.rotary_attention(qkv, cos, sin, mixed, log_sums)
    torch.ops.patterning_fast.rotary_attention_gradient(qkv, cos, sin, mixed, log_sums, grad_mixed, gradient)
    return mixed, log_sums, gradient


def exact(qkv: Tensor, cos: Tensor, sin: Tensor, grad_mixed: Tensor) -> tuple[Tensor, ...]:
    """The same by torch's own operations and autograd in float64."""
    leaf = qkv.double().requires_grad_()
    query, key, value = reference.parts(leaf, cos.double(), sin.double())
    products = reference.scores(query, key)
    mixed = (products.softmax(-1) @ value).transpose(1, 2)
    (gradient,) = torch.autograd.grad((mixed * grad_mixed).sum(), leaf)
    return mixed.detach(), products.logsumexp(-1).detach(), gradient


def tolerance(qkv: Tensor, grad_mixed: Tensor) -> tuple[float, float, float]:
    """Bounds of the errors of what `run` gives, each the roundings that a term goes through times what it can be.

    A score is a sum of `width` products of turned (3 roundings) and scaled (1) coordinates: off by (width + 8) u times
    the product of two norms over √width. Each gathered value is then off by twice that, and the roundings of exp (3)
    and of a sum of `length` terms, times the largest value. A gradient is a sum over `length` of products of a
    probability, off by the same, and of differences of gradients of probabilities, which are below `2 |value| |grad|`.
    """
    batch, length, _, _, width = qkv.shape
    if batch * length == 0:
        return 0.0, 0.0, 0.0
    u, norms = 2.0**-24, qkv.norm(dim=-1).amax().item()
    score = (width + 8) * u * norms**2 / math.sqrt(width)
    relative = 2 * score + (length + 8) * u
    grads = grad_mixed.norm(dim=-1).amax().item()
    return relative * norms, score + relative, 2 * (2 * relative + width * u) * length * norms * grads * max(norms, 1.0)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("form", [*CPP_FORMS, "reference"])
def test_form_agrees_with_autograd(form: str, size: tuple[int, ...], generator: torch.Generator) -> None:
    given = inputs(size, generator)
    with use_form(OP, form):
        actual = run(*given)
    for one, other, bound in zip(actual, exact(*given), tolerance(given[0], given[-1]), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=bound)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_errors_are_no_larger_than_of_torch(size: tuple[int, ...], generator: torch.Generator) -> None:
    """The root mean square against float64 is at most twice that of torch's attention in float32."""
    qkv, cos, sin, grad_mixed = inputs(size, generator)
    leaf = qkv.clone().requires_grad_()
    mixed = F.scaled_dot_product_attention(*reference.parts(leaf, cos, sin), is_causal=True).transpose(1, 2)
    (gradient,) = torch.autograd.grad((mixed * grad_mixed).sum(), leaf)
    here, true = run(qkv, cos, sin, grad_mixed), exact(qkv, cos, sin, grad_mixed)
    for one, other, value in [(here[0], mixed, true[0]), (here[2], gradient, true[2])]:
        floor = 2 * 2.0**-24 * value.abs().sum()  # where torch happens to be exact, as for a single position
        assert (one - value).norm() <= 2 * (other.double() - value).norm() + floor


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_same_bits_on_every_isa(size: tuple[int, ...], generator: torch.Generator) -> None:
    given, results = inputs(size, generator), []
    for form in CPP_FORMS:
        with use_form(OP, form):
            results.append(run(*given))
    for result in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(result, results[0], strict=True))


def test_same_bits_for_any_number_of_threads(threads: int, generator: torch.Generator) -> None:
    given = inputs((3, 37, 3, 20), generator)
    results = run(*given)
    torch.set_num_threads(1)
    assert all(torch.equal(*pair) for pair in zip(results, run(*given), strict=True))


def test_the_future_is_not_seen(generator: torch.Generator) -> None:
    qkv, cos, sin, _ = inputs((2, 40, 2, 16), generator)
    before = rotary_attention(qkv, cos, sin)
    qkv[:, 23:] = 30 * torch.randn(qkv[:, 23:].shape, generator=generator)
    assert torch.equal(rotary_attention(qkv, cos, sin)[:, :23], before[:, :23])


@pytest.mark.parametrize("scale", [1e3, 1e-30])
def test_extreme_scores(scale: float, generator: torch.Generator) -> None:
    """Attention to one position only, or to all alike."""
    qkv, cos, sin, grad_mixed = inputs((2, 33, 2, 16), generator)
    qkv[:, :, :2] *= scale
    actual, expected = run(qkv, cos, sin, grad_mixed), exact(qkv, cos, sin, grad_mixed)
    assert all(bool(value.isfinite().all()) for value in actual)
    # Scores of 1e6 are right to 0.1 or so: nearly all positions attend to one place with probability 1.
    close = (actual[0] - expected[0]).abs().amax((-2, -1)) < 1e-3
    assert close.double().mean() > (0.95 if scale > 1 else 0.999)


def test_gradcheck(generator: torch.Generator) -> None:
    qkv, cos, sin, _ = (tensor.double() for tensor in inputs((2, 5, 2, 6), generator))
    assert torch.autograd.gradcheck(lambda x: rotary_attention(x, cos, sin), qkv.requires_grad_())


def test_differentiable_once_only(generator: torch.Generator) -> None:
    qkv, cos, sin, _ = inputs((1, 5, 1, 4), generator)
    leaf = qkv.requires_grad_()
    (gradient,) = torch.autograd.grad(rotary_attention(leaf, cos, sin).square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        gradient.sum().backward()


@pytest.mark.parametrize("of_each", [False, True])
def test_vmap_is_a_loop(of_each: bool, generator: torch.Generator) -> None:
    """Values and gradients of their sum, and `of_each` example, are those of one example at a time, to the bit."""
    examples = [inputs((2, 19, 3, 16), generator)[0] for _ in range(3)]
    cos, sin = rotary_table(19, 16)
    stacked = torch.stack(examples)

    def total(qkv: Tensor) -> Tensor:
        return rotary_attention(qkv, cos, sin).square().sum()

    mixed = torch.func.vmap(lambda qkv: rotary_attention(qkv, cos, sin))(stacked)
    assert torch.equal(mixed, torch.stack([rotary_attention(qkv, cos, sin) for qkv in examples]))
    expected = torch.stack([torch.func.grad(total)(qkv) for qkv in examples])
    if of_each:
        gradients = torch.func.vmap(torch.func.grad(total))(stacked)
    else:
        gradients = torch.func.grad(lambda all_of: torch.func.vmap(total)(all_of).sum())(stacked)
    assert torch.equal(gradients, expected)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo does so
def test_compiles_whole(generator: torch.Generator) -> None:
    qkv, cos, sin, _ = inputs((2, 9, 2, 6), generator)

    def total(leaf: Tensor) -> Tensor:
        return rotary_attention(leaf, cos, sin).square().sum()

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(function(leaf), leaf)[0] for function in (total, compiled)
                 for leaf in [qkv.clone().requires_grad_()]]  # fmt: skip
    assert torch.equal(*gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, generator: torch.Generator) -> None:
    """Within rounding of what float32 makes of the same: probabilities and values to a few parts in 2^8, or 2^11."""
    qkv, cos, sin, _ = inputs((2, 19, 3, 16), generator)
    expected = rotary_attention(qkv.to(dtype).float(), cos, sin)
    for tables in [(cos, sin), (cos.to(dtype), sin.to(dtype))]:
        actual = rotary_attention(qkv.to(dtype), *tables)
        assert actual.dtype == dtype
        # The scores' own error comes first: of about 3, from products of rounded coordinates.
        torch.testing.assert_close(actual.float(), expected, rtol=0, atol=12 * torch.finfo(dtype).eps)


def test_opcheck(generator: torch.Generator) -> None:
    qkv, cos, sin, grad_mixed = inputs((2, 5, 2, 6), generator)
    mixed, log_sums, gradient = run(qkv, cos, sin, grad_mixed)
    torch.library.opcheck(torch.ops.patterning_fast.rotary_attention.default, (qkv, cos, sin, mixed, log_sums))
    torch.library.opcheck(
        torch.ops.patterning_fast.rotary_attention_gradient.default,
        (qkv, cos, sin, mixed, log_sums, grad_mixed, gradient),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qkv": torch.zeros(3, 5, 4)}, r"qkv has shape \[3, 5, 4\], but must have 5 dimensions"),
        ({"qkv": torch.zeros(2, 5, 2, 3, 4)}, r"must have \[batch, T, 3, heads, an even width\]"),
        ({"qkv": torch.zeros(2, 5, 3, 2, 3)}, r"must have \[batch, T, 3, heads, an even width\]"),
        ({"qkv": torch.zeros(2, 5, 3, 2, 4).int()}, "qkv is torch.int32, but must be torch.float32 or torch.float64"),
        ({"qkv": torch.zeros(2, 3, 5, 2, 4).transpose(1, 2)}, "qkv is not contiguous"),
        ({"cos": torch.zeros(4, 4)}, r"cos has shape \[4, 4\], but must have \[5, 4\]"),
        ({"sin": torch.zeros(5, 2)}, r"sin has shape \[5, 2\], but must have \[5, 4\]"),
        ({"sin": torch.zeros(5, 4).double()}, "sin is torch.float64, but must be torch.float32"),
        ({"cos": torch.zeros(5, 4, device="meta")}, "tensors are on different devices"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"qkv": torch.zeros(2, 5, 3, 2, 4), "cos": torch.zeros(5, 4), "sin": torch.zeros(5, 4)}
    with pytest.raises((TypeError, ValueError), match=message):
        rotary_attention(**arguments | changes)


def test_second_derivatives_are_those_of_differences() -> None:
    qkv, cos, sin, grad_mixed = (each.double() for each in inputs((2, 3, 1, 4), torch.Generator().manual_seed(0)))
    assert torch.autograd.gradgradcheck(
        lambda qkv: rotary_attention(qkv, cos, sin), qkv.requires_grad_(), grad_mixed.flatten(2).requires_grad_()
    )
