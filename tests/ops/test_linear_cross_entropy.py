"""`linear_cross_entropy` and its weighted sum: every form against the reference, derivatives, memory, and refusals."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
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
    offset: Tensor | None = None
    offset_scale: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        return Inputs(*(None if tensor is None else function(tensor) for tensor in self))  # type: ignore[arg-type]


class Outputs(NamedTuple):
    losses: Tensor
    grad_hidden: Tensor
    grad_unembedding: Tensor
    grad_offset_scale: Tensor | None = None


def pairs(one: Iterable[Tensor | None], other: Iterable[Tensor | None]) -> Iterator[tuple[Tensor, Tensor]]:
    """What is there of two results."""
    return ((a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None)


def inputs(size: tuple[int, ...], generator: torch.Generator, offsets: int | None = None) -> Inputs:
    """Logits of spread 3, labels of which some are ignored, weights of both signs of which some are 0."""
    chains, tokens, width, vocabulary, unembeddings = size
    hidden = torch.randn(chains, tokens, width, generator=generator)
    unembedding = 3 / math.sqrt(max(width, 1)) * torch.randn(unembeddings, vocabulary, width, generator=generator)
    labels = torch.randint(vocabulary, (chains, tokens), generator=generator)
    labels.view(-1)[1::5] = IGNORED
    weights = torch.randn(chains, tokens, generator=generator)
    weights.view(-1)[2::7] = 0
    if offsets is None:
        return Inputs(hidden, unembedding, labels, weights)
    offset = 2 * torch.randn(offsets, tokens, vocabulary, generator=generator)
    offset_scale = torch.randn(chains, tokens, generator=generator)
    return Inputs(hidden, unembedding, labels, weights, offset, offset_scale)


def run(given: Inputs, hidden: bool = True, unembedding: bool = True, offset_scale: bool = True) -> Outputs:
    """The op's results, from outputs full of NaN; what is not asked for stays so."""
    like = given.weights, given.hidden, given.unembedding, given.offset_scale
    outputs = Outputs(*(None if x is None else torch.full_like(x, math.nan) for x in like))  # type: ignore[arg-type]
    wanted = [x if wants else None for x, wants in zip(outputs[1:], (hidden, unembedding, offset_scale), strict=True)]
    torch.ops.patterning_fast.linear_cross_entropy(*given, IGNORED, outputs.losses, *wanted)
    return outputs


def losses_alone(given: Inputs) -> Tensor:
    return run(given, hidden=False, unembedding=False, offset_scale=False).losses


def assert_agreement(given: Inputs, actual: Outputs) -> None:
    expected = Outputs(*(None if x is None else torch.empty_like(x, dtype=torch.float64) for x in actual))  # type: ignore[arg-type]
    reference(*given, IGNORED, *expected)
    h, u = given.hidden.double(), given.unembedding.double()
    logits = h @ u.mT
    # A sum of n products in any order is off by (n + 1) 2^-24 of the sum of their magnitudes at most.
    magnitude, terms = h.abs() @ u.abs().mT, h.shape[-1]
    if given.offset is not None and given.offset_scale is not None:
        known = given.offset_scale.double()[..., None] * given.offset.double()
        logits, magnitude, terms = logits + known, magnitude + known.abs(), terms + 1
    logit_error = (terms + 1) * ROUNDING * magnitude.amax(-1)
    loss_bound, gradient_bound = bounds(logits, given.labels, given.weights, IGNORED, logit_error)
    gradient = gradient_bound + torch.where(given.labels != IGNORED, given.weights.abs(), 0.0)[..., None] * (
        logits.softmax(-1).scatter_add(
            -1, torch.where(given.labels != IGNORED, given.labels, 0)[..., None], torch.ones_like(logits[..., :1])
        )
    )  # of the logits, at most
    (chains, tokens, _), vocabulary = h.shape, u.shape[1]
    of_words = gradient_bound + (vocabulary + 1) * ROUNDING * gradient
    summed = tokens if len(u) == chains else chains * tokens
    unembedding_bound = ((gradient_bound + (summed + 1) * ROUNDING * gradient).mT @ h.abs()).sum_to_size(u.shape)
    bound_of = {"losses": loss_bound, "grad_hidden": of_words @ u.abs(), "grad_unembedding": unembedding_bound}
    if given.offset is not None:
        bound_of["grad_offset_scale"] = (of_words * given.offset.double().abs()).sum(-1)
    for name, bound in bound_of.items():
        assert bool(((getattr(actual, name) - getattr(expected, name)).abs() <= bound).all()), name


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


