"""`comoments_update` and `loss_comoments_update`: every form against the reference, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import patterning_fast as pf
from patterning_fast.estimators.comoments import Comoments
from patterning_fast.ops.reference import comoments_update as reference
from tests.ops.forms import FORMS, ISAS, interpreted, skip_if_interpreted, use_form

ROUNDING = 2.0**-24
BLOCK = 64
TOTALS = ("count", "loss_sum", "observable_sum", "cross", "observable_square")
LOSS_TOTALS = ("count", "loss_sum", "loss_square")


def inputs(chains: int, n: int, k: int, groups: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random arguments on the CPU: losses near 3, unsorted groups, totals that are not zero."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "losses": 3 + normal(chains, n),
        "observables": normal(chains, k),
        "loss_shift": 3 + 0.1 * normal(n),
        "observable_shift": 0.1 * normal(k),
        "groups": torch.randint(groups, (chains,), generator=generator),
        "count": torch.rand(groups, generator=generator, dtype=torch.float64),
        "loss_sum": normal(groups, n).double(),
        "observable_sum": normal(groups, k).double(),
        "cross": normal(groups, k, n).double(),
        "observable_square": normal(groups, k, k).double(),
    }


def loss_inputs(chains: int, n: int, groups: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random arguments of `loss_comoments_update`; loss_square is not symmetric, so that either side is checked."""
    shared = inputs(chains, n, 0, groups, generator)
    square = torch.randn(groups, n, n, generator=generator).double()
    return {name: shared[name] for name in ("losses", "loss_shift", "groups", "count", "loss_sum")} | {
        "loss_square": square
    }


def run(op: str, form: str, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """The arguments as the op leaves them in a form, on the CPU; the arguments themselves are not touched."""
    with use_form(op, form) as device:
        after = {name: tensor.to(device, copy=True) for name, tensor in arguments.items()}
        getattr(torch.ops.patterning_fast, op)(*after.values())
    return {name: tensor.cpu() for name, tensor in after.items()}


def bounds(arguments: dict[str, Tensor], chains: int, names: tuple[str, ...]) -> dict[str, Tensor]:
    """How far each total may be from the reference's.

    A shifted value is rounded once. A product of two and its sum with at most 63 others in float has then at most
    64 + 2 roundings, each by 2^-24 of what it is part of: of the sum of magnitudes. Each block's sum is added in
    double, as are the reference's chains, with one rounding of 2^-53 of a partial sum each.
    """
    magnitude = dict(arguments)
    for value, shift in (("losses", "loss_shift"), ("observables", "observable_shift")):
        if value in magnitude:
            magnitude[value] = (arguments[value].double() - arguments[shift].double()).abs()
            magnitude[shift] = torch.zeros_like(arguments[shift])
    added = {name: torch.zeros_like(tensor) if name in names else tensor for name, tensor in magnitude.items()}
    getattr(reference, "comoments_update" if "cross" in names else "loss_comoments_update")(**added)
    float_roundings = ROUNDING * (min(BLOCK, chains) + 2)
    return {
        name: (0.0 if name == "count" else float_roundings) * added[name]
        + 2.0**-53 * (2 * chains + 2) * (added[name] + arguments[name].abs())
        for name in names
    }


def sizes(form: str, small: bool) -> bool:
    """Whether a form runs sizes that are not small: the baseline has no fma of its own, Triton may be interpreted."""
    return small or form not in ("cpp@baseline", "triton")


SIZES = [
    (0, 5, 2, 3),
    (1, 1, 1, 1),
    (3, 7, 0, 2),
    (5, 0, 1, 2),
    (0, 0, 0, 1),
    (67, 19, 1, 1),
    (130, 35, 4, 2),
    (9, 33, 5, 200),
    (70, 41, 33, 2),
    (300, 17, 6, 1),
]
LARGE_SIZES = [(4096, 3, 2, 16), (6, 5003, 4, 3), (600, 2051, 1, 1), (600, 271, 259, 2)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("chains", "n", "k", "groups"), SIZES + LARGE_SIZES)
def test_agrees_with_reference(form: str, chains: int, n: int, k: int, groups: int, generator: torch.Generator) -> None:
    skip_if_interpreted(form, groups, chains * n)
    if not sizes(form, (chains, n, k, groups) in SIZES):
        pytest.skip("too large for this form")
    arguments = inputs(chains, n, k, groups, generator)
    expected = {name: tensor.clone() for name, tensor in arguments.items()}
    reference.comoments_update(**expected)
    actual = run("comoments_update", form, arguments)
    bound = bounds(arguments, chains, TOTALS)
    for name in arguments:
        if name in TOTALS:
            assert bool(((actual[name] - expected[name]).abs() <= bound[name]).all()), name
        else:
            assert torch.equal(actual[name], arguments[name]), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("chains", "n", "groups"),
    [(0, 5, 2), (1, 1, 1), (3, 0, 2), (7, 17, 100), (130, 37, 2), (300, 19, 1), (70, 511, 1), (520, 300, 2)],
)
def test_losses_with_themselves_agree_with_reference(
    form: str, chains: int, n: int, groups: int, generator: torch.Generator
) -> None:
    if not sizes(form, n < 100):
        pytest.skip("too large for this form")
    arguments = loss_inputs(chains, n, groups, generator)
    expected = {name: tensor.clone() for name, tensor in arguments.items()}
    reference.loss_comoments_update(**expected)
    actual = run("loss_comoments_update", form, arguments)
    bound = bounds(arguments, chains, LOSS_TOTALS)
    for name in LOSS_TOTALS:
        assert bool(((actual[name] - expected[name]).abs() <= bound[name]).all()), name
    symmetric = run("loss_comoments_update", form, arguments | {"loss_square": torch.zeros(groups, n, n).double()})
    if not interpreted(form):  # it multiplies matrices by a library, which rounds each side its own way
        assert torch.equal(symmetric["loss_square"], symmetric["loss_square"].mT)


