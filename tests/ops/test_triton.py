"""What is particular to the Triton forms. Without a GPU they run in Triton's interpreter, block by block in numpy."""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import patterning_fast as pf
from patterning_fast.ops.library import triton_interprets
from patterning_fast.ops.reference import comoments_update as reference_comoments
from patterning_fast.ops.reference import cross_entropy as reference_cross_entropy
from patterning_fast.ops.reference import philox
from patterning_fast.ops.reference.fused_draw import fused_draw as reference_fused_draw
from patterning_fast.ops.reference.langevin_step import langevin_step as reference_langevin_step
from patterning_fast.ops.reference.normal import noise as reference_noise
from patterning_fast.ops.reference.per_sample_langevin_step import per_sample_langevin_step as reference_per_sample
from tests.ops import triton_inputs as inputs

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
words = pytest.importorskip("patterning_fast.ops.triton.noise").words
sum_between = pytest.importorskip("patterning_fast.ops.triton.langevin_step").sum_between
linear_cross_entropy = pytest.importorskip("patterning_fast.ops.triton.linear_cross_entropy").linear_cross_entropy
weighted_cross_entropy = pytest.importorskip("patterning_fast.ops.triton.weighted_cross_entropy").weighted_cross_entropy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and not triton_interprets():
    pytest.skip("Triton needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

ROUNDING = 2.0**-24
LARGEST_RADIUS = math.sqrt(2 * 32 * math.log(2))

Arguments = dict[str, Any]


def noise_bound(xi: Tensor) -> Tensor:
    """How far a normal may be from the exact one.

    As in test_noise; the interpreter's fma also rounds its product, once more in each of sine, cosine and logarithm.
    """
    return ROUNDING * (4 * xi.abs() + 2 * LARGEST_RADIUS)


def run(form: Callable[..., None], arguments: Arguments) -> Arguments:
    """The arguments after the kernel, which has written to nothing before or after any of them."""
    inner, whole = {}, {}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            whole[name] = torch.nn.functional.pad(value.flatten(), (64, 64), value=7).to(DEVICE)
            inner[name] = whole[name][64:-64].view(value.shape)
    with pf.ops.use_backend("triton"):
        form(*(arguments | inner).values())
    for name, padded in whole.items():
        assert bool((padded[:64] == 7).all()), name
        assert bool((padded[-64:] == 7).all()), name
    return arguments | {name: value.cpu() for name, value in inner.items()}


def both(
    form: Callable[..., None], reference: Callable[..., None], arguments: Arguments
) -> tuple[Arguments, Arguments]:
    """The arguments after the kernel, and after the reference."""
    expected = {name: value.clone() if isinstance(value, Tensor) else value for name, value in arguments.items()}
    reference(*expected.values())
    return run(form, arguments), expected


def assert_within(bound: Tensor, actual: Tensor, expected: Tensor, name: str = "") -> None:
    assert bool(((actual.double() - expected.double()).abs() <= bound).all()), name


@triton.jit
def words_kernel(out, places):
    seed, chain, step, first = tl.load(places), tl.load(places + 1), tl.load(places + 2), tl.load(places + 3)
    x, y, z, w = words(seed, chain, step, first + tl.arange(0, 16))
    at = out + 4 * tl.arange(0, 16)
    tl.store(at, x.to(tl.int64))
    tl.store(at + 1, y.to(tl.int64))
    tl.store(at + 2, z.to(tl.int64))
    tl.store(at + 3, w.to(tl.int64))


@pytest.mark.parametrize(
    "place", [(0, 0, 0, 0), (2**63 - 1, 2**40 - 1, 2**40 - 1, 2**40 - 16), (2**62 + 3, 2**32 + 5, 2**33 + 7, 2**32 - 9)]
)
def test_words_are_those_of_the_reference(place: tuple[int, int, int, int]) -> None:
    out = torch.zeros(16, 4, dtype=torch.int64, device=DEVICE)
    words_kernel[(1,)](out, torch.tensor(place, device=DEVICE))
    seed, chain, step, first = map(torch.tensor, place)
    assert torch.equal(out.cpu(), philox.words(philox.Stream.noise, seed, chain, step, first + torch.arange(16)))


@triton.jit
def sum_kernel(out, numbers, span):
    tl.store(out, sum_between(numbers, tl.load(span), tl.load(span + 1), 16))


@pytest.mark.parametrize(("first", "last"), [(0, 0), (5, 3), (2, 3), (1, 17), (1, 100)])
def test_sums_of_blocks(first: int, last: int) -> None:
    out, numbers = torch.zeros(1, dtype=torch.float64, device=DEVICE), torch.arange(100.0, dtype=torch.float64)
    sum_kernel[(1,)](out, numbers.to(DEVICE), torch.tensor([first, last], device=DEVICE))
    assert out.item() == numbers[first:last].sum()


@pytest.mark.parametrize(("chains", "length"), [(3, 4099), (1, 1), (2, 0), (0, 5)])
def test_normal(chains: int, length: int) -> None:
    ids, seed, step = torch.arange(2**40 - chains, 2**40), torch.tensor(2**40 + 3), torch.tensor(2**33 + 5)
    places = {"chain_ids": ids, "seed": seed, "step": step}
    actual = run(torch.ops.patterning_fast.normal_, {"out": inputs.poison(chains, length), **places})
    xi = reference_noise(seed, ids[:, None], step, torch.arange(length))
    assert_within(noise_bound(xi), actual["out"], xi)


def langevin_bound(before: Arguments, after: Arguments) -> tuple[Tensor, Tensor]:
    """How far from the reference's a parameter (or momentum) may be, and the chain of each."""
    a = {name: value.double() if isinstance(value, Tensor) else value for name, value in before.items()}
    chain = torch.repeat_interleave(before["row_starts"].diff())
    index = torch.arange(len(chain)) - before["row_starts"][chain]
    xi = reference_noise(before["seed"], before["chain_ids"][chain], before["step"], index)
    center = a["center"][before["center_starts"][chain] + index]
    lr, constants = a["lr"][chain], before["constants"]
    drift = a["n_beta"][chain] * a["grads"].abs() + a["localization"][chain] * (a["params"] - center).abs()
    heat, momentum = lr, torch.zeros_like(lr)
    if before["rule"].startswith("rmsprop"):
        correction = 1 - constants[0] ** (int(before["step"]) + 1) if before["rule"] != "rmsprop" else 1.0
        heat = lr = lr / ((after["memory"].double() / correction).sqrt() + constants[1])
    elif before["rule"] != "sgld":
        heat, momentum = 2 * constants[0] * lr, a["memory"].abs()
    spread = a["noise_scale"][chain].abs() * heat.sqrt()
    size = a["params"].abs() + center.abs() + momentum + lr * drift + spread * xi.abs()
    # Each term is rounded at most ten times on its way: w - w*, product and sum of the drift; rmsprop's two products
    # and sum, correction, root, sum, quotient and root for its scale; the last sums.
    return spread * noise_bound(xi) + 10 * ROUNDING * size, chain


LENGTHS = [[1], [0, 3], [5, 0, 512, 1025, 7, 0], []]


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("rule", inputs.RULES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_langevin_step(lengths: list[int], rule: str, extras: bool, generator: torch.Generator) -> None:
    arguments = inputs.langevin_step(lengths, rule, extras, generator)
    actual, expected = both(torch.ops.patterning_fast.langevin_step, reference_langevin_step, arguments)
    bound, chain = langevin_bound(arguments, expected)

    def by_chain(values: Tensor) -> Tensor:
        return torch.zeros(len(lengths), dtype=torch.float64).index_add_(0, chain, values)

    assert_within(bound, actual["params"], expected["params"])
    assert not actual["grads"].any()
    if rule.startswith("rmsprop"):
        assert_within(4 * ROUNDING * expected["memory"], actual["memory"], expected["memory"])
    elif rule != "sgld":
        assert_within(bound, actual["memory"], expected["memory"])
    if rule == "sgnht":
        length = arguments["row_starts"].diff().clamp(min=1)
        warmed = arguments["lr"] * by_chain((2 * expected["memory"].abs() + bound) * bound) / length
        assert_within(warmed + ROUNDING * expected["thermostat"].abs(), actual["thermostat"], expected["thermostat"])
    if extras:
        assert torch.equal(actual["shadow"], actual["params"].bfloat16())
        # The kernel's w - w* is a float, and all the rest in doubles.
        index = torch.arange(len(chain)) - arguments["row_starts"][chain]
        reach = (arguments["params"] - arguments["center"][arguments["center_starts"][chain] + index]).double().abs()
        g = arguments["grads"].double().abs()
        for row, size in enumerate((0 * g, 2 * reach * reach, g * reach)):
            bound = 1.01 * ROUNDING * by_chain(size) + 1e-12 * expected["statistics"][row].abs()
            assert_within(bound, actual["statistics"][row], expected["statistics"][row], f"statistics[{row}]")
        assert torch.equal(actual["statistics"][3], expected["statistics"][3])


@pytest.fixture
def fma_rounds_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU. The product of two floats is exact in double, and its sum there almost never a tie of floats."""
    if DEVICE == "cpu":
        interpreter = importlib.import_module("triton.runtime.interpreter")

        def fma(_: Any, x: Any, y: Any, z: Any) -> Any:
            wide = x.data.astype(np.float64) * y.data + z.data
            return interpreter.TensorHandle(wide.astype(z.data.dtype), z.dtype.scalar)

        monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", fma)


def assert_bits_of_cpp(op: str, arguments: Arguments, *names: str) -> None:
    def cpp(*of_cpp: Any) -> None:
        with pf.ops.use_backend("cpp"):
            getattr(torch.ops.patterning_fast, op)(*of_cpp)

    actual, expected = both(getattr(torch.ops.patterning_fast, op), cpp, arguments)
    assert all(torch.equal(actual[name], expected[name]) for name in names if arguments[name] is not None)


@pytest.mark.usefixtures("fma_rounds_once")
def test_normals_have_the_bits_of_the_cpp() -> None:
    places = {"chain_ids": torch.arange(3), "seed": torch.tensor(2**62 + 3), "step": torch.tensor(2**33 + 5)}
    assert_bits_of_cpp("normal_", {"out": inputs.poison(3, 4099), **places}, "out")


@pytest.mark.usefixtures("fma_rounds_once")
@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("rule", inputs.RULES)
def test_langevin_step_has_the_bits_of_the_cpp(rule: str, extras: bool, generator: torch.Generator) -> None:
    arguments = inputs.langevin_step([1300, 0, 5, 702], rule, extras, generator)
    assert_bits_of_cpp("langevin_step", arguments, "params", "memory", "shadow")


@pytest.mark.usefixtures("fma_rounds_once")
@pytest.mark.parametrize("extras", [False, True])
def test_per_sample_langevin_step_has_the_bits_of_the_cpp(extras: bool, generator: torch.Generator) -> None:
    arguments = inputs.per_sample_langevin_step(3, 6, 1030, extras, generator)
    assert_bits_of_cpp("per_sample_langevin_step", arguments, "params")


@pytest.mark.filterwarnings("ignore:invalid value")  # of numpy, in the interpreter
def test_statistics_tell_which_chain_is_lost(generator: torch.Generator) -> None:
    arguments = inputs.langevin_step([700, 700, 3], "sgld", True, generator) | {"box": None}
    arguments["params"][650] = torch.inf
    arguments["params"][1401] = torch.nan
    actual, _ = both(torch.ops.patterning_fast.langevin_step, reference_langevin_step, arguments)
    assert actual["statistics"][3].tolist() == [0, 1, 0]


@pytest.mark.filterwarnings("ignore:invalid value")
def test_shadow_is_rounded_to_the_nearest(generator: torch.Generator) -> None:
    arguments = inputs.langevin_step([8], "sgld", True, generator) | {"box": None}
    arguments |= {"lr": torch.zeros(1), "localization": torch.zeros(1)}
    bits = [0x3F808000, 0x3F818000, 0x3F818001, 0x7FFFFFFF, 0x7F800001, 0x7F7FFFFF, 0x00000001, 0x3F817FFF]
    arguments["params"] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    actual = run(torch.ops.patterning_fast.langevin_step, arguments)
    assert torch.allclose(actual["shadow"], arguments["params"].bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "row_starts", [[0, 10**12, 5], [-(10**12), 3, 9], [9, 5, 0], [2**62, -(2**62), 7], [-3, 4, 12], [0, 600, -600]]
)
def test_bad_rows_touch_nothing_outside(row_starts: list[int], generator: torch.Generator) -> None:
    arguments = inputs.langevin_step([700, 9], "sgnht", True, generator)
    starts = {"row_starts": torch.tensor(row_starts), "center_starts": torch.tensor([-5, 10**15])}
    run(torch.ops.patterning_fast.langevin_step, arguments | starts)


def per_sample_bound(arguments: Arguments) -> Tensor:
    """How far from the reference's a parameter may be."""
    a = {name: value.double() if isinstance(value, Tensor) else value for name, value in arguments.items()}
    _, batch, length = arguments["grads"].shape
    xi = reference_noise(
        arguments["seed"], arguments["chain_ids"][:, None], arguments["step"], torch.arange(length)
    )  # fmt: skip
    lr, n_beta = a["lr"][:, None], a["n_beta"][:, None]
    g = a["grads"] if a["sample_weights"] is None else a["grads"] * a["sample_weights"][:, :, None]
    reach = (a["params"] - a["center"]).abs()
    drift = n_beta * g.abs().amax(1) + a["localization"][:, None] * reach
    spread = a["noise_scale"][:, None].abs() * lr.sqrt()
    # The mean of `batch` numbers is rounded batch + 4 times, at no more than twice the largest of them, the rest as
    # for sgld. Of the variance's c, at most lr counts: an error of (2 batch + 10) roundings of c, whose deviations from
    # the first sample are up to twice as large as from the mean, moves sqrt(lr - c) by no more than its own root.
    mean = (batch + 4) * ROUNDING * lr * drift
    deviations = (g - g[:, :1]).square().sum(1) / (batch - 1)
    c = (0.5 * lr * n_beta).square() * deviations / batch
    own = (c * (2 * batch + 10) * ROUNDING).clamp(max=lr)
    injected = (lr - c).clamp(min=0)
    root = torch.minimum(own.sqrt(), own / injected.sqrt())
    noise = a["noise_scale"][:, None].abs() * root * xi.abs() + spread * noise_bound(xi)
    return mean + noise + 10 * ROUNDING * (a["params"].abs() + lr * drift + spread * xi.abs())


def noise_scale_bound(batch: int, expected: Tensor) -> Tensor:
    """The gradient noise scale is s/(m - s/batch), of sums that are rounded as their terms are, and one sign."""
    return (2 * batch + 10) * ROUNDING * expected * (2 + 2 * expected / batch)


@pytest.mark.filterwarnings("ignore:var")  # of the reference, without chains
@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize(("chains", "batch", "length"), [(3, 5, 1030), (1, 2, 1), (0, 3, 5)])
def test_per_sample_langevin_step(
    chains: int, batch: int, length: int, extras: bool, generator: torch.Generator
) -> None:
    arguments = inputs.per_sample_langevin_step(chains, batch, length, extras, generator)
    actual, expected = both(torch.ops.patterning_fast.per_sample_langevin_step, reference_per_sample, arguments)
    assert_within(per_sample_bound(arguments), actual["params"], expected["params"])
    assert_within(
        noise_scale_bound(batch, expected["gradient_noise_scale"]),
        actual["gradient_noise_scale"], expected["gradient_noise_scale"],
    )  # fmt: skip


TOTALS = ("count", "loss_sum", "observable_sum", "cross", "observable_square", "loss_square")


def assert_totals(
    form: Callable[..., None], reference: Callable[..., None], arguments: Arguments, start: int = 0
) -> None:
    """Totals agree; those of the arguments are from `start` on."""
    actual, expected = both(form, reference, arguments)
    names = list(arguments)[start:]
    magnitude = {name: arguments[name].abs() if name in TOTALS else arguments[name].clone() for name in names}
    for values, shift in (("losses", "loss_shift"), ("observables", "observable_shift")):
        if values in magnitude:
            magnitude[values] = (magnitude[values] - magnitude[shift]).abs()
            magnitude[shift].zero_()
    totals = reference_comoments.comoments_update if "cross" in names else reference_comoments.loss_comoments_update
    totals(*magnitude.values())
    for name in set(TOTALS) & set(names):
        # Each factor of a product is rounded once, the product once, and a sum of 16 chains at most 16 times.
        assert_within(19 * ROUNDING * magnitude[name], actual[name], expected[name], name)
        assert name != "count" or torch.allclose(actual[name], expected[name], rtol=1e-14, atol=0)


SIZES = [
    (1, 1, 1, 1),
    (3, 7, 1, 2),
    (0, 5, 2, 3),
    (5, 0, 1, 2),
    (130, 3, 2, 5),
    (6, 70, 4, 3),
    (9, 33, 33, 2),
    (4, 3, 0, 2),
]


@pytest.mark.parametrize(("chains", "n", "k", "groups"), SIZES)
def test_comoments_update(chains: int, n: int, k: int, groups: int, generator: torch.Generator) -> None:
    arguments = inputs.comoments_update(chains, n, k, groups, generator)
    assert_totals(torch.ops.patterning_fast.comoments_update, reference_comoments.comoments_update, arguments)


@pytest.mark.parametrize(("chains", "n", "groups"), [(1, 1, 1), (3, 7, 2), (0, 5, 3), (5, 0, 2), (70, 67, 3)])
def test_loss_comoments_update(chains: int, n: int, groups: int, generator: torch.Generator) -> None:
    arguments = inputs.loss_comoments_update(chains, n, groups, generator)
    assert_totals(torch.ops.patterning_fast.loss_comoments_update, reference_comoments.loss_comoments_update, arguments)


def test_groups_that_do_not_exist_are_left_alone(generator: torch.Generator) -> None:
    arguments = inputs.comoments_update(4, 5, 2, 2, generator)
    good = {name: arguments[name][[0, 3]] for name in ("losses", "observables")} | {"groups": torch.tensor([0, 1])}
    arguments["losses"][1] = torch.nan
    arguments["groups"] = torch.tensor([0, 5, -1, 1])
    with_bad = run(torch.ops.patterning_fast.comoments_update, arguments)
    without = run(torch.ops.patterning_fast.comoments_update, arguments | good)
    assert all(torch.equal(with_bad[name], without[name]) for name in without if name in TOTALS)


def test_fused_draw(generator: torch.Generator) -> None:
    step = inputs.per_sample_langevin_step(3, 4, 1030, False, generator)
    arguments = step | inputs.comoments_update(5, 40, 17, 2, generator)
    assert_totals(torch.ops.patterning_fast.fused_draw, reference_fused_draw, arguments, start=len(step))
    actual, expected = both(torch.ops.patterning_fast.fused_draw, reference_fused_draw, arguments)
    assert_within(per_sample_bound(step), actual["params"], expected["params"])
    assert_within(
        noise_scale_bound(4, expected["gradient_noise_scale"]),
        actual["gradient_noise_scale"], expected["gradient_noise_scale"],
    )  # fmt: skip


def logits_bound(logits: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """How far a loss, and a probability relative to itself, may be off where logits are by `error`, per token."""
    size = logits.abs().amax(-1)
    # Sums of exponentials are rounded in a tree of 11 levels and once more a block; a GPU's own exponential and
    # logarithm are within 2^-21 and that of the exponent.
    off = 2 * error + 2.0**-21 * (4 + 2 * size) + ROUNDING * (12 + logits.shape[-1] // 64)
    return off, 2 * off


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize(("tokens", "vocabulary"), [(7, 2500), (1, 1), (0, 5), (9, 64)])
def test_weighted_cross_entropy(tokens: int, vocabulary: int, extras: bool, generator: torch.Generator) -> None:
    arguments = inputs.weighted_cross_entropy(tokens, vocabulary, extras, generator)
    arguments["logits"][:1, : vocabulary - 1] = -torch.inf
    actual, expected = both(weighted_cross_entropy, reference_cross_entropy.weighted_cross_entropy, arguments)
    logits = arguments["logits"].clamp(min=-1e3)
    loss, p = logits_bound(logits, torch.zeros(tokens))
    finite = expected["losses"].isfinite()
    assert torch.equal(actual["losses"][~finite], expected["losses"][~finite])
    assert_within(loss[finite], actual["losses"][finite], expected["losses"][finite])
    if extras:
        # p - 1 and its product with the weight are rounded, and so is the reference.
        size = arguments["weights"].abs()[:, None] * (logits.softmax(-1) * p[:, None] + 3 * ROUNDING)
        assert_within(1.1 * size, actual["grad_logits"], expected["grad_logits"])


def test_weighted_cross_entropy_in_place(generator: torch.Generator) -> None:
    arguments = inputs.weighted_cross_entropy(5, 3000, True, generator)
    apart = run(weighted_cross_entropy, arguments)
    within = run(lambda *them: weighted_cross_entropy(*them[:5], them[0]), arguments)
    assert torch.equal(within["logits"], apart["grad_logits"])


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize(
    ("chains", "tokens", "width", "vocabulary", "unembeddings", "offsets"),
    [
        (2, 70, 37, 130, 1, None),
        (2, 70, 37, 130, 2, None),
        (3, 1, 1, 1, 1, None),
        (2, 0, 4, 5, 1, None),
        (0, 2, 4, 5, 1, None),
        (2, 70, 17, 130, 1, 1),
        (2, 70, 17, 130, 1, 2),
        (2, 70, 17, 130, 2, 1),
        (3, 1, 1, 1, 1, 1),
        (2, 0, 4, 5, 1, 1),
        (0, 2, 4, 5, 1, 1),
    ],
)
def test_linear_cross_entropy(
    chains: int, tokens: int, width: int, vocabulary: int, unembeddings: int, offsets: int | None, extras: bool,
    generator: torch.Generator,
) -> None:  # fmt: skip
    arguments = inputs.linear_cross_entropy(chains, tokens, width, vocabulary, unembeddings, offsets, extras, generator)
    actual, expected = both(linear_cross_entropy, reference_cross_entropy.linear_cross_entropy, arguments)
    h, u = arguments["hidden"].double(), arguments["unembedding"].double()
    logits, magnitude = h @ u.mT, h.abs() @ u.abs().mT
    if offsets is not None:
        offset = arguments["offset"].double()
        known = arguments["offset_scale"].double()[:, :, None] * offset
        logits, magnitude = logits + known, magnitude + known.abs()
    error = ROUNDING * (width + 2) * magnitude
    loss, p = logits_bound(logits, error.amax(-1))
    assert_within(loss, actual["losses"], expected["losses"])
    if extras:
        # A product of depth n is rounded n times, and so are the sums over chains.
        weights = arguments["weights"].double().abs()[:, :, None]
        one_hot = torch.zeros_like(logits).scatter_(-1, arguments["labels"].clamp(min=0)[:, :, None], 1.0)
        gradient = weights * (logits.softmax(-1) + one_hot)
        wrong = 1.1 * weights * (logits.softmax(-1) * p[:, :, None] + 3 * ROUNDING)
        bound = wrong @ u.abs() + ROUNDING * vocabulary * (gradient @ u.abs())
        assert_within(bound, actual["grad_hidden"], expected["grad_hidden"])
        bound = wrong.mT @ h.abs() + ROUNDING * chains * (tokens + 1) * (gradient.mT @ h.abs())
        assert_within(bound.sum_to_size(u.shape), actual["grad_unembedding"], expected["grad_unembedding"])
        if offsets is not None:
            bound = ((wrong + ROUNDING * (vocabulary + 1) * gradient) * offset.abs()).sum(-1)
            assert_within(bound, actual["grad_offset_scale"], expected["grad_offset_scale"])


@pytest.mark.parametrize("label", [-1, 17, 2**40])
def test_labels_that_do_not_exist_give_nan(label: int, generator: torch.Generator) -> None:
    arguments = inputs.linear_cross_entropy(1, 5, 9, 17, 1, None, True, generator)
    good = run(linear_cross_entropy, arguments)
    arguments["labels"][0, 2] = label
    bad = run(linear_cross_entropy, arguments)
    assert torch.equal(bad["losses"][0].isnan(), torch.arange(5) == 2)
    others = torch.tensor([0, 1, 3, 4])
    assert torch.equal(bad["losses"][:, others], good["losses"][:, others])
    assert torch.equal(bad["grad_hidden"][:, others], good["grad_hidden"][:, others])
    assert bool(bad["grad_unembedding"].isnan().all())

    arguments = inputs.weighted_cross_entropy(5, 17, True, generator)
    arguments["labels"][2] = label
    bad = run(weighted_cross_entropy, arguments)
    assert torch.equal(bad["losses"].isnan(), torch.arange(5) == 2)
    assert torch.equal(bad["grad_logits"].isnan().any(1), torch.arange(5) == 2)


def python(*program: str) -> subprocess.CompletedProcess[str]:
    """A Python of its own, without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *program], env=environment, capture_output=True, text=True)


def test_triton_is_imported_by_the_first_op_that_uses_it() -> None:
    program = (
        "import os, sys, torch, patterning_fast as pf\n"
        "def imported(): return [name for name in sys.modules if name == 'triton' or 'ops.triton' in name]\n"
        "pf.ops.normal_(torch.empty(1, 8), seed=0, step=0)\n"
        "assert not imported(), imported()\n"
        "os.environ['TRITON_INTERPRET'] = '1'\n"
        "with pf.ops.use_backend('triton'): pf.ops.normal_(torch.empty(1, 8), seed=0, step=0)\n"
        "assert 'patterning_fast.ops.triton.normal' in imported(), imported()\n"
    )
    result = python("-c", program)
    assert result.returncode == 0, result.stderr


def test_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pf.ops.use_backend("triton"), pytest.raises(RuntimeError, match="only with TRITON_INTERPRET=1"):
        pf.ops.normal_(torch.empty(1, 8), seed=0, step=0)


def test_float64_runs_on_the_reference() -> None:
    out = inputs.poison(1, 8, dtype=torch.float64).to(DEVICE)
    with pf.ops.use_backend("triton"):
        pf.ops.normal_(out, seed=0, step=0)
    zero = torch.tensor(0)
    assert torch.equal(out.cpu()[0], reference_noise(zero, zero, zero, torch.arange(8)))


@pytest.mark.skipif(DEVICE == "cuda", reason="the tests above compile all kernels")
def test_kernels_compile_for_a_gpu() -> None:
    result = python("-m", "tests.ops.compile_triton")
    assert result.returncode == 0, result.stderr
    assert len(set(result.stdout.split())) == 12