OFFSET_CASES = [
    ((1, 1, 1, 1, 1), 1),
    ((1, 0, 3, 5, 1), 1),
    ((0, 4, 3, 5, 1), 1),
    ((0, 4, 3, 5, 0), 0),
    ((2, 7, 0, 5, 1), 1),
    ((3, 11, 17, 33, 1), 1),
    ((3, 11, 17, 33, 1), 3),
    ((3, 11, 17, 33, 3), 1),
    ((3, 11, 17, 33, 3), 3),
    ((2, 13, 16, 48, 1), 2),
    ((1, 101, 33, 1030, 1), 1),
    ((2, 60, 65, 530, 2), 1),
    ((1, 7, 300, 70, 1), 1),
    ((1, 3, 5, 4500, 1), 1),
]


@pytest.mark.parametrize(("size", "offsets"), [*((size, None) for size in SIZES + CHUNKS), *OFFSET_CASES], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_form_agrees_with_reference(
    form: str, size: tuple[int, ...], offsets: int | None, generator: torch.Generator
) -> None:
    chains, tokens, width, vocabulary, _ = size
    skip_if_interpreted(form, chains * tokens, max(tokens * width, vocabulary * width))
    with use_form(OP, form) as device:
        given = inputs(size, generator, offsets).map(lambda tensor: tensor.to(device))
        actual, losses = run(given), losses_alone(given)
    assert_agreement(given, actual)
    assert_agreement(given, actual._replace(losses=losses))


@pytest.mark.parametrize("form", CPP_FORMS)
def test_an_offset_of_zero_changes_no_loss(form: str, generator: torch.Generator) -> None:
    given = inputs((2, 53, 21, 1030, 1), generator, 1)
    with use_form(OP, form):
        without = losses_alone(given._replace(offset=None, offset_scale=None))
        assert given.offset is not None
        assert torch.equal(losses_alone(given._replace(offset=torch.zeros_like(given.offset))), without)


@pytest.mark.parametrize("offsets", [None, 1])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_asked_for_changes_nothing_else(form: str, offsets: int | None, generator: torch.Generator) -> None:
    size = (2, 30, 20, 600, 1) if not interpreted(form) else (2, 5, 4, 7, 1)
    with use_form(OP, form) as device:
        given = inputs(size, generator, offsets).map(lambda tensor: tensor.to(device))
        both = run(given)
        for wanted in itertools.product([True, False], repeat=3):
            one = run(given, *wanted)
            assert torch.equal(one.losses, both.losses)
            for wants, (gradient, expected) in zip(wanted, pairs(one[1:], both[1:]), strict=False):
                assert torch.equal(gradient, expected) if wants else bool(gradient.isnan().all())
        ones = run(given._replace(weights=torch.ones_like(given.weights)))
        unweighted = Outputs(*(None if x is None else x.clone() for x in both))  # type: ignore[arg-type]
        op = torch.ops.patterning_fast.linear_cross_entropy
        op(*given._replace(weights=None), IGNORED, *unweighted)  # type: ignore[arg-type]
    assert all(torch.equal(*pair) for pair in pairs(ones, unweighted))


@pytest.mark.parametrize(
    ("size", "offsets"),
    [((1, 37, 300, 1100, 1), None), ((3, 11, 17, 33, 3), None), ((1, 61, 33, 1100, 1), 1), ((3, 11, 17, 33, 3), 3)],
    ids=str,
)
def test_same_bits_on_every_isa(size: tuple[int, ...], offsets: int | None, generator: torch.Generator) -> None:
    given, results = inputs(size, generator, offsets), []
    for form in CPP_FORMS:
        with use_form(OP, form):
            results.append((*run(given), losses_alone(given)))
    for result in results[1:]:
        assert all(torch.equal(*pair) for pair in pairs(result, results[0]))


@pytest.mark.parametrize(
    ("size", "offsets"),
    [
        ((1, 203, 70, 1100, 1), None),
        ((1, 900, 3, 5000, 1), None),
        ((3, 11, 17, 33, 3), None),
        ((1, 203, 33, 1100, 1), 1),
        ((3, 70, 17, 33, 1), 1),
        ((3, 11, 17, 33, 3), 3),
    ],
    ids=str,
)
def test_same_bits_for_any_number_of_threads(
    size: tuple[int, ...], offsets: int | None, threads: int, generator: torch.Generator
) -> None:
    given = inputs(size, generator, offsets)
    shared = (*run(given), losses_alone(given))
    torch.set_num_threads(1)
    alone = (*run(given), losses_alone(given))
    assert all(torch.equal(*pair) for pair in pairs(shared, alone))


INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("known", [False, True])
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
    form: str, known: bool, hidden: float, column: list[float], label: int, loss: float, gradient: list[float]
) -> None:
    with use_form(OP, form) as device:
        given = Inputs(
            torch.tensor([[[hidden]]], device=device),
            torch.tensor([column], device=device)[..., None],
            torch.tensor([[label]], device=device),
            torch.ones(1, 1, device=device),
        )
        if known:
            zeros = torch.zeros(1, 1, len(column), device=device)
            given = given._replace(offset=zeros, offset_scale=torch.ones(1, 1, device=device))
        actual = run(given)
    # Each is 0, infinite, NaN, or right to a few roundings.
    for value, exact in [(actual.losses, [loss]), (actual.grad_unembedding, gradient)]:
        expected = torch.tensor(exact)
        torch.testing.assert_close(value.cpu().view(-1), expected, rtol=4 * ROUNDING, atol=0, equal_nan=True)


