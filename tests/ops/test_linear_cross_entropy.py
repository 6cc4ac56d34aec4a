"""`linear_cross_entropy` and its weighted sum: every form against the reference, derivatives, memory, and refusals."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from patterning_fast.ops.linear_cross_entropy import linear_cross_entropy, weighted_linear_cross_entropy
from patterning_fast.ops.reference.cross_entropy import linear_cross_entropy as reference
from tests.ops.cross_entropy import ROUNDING, bounds
from tests.ops.forms import FORMS, interpreted, skip_if_interpreted, use_form

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of Triton's interpreter, on infinities

OP = "linear_cross_entropy"
IGNORED = -100
CPP_FORMS = [form for form in FORMS if form.startswith("cpp@")]


class Inputs(NamedTuple):
    hidden: Tensor
    unembedding: Tensor
    labels: Tensor
    weights: Tensor


class Outputs(NamedTuple):
    losses: Tensor
    grad_hidden: Tensor
    grad_unembedding: Tensor


def inputs(size: tuple[int, ...], generator: torch.Generator) -> Inputs:
    """Logits of spread 3, labels of which some are ignored, weights of both signs of which some are 0."""
    chains, tokens, width, vocabulary, unembeddings = size
    hidden = torch.randn(chains, tokens, width, generator=generator)
    unembedding = 3 / math.sqrt(max(width, 1)) * torch.randn(unembeddings, vocabulary, width, generator=generator)
    labels = torch.randint(vocabulary, (chains, tokens), generator=generator)
    labels.view(-1)[1::5] = IGNORED
    weights = torch.randn(chains, tokens, generator=generator)
    weights.view(-1)[2::7] = 0
    return Inputs(hidden, unembedding, labels, weights)


def run(given: Inputs, hidden: bool = True, unembedding: bool = True) -> Outputs:
    """The op's results, from outputs full of NaN; what is not asked for stays so."""
    outputs = Outputs(*(torch.full_like(tensor, math.nan) for tensor in (given.weights, *given[:2])))
    wanted = [tensor if wants else None for tensor, wants in zip(outputs[1:], (hidden, unembedding), strict=True)]
    torch.ops.patterning_fast.linear_cross_entropy(*given, IGNORED, outputs.losses, *wanted)
    return outputs


def assert_agreement(given: Inputs, actual: Outputs) -> None:
    expected = Outputs(*(torch.empty_like(tensor, dtype=torch.float64) for tensor in actual))
    reference(*given, IGNORED, *expected)
    h, u = given.hidden.double(), given.unembedding.double()
    logits = h @ u.mT
    # A sum of n products in any order is off by (n + 1) 2^-24 of the sum of their magnitudes at most.
    magnitude = h.abs() @ u.abs().mT
    logit_error = (h.shape[-1] + 1) * ROUNDING * magnitude.amax(-1)
    loss_bound, gradient_bound = bounds(logits, given.labels, given.weights, IGNORED, logit_error)
    gradient = gradient_bound + torch.where(given.labels != IGNORED, given.weights.abs(), 0.0)[..., None] * (
        logits.softmax(-1).scatter_add(
            -1, torch.where(given.labels != IGNORED, given.labels, 0)[..., None], torch.ones_like(logits[..., :1])
        )
    )  # of the logits, at most
    (chains, tokens, _), vocabulary = h.shape, u.shape[1]
    hidden_bound = (gradient_bound + (vocabulary + 1) * ROUNDING * gradient) @ u.abs()
    summed = tokens if len(u) == chains else chains * tokens
    unembedding_bound = ((gradient_bound + (summed + 1) * ROUNDING * gradient).mT @ h.abs()).sum_to_size(u.shape)
    for name, exact, bound in zip(
        Outputs._fields, expected, (loss_bound, hidden_bound, unembedding_bound), strict=True
    ):
        assert bool(((getattr(actual, name) - exact).abs() <= bound).all()), name


SIZES = [
    # chains, tokens, width, vocabulary, unembeddings
    (1, 1, 1, 1, 1),
    (1, 0, 3, 5, 1),
    (0, 4, 3, 5, 1),
    (0, 4, 3, 5, 0),
    (2, 7, 0, 5, 1),
    (1, 5, 4, 1, 1),
    (3, 11, 17, 33, 1),
    (3, 11, 17, 33, 3),
    (1, 97, 65, 129, 1),
    (2, 40, 31, 1030, 2),
    (1, 13, 600, 530, 1),
    (1, 7, 5000, 70, 1),
    (1, 3, 5, 4500, 1),
]
CHUNKS = [(1, 900, 3, 5000, 1), (2, 10_000, 2, 3, 1), (1, 4300, 9, 5, 1)]


