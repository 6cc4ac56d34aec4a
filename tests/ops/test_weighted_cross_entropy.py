"""`weighted_cross_entropy`: every form against the reference, odd logits, derivatives, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from patterning_fast.ops.reference.cross_entropy import weighted_cross_entropy as reference
from patterning_fast.ops.weighted_cross_entropy import weighted_cross_entropy
from tests.ops.cross_entropy import bounds
from tests.ops.forms import FORMS, interpreted, skip_if_interpreted, use_form

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of Triton's interpreter, on infinities

OP = "weighted_cross_entropy"
IGNORED = -100
CPP_FORMS = [form for form in FORMS if form.startswith("cpp@")]
SIZES = [(1, 1), (0, 5), (3, 1), (7, 15), (33, 17), (5, 512), (4, 513), (300, 70), (3, 5000)]


def run(logits: Tensor, labels: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Losses and gradient, from outputs full of NaN."""
    losses, gradient = torch.full_like(logits[:, 0], math.nan), torch.full_like(logits, math.nan)
    torch.ops.patterning_fast.weighted_cross_entropy(logits, labels, weights, IGNORED, losses, gradient)
    return losses, gradient


def inputs(tokens: int, vocabulary: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of spread 3, labels of which some are ignored, weights of both signs of which some are 0."""
    logits = 3 * torch.randn(tokens, vocabulary, generator=generator)
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    labels[1::5] = IGNORED
    weights = torch.randn(tokens, generator=generator)
    weights[2::7] = 0
    return logits, labels, weights


@pytest.mark.parametrize(("tokens", "vocabulary"), SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_form_agrees_with_reference(form: str, tokens: int, vocabulary: int, generator: torch.Generator) -> None:
    skip_if_interpreted(form, tokens, vocabulary)
    with use_form(OP, form) as device:
        logits, labels, weights = (tensor.to(device) for tensor in inputs(tokens, vocabulary, generator))
        losses, gradient = run(logits, labels, weights)
    expected = torch.empty_like(losses, dtype=torch.float64), torch.empty_like(gradient, dtype=torch.float64)
    reference(logits, labels, weights, IGNORED, *expected)
    loss_bound, gradient_bound = bounds(logits, labels, weights, IGNORED)
    assert bool(((losses - expected[0]).abs() <= loss_bound).all())
    assert bool(((gradient - expected[1]).abs() <= gradient_bound).all())


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_asked_for_changes_nothing_else(form: str, generator: torch.Generator) -> None:
    op = torch.ops.patterning_fast.weighted_cross_entropy
    with use_form(OP, form) as device:
        logits, labels, _ = (tensor.to(device) for tensor in inputs(9, 700, generator))
        losses, gradient = run(logits, labels, None)
        alone, of_ones, in_place = torch.full_like(losses, math.nan), torch.empty_like(gradient), logits.clone()
        op(logits, labels, None, IGNORED, alone, None)
        op(logits, labels, torch.ones_like(losses), IGNORED, losses.clone(), of_ones)
        op(in_place, labels, None, IGNORED, losses.clone(), in_place)
    assert torch.equal(losses, alone)
    assert torch.equal(gradient, of_ones)
    assert torch.equal(gradient, in_place)


def test_same_bits_on_every_isa(generator: torch.Generator) -> None:
    arguments = inputs(11, 1100, generator)
    results = []
    for form in CPP_FORMS:
        with use_form(OP, form):
            results.append(run(*arguments))
    for losses, gradient in results[1:]:
        assert torch.equal(losses, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_same_bits_for_any_number_of_threads(threads: int, generator: torch.Generator) -> None:
    arguments = inputs(101, 600, generator)
    losses, gradient = run(*arguments)
    torch.set_num_threads(1)
    alone = run(*arguments)
    assert torch.equal(losses, alone[0])
    assert torch.equal(gradient, alone[1])


INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("row", "label", "loss", "gradient"),
    [
        ([1e4, -1e4, 5e3], 0, 0.0, [0.0, 0.0, 0.0]),
        ([1e4, -1e4, 5e3], 1, 2e4, [1.0, -1.0, 0.0]),
        ([-1e4, -1e4, -1e4, -1e4], 2, math.log(4), [0.25, 0.25, -0.75, 0.25]),
        ([3e38, -3e38], 0, 0.0, [0.0, 0.0]),
        ([-INF, 0.0, 0.0], 1, math.log(2), [0.0, -0.5, 0.5]),
        ([-INF, 0.0, 0.0], 0, INF, [-1.0, 0.5, 0.5]),
        ([-INF, -INF], 0, NAN, [NAN, NAN]),
        ([INF, 0.0], 1, NAN, [NAN, NAN]),
        ([NAN, 0.0], 1, NAN, [NAN, NAN]),
        ([NAN, 0.0], IGNORED, 0.0, [0.0, 0.0]),
        ([-INF] * 600 + [1.0], 600, 0.0, [0.0] * 601),
        ([1.0] + [-INF] * 600, 0, 0.0, [0.0] * 601),
        ([0.0] * 600 + [NAN], 0, NAN, [NAN] * 601),
        ([0.0] * 600 + [1e4], 0, 1e4, [-1.0] + [0.0] * 599 + [1.0]),
    ],
)
def test_extreme_logits(form: str, row: list[float], label: int, loss: float, gradient: list[float]) -> None:
    with use_form(OP, form) as device:
        losses, actual = run(torch.tensor([row], device=device), torch.tensor([label], device=device), None)
    # Each is 0, infinite, NaN, or right to a few roundings.
    torch.testing.assert_close(losses.cpu(), torch.tensor([loss]), rtol=4 * 2.0**-24, atol=0, equal_nan=True)
    torch.testing.assert_close(actual.cpu(), torch.tensor([gradient]), rtol=4 * 2.0**-24, atol=0, equal_nan=True)


@pytest.mark.parametrize("form", FORMS)
def test_exponential_of_every_difference(form: str) -> None:
    """Logits 0 and −x for x up to 90, a million of them: the gradient at −x is e^−x/(1 + e^−x), to a few roundings."""
    with use_form(OP, form) as device:
        x = torch.linspace(
            0, 90, 37 if interpreted(form) else 10_007 if form == "cpp@baseline" else 1_000_003, device=device
        )
        logits = torch.stack([torch.zeros_like(x), -x], 1)
        _, gradient = run(logits, torch.zeros_like(x, dtype=torch.int64), None)
    exact = torch.sigmoid(-x.double())
    # exp and sum: 2 roundings each; the scale and the product: 1 each. Below 2^-126 floats have no such precision.
    assert bool(((gradient[:, 1] - exact).abs() <= 6 * 2.0**-24 * exact + 2.0**-126).all())


def test_total_and_its_derivatives(generator: torch.Generator) -> None:
    logits, labels, weights = inputs(9, 6, generator)
    logits.requires_grad_()
    weights.requires_grad_()
    total, losses = weighted_cross_entropy(logits, labels, weights)
    assert not losses.requires_grad
    assert torch.equal(losses, weighted_cross_entropy(logits, labels)[1])
    assert float(total.detach()) == pytest.approx(float(weights.detach().double() @ losses.double()), rel=1e-6)
    gradients = torch.autograd.grad(3 * total, (logits, weights))
    _, gradient = run(logits.detach(), labels, weights.detach())
    assert torch.equal(gradients[0], 3 * gradient)
    assert torch.equal(gradients[1], 3 * losses)


@pytest.mark.parametrize("weighted", [True, False])
def test_gradcheck(weighted: bool, generator: torch.Generator) -> None:
    logits, labels, weights = inputs(6, 5, generator)
    arguments = [tensor.double().requires_grad_() for tensor in ([logits, weights] if weighted else [logits])]
    assert torch.autograd.gradcheck(lambda x, *w: weighted_cross_entropy(x, labels, *w)[0], arguments)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo does so
def test_compiles_whole(generator: torch.Generator) -> None:
    def doubled(logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        total, losses = weighted_cross_entropy(logits, labels, weights)
        return total * 2, losses

    logits, labels, weights = inputs(6, 5, generator)
    results = []
    functions: list[Callable[..., tuple[Tensor, Tensor]]] = [
        doubled,
        torch.compile(doubled, fullgraph=True, backend="aot_eager"),
    ]
    for function in functions:
        x = logits.clone().requires_grad_()
        total, losses = function(x, labels, weights)
        total.backward()
        results.append((total, losses, x.grad))
    for eager, compiled in zip(*results, strict=True):
        assert eager is not None
        assert torch.equal(eager, compiled)


def test_opcheck(generator: torch.Generator) -> None:
    logits, labels, weights = inputs(4, 5, generator)
    op = torch.ops.patterning_fast.weighted_cross_entropy.default
    torch.library.opcheck(op, (logits, labels, weights, IGNORED, torch.empty(4), torch.empty(4, 5)))
    torch.library.opcheck(op, (logits, labels, None, IGNORED, torch.empty(4), None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("label", [-1, 5, 2**40, -(2**40)])
def test_labels_outside_the_vocabulary_touch_nothing(label: int, dtype: torch.dtype) -> None:
    losses, gradient = torch.full((3,), 7.0, dtype=dtype), torch.full((3, 5), 7.0, dtype=dtype)
    with pytest.raises(ValueError, match="labels must lie in"):
        torch.ops.patterning_fast.weighted_cross_entropy(
            torch.zeros(3, 5, dtype=dtype), torch.tensor([0, IGNORED, label]), None, IGNORED, losses, gradient
        )
    assert bool((losses == 7).all() and (gradient == 7).all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.zeros(3, 5, dtype=torch.float16)}, "logits is torch.float16, but must be torch.float32"),
        ({"logits": torch.zeros(5)}, "logits has shape .*, but must have 2 dimensions"),
        ({"logits": torch.zeros(5, 3).T}, "logits is not contiguous"),
        ({"labels": torch.zeros(3, dtype=torch.int32)}, "labels is torch.int32, but must be torch.int64"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, r"labels has shape \[4\], but must have \[3\]"),
        ({"weights": torch.zeros(3, dtype=torch.float64)}, "weights is torch.float64, but must be torch.float32"),
        ({"weights": torch.zeros(3, 1)}, r"weights has shape \[3, 1\], but must have \[3\]"),
        ({"weights": torch.zeros(3, device="meta")}, "tensors are on different devices"),
        ({"labels": torch.tensor([0, 5, 1])}, "labels must lie in"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"logits": torch.zeros(3, 5), "labels": torch.zeros(3, dtype=torch.int64)} | changes
    with pytest.raises((TypeError, ValueError), match=message):
        weighted_cross_entropy(**arguments)