Function = Callable[[Inputs], Tensor]


def differentiated(function: Function, given: Inputs) -> tuple[Tensor, ...]:
    """What function(given) returns, and its gradients in hidden, unembedding and offset_scale."""
    hidden, unembedding = given.hidden.clone().requires_grad_(), given.unembedding.clone().requires_grad_()
    scale = None if given.offset_scale is None else given.offset_scale.clone().requires_grad_()
    total = function(given._replace(hidden=hidden, unembedding=unembedding, offset_scale=scale))
    leaves = [hidden, unembedding] if scale is None else [hidden, unembedding, scale]
    return (total.detach(), *torch.autograd.grad(total, leaves))


def losses_of(given: Inputs) -> Tensor:
    hidden, unembedding, labels, _, offset, scale = given
    return linear_cross_entropy(hidden, unembedding, labels, offset=offset, offset_scale=scale)


def through_losses(given: Inputs) -> Tensor:
    return 3 * (given.weights * losses_of(given)).sum()


def in_one_pass(given: Inputs) -> Tensor:
    return 3 * weighted_linear_cross_entropy(*given[:4], offset=given.offset, offset_scale=given.offset_scale)[0]


def without_sharing(given: Inputs) -> Inputs:
    """Without a dimension of one chain where others have several."""
    offset = given.offset
    return given._replace(
        unembedding=given.unembedding[0] if len(given.unembedding) == 1 else given.unembedding,
        offset=offset[0] if offset is not None and len(offset) == 1 else offset,
    )


