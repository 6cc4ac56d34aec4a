"""`comoments_update`: the kernel against its reference, exactness far from zero, merging, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import patterning_fast as pf
from patterning_fast.estimators.comoments import Comoments
from patterning_fast.ops.reference.comoments_update import comoments_update as reference


def inputs(chains: int, n: int, k: int, groups: int, generator: torch.Generator) -> dict[str, Tensor]:
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


SIZES = [(1, 1, 1, 1), (3, 7, 1, 2), (0, 5, 2, 3), (5, 0, 1, 2), (4096, 3, 2, 16), (6, 5000, 4, 3), (9, 33, 33, 2)]


@pytest.mark.parametrize(("chains", "n", "k", "groups"), SIZES)
def test_kernel_agrees_with_reference(chains: int, n: int, k: int, groups: int, generator: torch.Generator) -> None:
    arguments = inputs(chains, n, k, groups, generator)
    expected = {name: tensor.clone() for name, tensor in arguments.items()}
    magnitude = {name: tensor.abs() for name, tensor in expected.items()}
    reference(**expected)
    reference(**magnitude | {"losses": 8 + magnitude["losses"], "observables": 8 + magnitude["observables"]})
    torch.ops.patterning_fast.comoments_update(*arguments.values())
    for name in ("count", "loss_sum", "observable_sum", "cross", "observable_square"):
        # Both add the same doubles, perhaps in another order: each addition rounds by 2^-53 of a partial sum, which
        # the sum of magnitudes bounds (the shift of 8 above keeps them positive).
        bound = 2.0**-53 * (chains + 2) * magnitude[name]
        assert bool(((arguments[name] - expected[name]).abs() <= bound).all()), name


def test_same_bits_for_any_number_of_threads(threads: int, generator: torch.Generator) -> None:
    arguments = inputs(8, 9001, 2, 3, generator)
    torch.ops.patterning_fast.comoments_update(*arguments.values())
    torch.set_num_threads(1)
    alone = inputs(8, 9001, 2, 3, generator.manual_seed(20261121))
    torch.ops.patterning_fast.comoments_update(*alone.values())
    assert all(torch.equal(arguments[name], alone[name]) for name in arguments)


def test_small_covariance_of_large_values_survives() -> None:
    """Fluctuations of 1e-4 about losses of 10: raw float products would lose the covariance altogether."""
    generator = torch.Generator().manual_seed(1)
    draws, n = 4000, 3
    shared = 1e-4 * torch.randn(draws, 1, generator=generator)
    losses = 10 + shared + 1e-4 * torch.randn(draws, n, generator=generator)
    totals = Comoments.zeros(1, torch.full((n,), 10.0), torch.zeros(1))
    for draw in range(draws):
        totals.update(losses[draw : draw + 1], shared[draw : draw + 1], torch.zeros(1, dtype=torch.int64))
    means = totals.means(slice(None))
    covariance = (means.cross - means.observable[:, :, None] * means.loss[:, None, :])[0, 0]
    exact = ((losses.double() - losses.double().mean(0)) * (shared.double() - shared.double().mean())).mean(0)
    assert torch.allclose(covariance, exact, rtol=1e-9, atol=0)


def test_totals_merge_by_addition(generator: torch.Generator) -> None:
    whole, parts = inputs(10, 40, 2, 3, generator), inputs(10, 40, 2, 3, generator.manual_seed(20261121))
    torch.ops.patterning_fast.comoments_update(*whole.values())
    for rows in (slice(0, 4), slice(4, 10)):
        each = parts | {name: parts[name][rows].contiguous() for name in ("losses", "observables", "groups")}
        torch.ops.patterning_fast.comoments_update(*each.values())
    assert all(torch.equal(whole[name], parts[name]) for name in ("count", "loss_sum", "cross", "observable_square"))


def test_opcheck(generator: torch.Generator) -> None:
    arguments = inputs(4, 5, 2, 3, generator)
    torch.library.opcheck(torch.ops.patterning_fast.comoments_update.default, tuple(arguments.values()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": torch.zeros(3, 5, dtype=torch.float64)}, "losses is torch.float64, but must be torch.float32"),
        ({"losses": torch.zeros(5)}, "losses and observables need 2 dimensions, got 1 and 2"),
        (
            {"cross": torch.zeros(2, 1, 4, dtype=torch.float64)},
            r"cross has shape \[2, 1, 4\], but must have \[2, 1, 5\]",
        ),
        ({"losses": torch.zeros(5, 3).T}, "losses is not contiguous"),
        ({"groups": torch.tensor([0, 2, 1])}, r"groups must lie in \[0, 2\)"),
        ({"groups": torch.tensor([0, -1, 1])}, r"groups must lie in \[0, 2\)"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str, generator: torch.Generator) -> None:
    arguments = inputs(3, 5, 1, 2, generator) | changes
    before = arguments["count"].clone()
    with pytest.raises((TypeError, ValueError), match=message):
        pf.ops.comoments_update(**arguments)
    assert torch.equal(arguments["count"], before)