@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_on_every_isa(isa: str, generator: torch.Generator) -> None:
    for op, arguments in (
        ("comoments_update", inputs(133, 37, 3, 2, generator)),
        ("comoments_update", inputs(133, 37, 21, 2, generator)),
        ("loss_comoments_update", loss_inputs(133, 37, 2, generator)),
    ):
        actual, baseline = run(op, f"cpp@{isa}", arguments), run(op, "cpp@baseline", arguments)
        assert all(torch.equal(actual[name], baseline[name]) for name in arguments)


def test_same_bits_for_any_number_of_threads(threads: int, generator: torch.Generator) -> None:
    few, many = inputs(70, 9001, 2, 3, generator), inputs(70, 300, 250, 3, generator)
    losses = loss_inputs(70, 500, 2, generator)
    for op, arguments in (("comoments_update", few), ("comoments_update", many), ("loss_comoments_update", losses)):
        torch.set_num_threads(threads)
        shared = run(op, FORMS[len(ISAS) - 1], arguments)
        torch.set_num_threads(1)
        alone = run(op, FORMS[len(ISAS) - 1], arguments)
        assert all(torch.equal(shared[name], alone[name]) for name in arguments)


@pytest.mark.parametrize("isa", ISAS)
def test_few_and_many_observables_give_the_same_bits(isa: str, generator: torch.Generator) -> None:
    """Few observables stream, many are a matrix product, and the losses with themselves are half of one."""
    whole = inputs(200, 45, 23, 2, generator)
    expected = run("comoments_update", f"cpp@{isa}", whole)
    for k in range(6):
        few = slice(k, 2 * k)
        part = dict(whole)
        for name, at in (("observables", (slice(None), few)), ("observable_shift", few),
                         ("observable_sum", (slice(None), few)), ("cross", (slice(None), few)),
                         ("observable_square", (slice(None), few, few))):  # fmt: skip
            part[name] = whole[name][at].contiguous()
        actual = run("comoments_update", f"cpp@{isa}", part)
        assert torch.equal(actual["loss_sum"], expected["loss_sum"])
        assert torch.equal(actual["cross"], expected["cross"][:, few])
        assert torch.equal(actual["observable_square"], expected["observable_square"][:, few, few])
    own = {name: whole[name] for name in ("losses", "loss_shift", "groups", "count", "loss_sum")}
    own["loss_square"] = torch.zeros(2, 45, 45).double()
    itself = whole | {"observables": whole["losses"], "observable_shift": whole["loss_shift"]} | {
        "observable_sum": whole["loss_sum"], "cross": own["loss_square"], "observable_square": own["loss_square"]
    }  # fmt: skip
    square = run("loss_comoments_update", f"cpp@{isa}", own)
    product = run("comoments_update", f"cpp@{isa}", itself)
    assert torch.equal(square["loss_square"], product["cross"])
    assert torch.equal(square["loss_square"], product["observable_square"])
    assert torch.equal(square["loss_sum"], product["observable_sum"])


@pytest.mark.parametrize("form", FORMS)
def test_chains_that_are_not_there_add_nothing(form: str, generator: torch.Generator) -> None:
    """A group without chains keeps its totals to the bit, beside one that does not."""
    arguments = inputs(5, 21, 7, 3, generator) | {"groups": torch.tensor([2, 0, 2, 0, 0])}
    actual = run("comoments_update", form, arguments)
    assert all(torch.equal(actual[name][1], arguments[name][1]) for name in TOTALS)
    assert actual["count"].sub(arguments["count"]).round().tolist() == [3.0, 0.0, 2.0]