@pytest.mark.parametrize(("unembeddings", "offsets"), [(1, None), (2, None), (1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("function", [through_losses, in_one_pass])
def test_derivatives(function: Function, unembeddings: int, offsets: int | None, generator: torch.Generator) -> None:
    given = without_sharing(inputs((2, 9, 6, 13, unembeddings), generator, offsets))
    exact = given.map(lambda tensor: tensor if tensor.dtype == torch.int64 else tensor.double())
    for value, expected in zip(differentiated(function, given), differentiated(function, exact), strict=True):
        # The size of the sums' terms is about 1; there are fewer than 100.
        torch.testing.assert_close(value, expected.float(), rtol=0, atol=100 * ROUNDING * float(expected.abs().max()))


@pytest.mark.parametrize("offsets", [None, 1])
def test_without_chains(offsets: int | None, generator: torch.Generator) -> None:
    given = inputs((1, 9, 6, 13, 1), generator, offsets)
    alone = given.map(lambda tensor: tensor[0])
    for function in (through_losses, in_one_pass):
        for one, other in zip(differentiated(function, given), differentiated(function, alone), strict=True):
            assert torch.equal(one.view(-1), other.view(-1))
    assert losses_of(alone).shape == (9,)


def test_weighted_total(generator: torch.Generator) -> None:
    given = inputs((2, 9, 6, 13, 1), generator)
    given.weights.requires_grad_()
    given.hidden.requires_grad_()
    total, losses = weighted_linear_cross_entropy(*without_sharing(given)[:4])
    assert not losses.requires_grad
    assert torch.equal(losses, linear_cross_entropy(given.hidden, given.unembedding[0], given.labels))
    assert float(total.detach()) == pytest.approx(float((given.weights.double() * losses).sum().detach()), rel=1e-5)
    (of_weights,) = torch.autograd.grad(2 * total, given.weights)
    assert torch.equal(of_weights, 2 * losses)


@pytest.mark.parametrize(("unembeddings", "offsets"), [(1, None), (2, None), (1, 1), (2, 2)])
@pytest.mark.parametrize("function", [through_losses, in_one_pass])
def test_gradcheck(function: Function, unembeddings: int, offsets: int | None, generator: torch.Generator) -> None:
    given = without_sharing(inputs((2, 4, 3, 5, unembeddings), generator, offsets))
    given = given.map(lambda tensor: tensor if tensor.dtype == torch.int64 else tensor.double())
    leaves = [given.hidden, given.unembedding] + ([] if given.offset_scale is None else [given.offset_scale])

    def of_floats(h: Tensor, u: Tensor, s: Tensor | None = None) -> Tensor:
        return function(given._replace(hidden=h, unembedding=u, offset_scale=s))

    assert torch.autograd.gradcheck(of_floats, tuple(tensor.requires_grad_() for tensor in leaves))


@pytest.mark.parametrize("offsets", [None, 1])
def test_second_derivatives(offsets: int | None, generator: torch.Generator) -> None:
    given = without_sharing(inputs((2, 4, 3, 5, 1), generator, offsets))
    given = given.map(lambda tensor: tensor if tensor.dtype == torch.int64 else tensor.double())
    leaves = [given.hidden, given.unembedding] + ([] if given.offset_scale is None else [given.offset_scale])

    def of_floats(h: Tensor, u: Tensor, s: Tensor | None = None) -> Tensor:
        return through_losses(given._replace(hidden=h, unembedding=u, offset_scale=s))

    assert torch.autograd.gradgradcheck(of_floats, tuple(tensor.requires_grad_() for tensor in leaves))


@pytest.mark.parametrize("chains", [1, 2])
def test_second_derivatives_under_func(chains: int, generator: torch.Generator) -> None:
    """The Hessian, and a Hessian-vector product for each example of a vmap, are those of torch's own operations."""
    given = without_sharing(inputs((chains, 4, 3, 5, 1), generator, None))
    given = given.map(lambda tensor: tensor if tensor.dtype == torch.int64 else tensor.double())

    def plain(hidden: Tensor) -> Tensor:
        logits = hidden @ given.unembedding.mT
        losses = F.cross_entropy(logits.flatten(0, -2), given.labels.flatten(), reduction="none", ignore_index=IGNORED)
        return 3 * (losses * given.weights.flatten()).sum()

    def ours(hidden: Tensor) -> Tensor:
        return through_losses(given._replace(hidden=hidden))

    expected = torch.func.jacrev(torch.func.grad(plain))(given.hidden)
    assert torch.allclose(torch.func.jacrev(torch.func.grad(ours))(given.hidden), expected, atol=1e-12)
    directions = torch.randn(3, *given.hidden.shape, generator=generator, dtype=torch.float64)

    def product(direction: Tensor) -> Tensor:
        return torch.func.vjp(torch.func.grad(ours), given.hidden)[1](direction)[0]

    of_each = torch.func.vmap(product)(directions)
    products = directions.flatten(1) @ expected.reshape(2 * [given.hidden.numel()])
    assert torch.allclose(of_each.flatten(1), products, atol=1e-12)


def test_one_pass_is_differentiable_once_only(generator: torch.Generator) -> None:
    given = without_sharing(inputs((1, 4, 3, 5, 1), generator, 1))
    hidden = given.hidden.requires_grad_()
    (gradient,) = torch.autograd.grad(in_one_pass(given).square(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# Which of hidden, unembedding, labels, weights, offset and offset_scale the examples of a vmap have each their own of.
BATCHED = [
    (True, False, False, False, False, False),
    (True, True, True, True, True, True),
    (False, True, False, True, False, True),
    (True, True, False, False, False, True),
    (False, False, True, False, True, False),
]


@pytest.mark.parametrize("batched", BATCHED, ids=str)
@pytest.mark.parametrize("chains", [None, 1, 2])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("function", [through_losses, in_one_pass])
@pytest.mark.parametrize("of_each", [False, True])
def test_vmap_is_a_loop(
    of_each: bool, function: Function, known: bool, chains: int | None, batched: tuple[bool, ...],
    generator: torch.Generator,
) -> None:  # fmt: skip
    """Losses, gradients of their sum, and `of_each` example; chains: of each, with an unembedding for each or one."""
    examples: list[Inputs] = []
    sizes = chains or 1, 9, 6, 13, chains if chains == 2 else 1
    for _ in range(3):
        drawn = inputs(sizes, generator, sizes[-1] if known else None)
        drawn = drawn.map(lambda tensor: tensor[0]) if chains is None else without_sharing(drawn)
        first = examples[0] if examples else drawn
        own_or_first = zip(drawn, first, batched, strict=True)
        examples.append(Inputs(*(own if each else other for own, other, each in own_or_first)))  # type: ignore[arg-type]
    in_dims = tuple(0 if each and x is not None else None for each, x in zip(batched, examples[0], strict=True))
    stacked = [
        tensors[0] if dim is None else torch.stack(tensors)
        for tensors, dim in zip(zip(*examples, strict=True), in_dims, strict=True)
    ]
    floats = tuple(at for at in (0, 1, 5) if stacked[at] is not None)

    losses = torch.func.vmap(lambda *given: losses_of(Inputs(*given)), in_dims)(*stacked)
    assert torch.equal(losses, torch.stack([losses_of(example) for example in examples]))

    of_examples = [
        torch.stack(tensors) for tensors in zip(*(differentiated(function, x) for x in examples), strict=True)
    ]
    if of_each:
        gradients = torch.func.grad(lambda *given: function(Inputs(*given)), floats)
        actual, expected = torch.func.vmap(gradients, in_dims)(*stacked), of_examples[1:]
    else:
        totals = torch.func.vmap(lambda *given: function(Inputs(*given)), in_dims)
        actual = torch.func.grad(lambda *given: totals(*given).sum(), floats)(*stacked)
        expected = [x if batched[at] else x.sum(0) for at, x in zip(floats, of_examples[1:], strict=True)]
    for value, exact in zip(actual, expected, strict=True):
        # Sums of fewer than 100 terms, in another order.
        torch.testing.assert_close(value, exact, rtol=0, atol=100 * ROUNDING * float(exact.abs().max()))


@pytest.mark.parametrize("offsets", [None, 2])
@pytest.mark.parametrize("function", [through_losses, in_one_pass])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo does so
def test_compiles_whole(function: Function, offsets: int | None, generator: torch.Generator) -> None:
    given = inputs((2, 9, 6, 13, 2), generator, offsets)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for one, other in zip(differentiated(compiled, given), differentiated(function, given), strict=True):
        assert torch.equal(one, other)


def test_opcheck(generator: torch.Generator) -> None:
    given = inputs((2, 4, 3, 5, 1), generator, 1)
    op = torch.ops.patterning_fast.linear_cross_entropy.default
    outputs = torch.empty(2, 4), torch.empty(2, 4, 3), torch.empty(1, 5, 3), torch.empty(2, 4)
    torch.library.opcheck(op, (*given, IGNORED, *outputs))
    torch.library.opcheck(op, (*given[:3], None, None, None, IGNORED, outputs[0], None, None, None))


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
wanted = gradients, gradients, False
run(hidden[:7], unembedding[:9], labels[:7] % 9, weights[:7], None, None, -100, wanted)
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
before = peak()
results = run(hidden, unembedding, labels, weights, None, None, -100, wanted)
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
    outputs = [torch.full(shape, 7.0, dtype=dtype) for shape in [(1, 3), (1, 3, 2), (1, 5, 2), (1, 3)]]
    hidden, unembedding = torch.zeros(1, 3, 2, dtype=dtype), torch.zeros(1, 5, 2, dtype=dtype)
    known = torch.zeros(1, 3, 5, dtype=dtype), torch.zeros(1, 3, dtype=dtype)
    labels = torch.tensor([[0, IGNORED, label]])
    with pytest.raises(ValueError, match="labels must lie in"):
        torch.ops.patterning_fast.linear_cross_entropy(hidden, unembedding, labels, None, *known, IGNORED, *outputs)
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
        ({"offset_scale": None}, "offset is given without offset_scale"),
        ({"offset": None}, "offset_scale is given without offset"),
        ({"offset": torch.zeros(3)}, r"offset has shape \[3\], but must have 2 dimensions"),
        ({"offset": torch.zeros(5, 3).T}, "offset is not contiguous"),
        ({"offset": torch.zeros(3, 4)}, r"offset has shape \[3, 4\], but must have \[3, 5\]"),
        ({"offset": torch.zeros(1, 3, 5)}, r"offset has shape \[1, 3, 5\], but must have 2 dimensions"),
        ({"offset": torch.zeros(3, 5).double()}, "offset is torch.float64, but must be torch.float32"),
        ({"offset": torch.zeros(3, 5).requires_grad_()}, "offset wants a gradient, but is a constant"),
        ({"offset_scale": torch.zeros(3, 1)}, r"offset_scale has shape \[3, 1\], but must have \[3\]"),
        ({"offset_scale": torch.zeros(3).double()}, "offset_scale is torch.float64, but must be torch.float32"),
        ({"offset_scale": torch.zeros(3, device="meta")}, "tensors are on different devices"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {
        "hidden": torch.zeros(3, 4),
        "unembedding": torch.zeros(5, 4),
        "labels": torch.zeros(3, dtype=torch.int64),
        "weights": torch.ones(3),
        "offset": torch.zeros(3, 5),
        "offset_scale": torch.ones(3),
    }
    with pytest.raises((TypeError, ValueError), match=message):
        weighted_linear_cross_entropy(**arguments | changes)
    if "weights" not in changes:
        del arguments["weights"]
        with pytest.raises((TypeError, ValueError), match=message):
            linear_cross_entropy(**arguments | changes)