@pytest.mark.parametrize("size", SIZES + CHUNKS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_form_agrees_with_reference(form: str, size: tuple[int, ...], generator: torch.Generator) -> None:
    chains, tokens, width, vocabulary, _ = size
    skip_if_interpreted(form, chains * tokens, max(tokens * width, vocabulary * width))
    with use_form(OP, form) as device:
        given = Inputs(*(tensor.to(device) for tensor in inputs(size, generator)))
        actual = run(given)
        losses = run(given, hidden=False, unembedding=False).losses
    assert_agreement(given, actual)
    assert_agreement(given, actual._replace(losses=losses))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_asked_for_changes_nothing_else(form: str, generator: torch.Generator) -> None:
    size = (2, 30, 20, 600, 1) if not interpreted(form) else (2, 5, 4, 7, 1)
    with use_form(OP, form) as device:
        given = Inputs(*(tensor.to(device) for tensor in inputs(size, generator)))
        both = run(given)
        for hidden, unembedding in [(True, False), (False, True)]:
            one = run(given, hidden, unembedding)
            assert torch.equal(one.losses, both.losses)
            assert torch.equal(one.grad_hidden, both.grad_hidden) == hidden
            assert torch.equal(one.grad_unembedding, both.grad_unembedding) == unembedding
        ones = run(given._replace(weights=torch.ones_like(given.weights)))
        op, unweighted = torch.ops.patterning_fast.linear_cross_entropy, Outputs(*map(torch.clone, both))
        op(*given[:3], None, IGNORED, *unweighted)
    assert all(torch.equal(*pair) for pair in zip(ones, unweighted, strict=True))


@pytest.mark.parametrize("size", [(1, 37, 300, 1100, 1), (3, 11, 17, 33, 3)], ids=str)
def test_same_bits_on_every_isa(size: tuple[int, ...], generator: torch.Generator) -> None:
    given, results = inputs(size, generator), []
    for form in CPP_FORMS:
        with use_form(OP, form):
            results.append((*run(given), run(given, hidden=False, unembedding=False).losses))
    for result in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(result, results[0], strict=True))


@pytest.mark.parametrize("size", [(1, 203, 70, 1100, 1), (1, 900, 3, 5000, 1), (3, 11, 17, 33, 3)], ids=str)
def test_same_bits_for_any_number_of_threads(size: tuple[int, ...], threads: int, generator: torch.Generator) -> None:
    given = inputs(size, generator)
    shared = (*run(given), run(given, hidden=False, unembedding=False).losses)
    torch.set_num_threads(1)
    alone = (*run(given), run(given, hidden=False, unembedding=False).losses)
    assert all(torch.equal(*pair) for pair in zip(shared, alone, strict=True))


INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("hidden", "column", "label", "loss", "gradient"),
    [
        (1e4, [1.0, -1.0, 0.5], 0, 0.0, [0.0, 0.0, 0.0]),
        (1e4, [1.0, -1.0, 0.5], 1, 2e4, [1e4, -1e4, 0.0]),
        (1.0, [-INF, 0.0, 0.0], 1, math.log(2), [0.0, -0.5, 0.5]),
        (1.0, [-INF, 0.0, 0.0], 0, INF, [-1.0, 0.5, 0.5]),
        (1.0, [-INF] * 600 + [2.0], 600, 0.0, [0.0] * 601),
        (1.0, [-INF, -INF], 0, NAN, [NAN, NAN]),
        (1.0, [INF, 0.0], 1, NAN, [NAN, NAN]),
        (NAN, [1.0, 0.0], 1, NAN, [NAN, NAN]),
        (1.0, [INF, 0.0], IGNORED, 0.0, [0.0, 0.0]),
    ],
)
def test_extreme_logits(
    form: str, hidden: float, column: list[float], label: int, loss: float, gradient: list[float]
) -> None:
    with use_form(OP, form) as device:
        given = Inputs(
            torch.tensor([[[hidden]]], device=device),
            torch.tensor([column], device=device)[..., None],
            torch.tensor([[label]], device=device),
            torch.ones(1, 1, device=device),
        )
        actual = run(given)
    # Each is 0, infinite, NaN, or right to a few roundings.
    for value, exact in [(actual.losses, [loss]), (actual.grad_unembedding, gradient)]:
        expected = torch.tensor(exact)
        torch.testing.assert_close(value.cpu().view(-1), expected, rtol=4 * ROUNDING, atol=0, equal_nan=True)