@pytest.mark.parametrize("form", FORMS)
def test_small_covariance_of_large_values_survives(form: str) -> None:
    """Fluctuations of 1e-4 about losses of 10: raw float products would lose the covariance altogether."""
    generator = torch.Generator().manual_seed(1)
    draws, chains, n = 40, 100, 3
    shared = 1e-4 * torch.randn(draws * chains, 1, generator=generator)
    losses = 10 + shared + 1e-4 * torch.randn(draws * chains, n, generator=generator)
    groups = torch.zeros(chains, dtype=torch.int64)
    with use_form("comoments_update", form) as device:
        totals = Comoments.zeros(1, torch.full((n,), 10.0, device=device), torch.zeros(1, device=device))
        for rows in torch.arange(draws * chains).view(draws, chains):
            totals.update(losses[rows].to(device), shared[rows].to(device), groups.to(device))
        means = totals.means(slice(None))
    covariance = (means.cross - means.observable[:, :, None] * means.loss[:, None, :])[0, 0].cpu()
    phi, loss = shared.double(), losses.double() - 10
    exact = ((loss - loss.mean(0)) * (phi - phi.mean())).mean(0)
    # Near the shift l - 10 is exact. A mean of products in blocks of 64 is off by at most 66 roundings of the mean
    # magnitude, a mean of values likewise by 64 of theirs.
    bound = ROUNDING * (66 * (phi * loss).abs().mean(0) + 2 * 64 * phi.abs().mean() * loss.abs().mean(0))
    assert bool((bound < 2e-5 * exact).all())
    assert bool(((covariance - exact).abs() <= bound).all())


def test_totals_merge_by_addition(generator: torch.Generator) -> None:
    """Calls that each hold whole blocks give the bits of one call with all of them."""
    whole = inputs(192, 40, 2, 1, generator)
    expected, parts = run("comoments_update", FORMS[0], whole), whole
    for rows in (slice(0, 64), slice(64, 192)):
        each = parts | {name: whole[name][rows].contiguous() for name in ("losses", "observables", "groups")}
        parts = run("comoments_update", FORMS[0], each)
    assert all(torch.equal(expected[name], parts[name]) for name in TOTALS)


def test_opcheck(generator: torch.Generator) -> None:
    ops = torch.ops.patterning_fast
    torch.library.opcheck(ops.comoments_update.default, tuple(inputs(4, 5, 2, 3, generator).values()))
    torch.library.opcheck(ops.loss_comoments_update.default, tuple(loss_inputs(4, 5, 3, generator).values()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": torch.zeros(3, 5, dtype=torch.float64)}, "losses is torch.float64, but must be torch.float32"),
        ({"losses": torch.zeros(5)}, r"losses has shape \[5\], but must have 2 dimensions"),
        (
            {"cross": torch.zeros(2, 1, 4, dtype=torch.float64)},
            r"cross has shape \[2, 1, 4\], but must have \[2, 1, 5\]",
        ),
        ({"losses": torch.zeros(5, 3).T}, "losses is not contiguous"),
        ({"groups": torch.tensor([0, 2, 1])}, r"groups must lie in \[0, groups"),
        ({"groups": torch.tensor([0, 1, -1])}, r"groups must lie in \[0, groups"),
    ],
)
@pytest.mark.parametrize("isa", ISAS)
def test_bad_input_is_refused(isa: str, changes: dict[str, Any], message: str, generator: torch.Generator) -> None:
    arguments = inputs(3, 5, 1, 2, generator) | changes
    before = {name: arguments[name].clone() for name in TOTALS}
    with use_form("comoments_update", f"cpp@{isa}"), pytest.raises((TypeError, ValueError), match=message):
        pf.ops.comoments_update(**arguments)
    assert all(torch.equal(arguments[name], before[name]) for name in TOTALS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_square": torch.zeros(2, 5, 4).double()}, r"loss_square has shape \[2, 5, 4\]"),
        ({"groups": torch.tensor([0, 1, 2])}, r"groups must lie in \[0, groups"),
    ],
)
def test_bad_losses_with_themselves_are_refused(
    changes: dict[str, Any], message: str, generator: torch.Generator
) -> None:
    arguments = loss_inputs(3, 5, 2, generator) | changes
    before = {name: arguments[name].clone() for name in LOSS_TOTALS}
    with use_form("comoments_update", FORMS[0]), pytest.raises(ValueError, match=message):
        pf.ops.loss_comoments_update(**arguments)
    assert all(torch.equal(arguments[name], before[name]) for name in LOSS_TOTALS)