def differentiated(function: Callable[..., Tensor], given: Inputs) -> tuple[Tensor, ...]:
    """What function(hidden, unembedding, labels, weights) returns, and its gradients."""
    hidden, unembedding = given.hidden.clone().requires_grad_(), given.unembedding.clone().requires_grad_()
    total = function(hidden, unembedding, given.labels, given.weights)
    return (total.detach(), *torch.autograd.grad(total, (hidden, unembedding)))


def through_losses(hidden: Tensor, unembedding: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    return 3 * (weights * linear_cross_entropy(hidden, unembedding, labels)).sum()


def in_one_pass(hidden: Tensor, unembedding: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    return 3 * weighted_linear_cross_entropy(hidden, unembedding, labels, weights)[0]


@pytest.mark.parametrize("unembeddings", [1, 2])
@pytest.mark.parametrize("function", [through_losses, in_one_pass])
def test_derivatives(function: Callable[..., Tensor], unembeddings: int, generator: torch.Generator) -> None:
    given = inputs((2, 9, 6, 13, unembeddings), generator)
    if unembeddings == 1:
        given = given._replace(unembedding=given.unembedding[0])
    expected = differentiated(function, Inputs(*(x if x.dtype == torch.int64 else x.double() for x in given)))
    for value, exact in zip(differentiated(function, given), expected, strict=True):
        # The size of the sums' terms is about 1; there are fewer than 100.
        torch.testing.assert_close(value, exact.float(), rtol=0, atol=100 * ROUNDING * float(exact.abs().max()))


def test_without_chains(generator: torch.Generator) -> None:
    given = inputs((1, 9, 6, 13, 1), generator)
    alone = Inputs(*(tensor[0] for tensor in given))
    for function in (through_losses, in_one_pass):
        for one, other in zip(differentiated(function, given), differentiated(function, alone), strict=True):
            assert torch.equal(one.view(-1), other.view(-1))
    assert linear_cross_entropy(*alone[:3]).shape == (9,)


def test_weighted_total(generator: torch.Generator) -> None:
    given = inputs((2, 9, 6, 13, 1), generator)
    given.weights.requires_grad_()
    given.hidden.requires_grad_()
    total, losses = weighted_linear_cross_entropy(*given._replace(unembedding=given.unembedding[0]))
    assert not losses.requires_grad
    assert torch.equal(losses, linear_cross_entropy(given.hidden, given.unembedding[0], given.labels))
    assert float(total.detach()) == pytest.approx(float((given.weights.double() * losses).sum().detach()), rel=1e-5)
    (of_weights,) = torch.autograd.grad(2 * total, given.weights)
    assert torch.equal(of_weights, 2 * losses)


@pytest.mark.parametrize("unembeddings", [1, 2])
@pytest.mark.parametrize("function", [through_losses, in_one_pass])
def test_gradcheck(function: Callable[..., Tensor], unembeddings: int, generator: torch.Generator) -> None:
    hidden, unembedding, labels, weights = inputs((2, 4, 3, 5, unembeddings), generator)
    given = hidden.double().requires_grad_(), unembedding.double().requires_grad_()

    def of_floats(h: Tensor, u: Tensor) -> Tensor:
        return function(h, u if unembeddings == 2 else u[0], labels, weights.double())

    assert torch.autograd.gradcheck(of_floats, given)


@pytest.mark.parametrize("function", [through_losses, in_one_pass])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo does so
def test_compiles_whole(function: Callable[..., Tensor], generator: torch.Generator) -> None:
    given = inputs((2, 9, 6, 13, 2), generator)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for one, other in zip(differentiated(compiled, given), differentiated(function, given), strict=True):
        assert torch.equal(one, other)


def test_opcheck(generator: torch.Generator) -> None:
    given = inputs((2, 4, 3, 5, 1), generator)
    op = torch.ops.patterning_fast.linear_cross_entropy.default
    outputs = torch.empty(2, 4), torch.empty(2, 4, 3), torch.empty(1, 5, 3)
    torch.library.opcheck(op, (*given, IGNORED, *outputs))
    torch.library.opcheck(op, (*given[:3], None, IGNORED, outputs[0], None, None))


MEMORY = """
import pathlib, re, sys, torch
from patterning_fast.ops.linear_cross_entropy import run

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])

torch.set_num_threads(2)
gradients = sys.argv[1] == "gradients"
tokens, width, vocabulary = 4096, 256, 5000
hidden, unembedding = torch.randn(tokens, width), torch.randn(vocabulary, width)
labels, weights = torch.randint(vocabulary, (tokens,)), torch.rand(tokens)
run(hidden[:7], unembedding[:9], labels[:7] % 9, weights[:7], -100, gradients, gradients)
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
before = peak()
results = run(hidden, unembedding, labels, weights, -100, gradients, gradients)
print(peak() - before - sum(x.nbytes for x in results if x is not None))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("what", "bound"),
    [
        ("losses", 2 * 4e6),  # 4 MB a thread
        # A tenth of what torch holds: the logits, their log-softmax and their gradient, each 4,096 × 5,000 floats.
        ("gradients", 0.1 * 3 * 4096 * 5000 * 4),
    ],
)
def test_memory(what: str, bound: float) -> None:
    command = [sys.executable, "-c", MEMORY, what]
    grown = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0 < grown <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("label", [-1, 5, 2**40, -(2**40)])
def test_labels_outside_the_vocabulary_touch_nothing(label: int, dtype: torch.dtype) -> None:
    outputs = [torch.full(shape, 7.0, dtype=dtype) for shape in [(1, 3), (1, 3, 2), (1, 5, 2)]]
    hidden, unembedding = torch.zeros(1, 3, 2, dtype=dtype), torch.zeros(1, 5, 2, dtype=dtype)
    labels = torch.tensor([[0, IGNORED, label]])
    with pytest.raises(ValueError, match="labels must lie in"):
        torch.ops.patterning_fast.linear_cross_entropy(hidden, unembedding, labels, None, IGNORED, *outputs)
    assert all(bool((tensor == 7).all()) for tensor in outputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": torch.zeros(3, 4, dtype=torch.float16)}, "hidden is torch.float16, but must be torch.float32"),
        ({"hidden": torch.zeros(4)}, r"hidden has shape \[4\], but must have 2 or 3 dimensions"),
        ({"hidden": torch.zeros(4, 3).T}, "hidden is not contiguous"),
        ({"hidden": torch.zeros(3, 4, dtype=torch.float64)}, "unembedding is torch.float32, but must be torch.float64"),
        ({"unembedding": torch.zeros(5)}, r"unembedding has shape \[5\], but must have 2 dimensions"),
        ({"unembedding": torch.zeros(1, 5, 4)}, r"unembedding has shape \[1, 5, 4\], but must have 2 dimensions"),
        ({"unembedding": torch.zeros(5, 6)}, r"unembedding has shape \[5, 6\], but must have \[5, 4\]"),
        (
            {
                "hidden": torch.zeros(2, 3, 4),
                "unembedding": torch.zeros(3, 5, 4),
                "labels": torch.zeros(2, 3, dtype=torch.int64),
            },
            r"unembedding has shape \[3, 5, 4\], but must have \[2, 5, 4\]",
        ),
        ({"labels": torch.zeros(3, dtype=torch.int32)}, "labels is torch.int32, but must be torch.int64"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, r"labels has shape \[4\], but must have \[3\]"),
        ({"weights": torch.zeros(3, dtype=torch.float64)}, "weights is torch.float64, but must be torch.float32"),
        ({"weights": torch.zeros(3, 1)}, r"weights has shape \[3, 1\], but must have \[3\]"),
        ({"weights": torch.zeros(3, device="meta")}, "tensors are on different devices"),
        ({"labels": torch.tensor([0, 5, 1])}, "labels must lie in"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {
        "hidden": torch.zeros(3, 4),
        "unembedding": torch.zeros(5, 4),
        "labels": torch.zeros(3, dtype=torch.int64),
        "weights": torch.ones(3),
    }
    with pytest.raises((TypeError, ValueError), match=message):
        weighted_linear_cross_entropy(**arguments | changes)
    if "weights" not in changes:
        del arguments["weights"]
        with pytest.raises((TypeError, ValueError), match=message):
            linear_cross_entropy(**arguments | changes)
