"""Jackknife pseudo-values: unbiased where the plug-in value is not, and the right spread."""

from __future__ import annotations

import pytest
import torch

from patterning_fast.estimators.comoments import Comoments, Means, mean_and_error, pseudo_values
from patterning_fast.estimators.statistics import covariance
from patterning_fast.ops.reference.comoments_update import comoments_update as reference


def test_pseudo_values_of_a_mean_are_the_groups_own_means(generator: torch.Generator) -> None:
    loss = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    groups = Means(loss, torch.zeros(5, 1), torch.zeros(5, 1, 3), torch.zeros(5, 1, 1))
    # Differences of doubles of size 1 to 10.
    assert torch.allclose(pseudo_values(lambda means: means.loss, groups), loss, atol=1e-14)


def test_covariance_is_unbiased_with_few_groups(generator: torch.Generator) -> None:
    """Two groups of one draw: the plug-in covariance is half the true one on average, the jackknife's is all of it."""
    repeats = 20_000
    x = torch.randn(repeats, 2, generator=generator, dtype=torch.float64)
    plug_in, jackknifed = [], []
    for draws in x:
        phi, loss = draws[:, None], draws[:, None]
        groups = Means(loss, phi, (phi * loss)[:, None], (phi * phi)[:, None])
        plug_in.append(covariance(Means(*(tensor.mean(0) for tensor in groups))))
        jackknifed.append(pseudo_values(covariance, groups).mean(0))
    # Var[x] = 1. Each estimate is χ²₁ (variance 2), the plug-in half of one: standard errors √2/√repeats and half that.
    assert abs(float(torch.stack(jackknifed).mean()) - 1.0) < 4.5 * (2 / repeats) ** 0.5
    assert abs(float(torch.stack(plug_in).mean()) - 0.5) < 4.5 * (0.5 / repeats) ** 0.5


def test_error_is_that_of_a_mean() -> None:
    mean, error = mean_and_error(torch.tensor([1.0, 3.0, 5.0, 7.0]))
    assert float(mean) == 4.0
    assert abs(float(error) - (20 / 3) ** 0.5 / 2) < 1e-6


def test_totals_do_not_grow() -> None:
    totals = Comoments.zeros(2, torch.zeros(10), torch.zeros(1))
    before = {name: value.shape for name, value in vars(totals).items()}
    for _ in range(100):
        totals.update(torch.rand(4, 10), torch.rand(4, 1), torch.tensor([0, 0, 1, 1]))
    assert {name: value.shape for name, value in vars(totals).items()} == before
    assert totals.count.tolist() == [200.0, 200.0]


def totals_of(draws: int, generator: torch.Generator) -> Comoments:
    """Totals of random draws of 4 chains in 2 groups: 5 losses about 3, 2 observables about -1."""
    totals = Comoments.zeros(2, torch.full((5,), 3.0), torch.full((2,), -1.0))
    for _ in range(draws):
        losses, observables = 3 + torch.randn(4, 5, generator=generator), torch.randn(4, 2, generator=generator) - 1
        totals.update(losses, observables, torch.tensor([0, 1, 1, 0]))
    return totals


TOTALS = ("count", "loss_sum", "observable_sum", "cross", "observable_square")


def test_merged_totals_are_those_of_all_draws(generator: torch.Generator) -> None:
    whole = totals_of(7, generator)
    generator.manual_seed(20261121)
    first, second = totals_of(3, generator), totals_of(4, generator)
    merged = first.merge(second)
    for name in TOTALS:
        # Sums of at most 14 doubles of size up to 30, added in two orders.
        assert torch.allclose(getattr(merged, name), getattr(whole, name), rtol=0, atol=14 * 14 * 30 * 2.0**-53), name
        assert not torch.equal(getattr(merged, name), getattr(first, name)), name


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Comoments.zeros(2, torch.zeros(5), torch.full((2,), -1.0)), "loss_shift differs"),
        (Comoments.zeros(2, torch.full((5,), 3.0), torch.zeros(2)), "observable_shift differs"),
        (Comoments.zeros(3, torch.full((5,), 3.0), torch.full((2,), -1.0)), r"count has shapes \[2\] and \[3\]"),
        (Comoments.zeros(2, torch.full((4,), 3.0), torch.full((2,), -1.0)), r"loss_shift has shapes \[5\] and \[4\]"),
    ],
)
def test_totals_that_do_not_belong_together_are_not_merged(
    other: Comoments, message: str, generator: torch.Generator
) -> None:
    with pytest.raises(ValueError, match=message):
        totals_of(1, generator).merge(other)


def test_reshifted_totals_are_those_about_the_new_shifts(generator: torch.Generator) -> None:
    loss_shift, observable_shift = torch.randn(5, generator=generator), torch.randn(2, generator=generator)
    totals = totals_of(6, generator)
    before = {name: getattr(totals, name).clone() for name in TOTALS}
    generator.manual_seed(20261121)
    torch.randn(5, generator=generator), torch.randn(2, generator=generator)
    expected = {name: torch.zeros_like(value) for name, value in before.items()}
    for _ in range(6):
        losses, observables = 3 + torch.randn(4, 5, generator=generator), torch.randn(4, 2, generator=generator) - 1
        reference(losses, observables, loss_shift, observable_shift, torch.tensor([0, 1, 1, 0]), *expected.values())
    moved = totals.reshift(loss_shift, observable_shift)
    assert torch.equal(moved.loss_shift, loss_shift)
    assert torch.equal(moved.observable_shift, observable_shift)
    for name in TOTALS:
        # Draws entered the totals in float: 3 roundings (2 shifts, 1 product) and 2 sums of 12 products below 40.
        assert torch.allclose(getattr(moved, name), expected[name], rtol=0, atol=12 * 5 * 40 * 2.0**-24), name
        assert torch.equal(getattr(totals, name), before[name]), name
    # There and back: each total is a difference of terms below 12 * 40, rounded at most 8 times.
    back = moved.reshift(totals.loss_shift, totals.observable_shift)
    for name in TOTALS:
        assert torch.allclose(getattr(back, name), before[name], rtol=0, atol=8 * 12 * 40 * 2.0**-53), name


def test_reshift_refuses_shifts_of_another_shape_or_dtype(generator: torch.Generator) -> None:
    totals = totals_of(1, generator)
    with pytest.raises(ValueError, match=r"loss_shift is torch\.float32 of shape \[4\]"):
        totals.reshift(torch.zeros(4), torch.zeros(2))
    with pytest.raises(ValueError, match=r"observable_shift is torch\.float64"):
        totals.reshift(torch.zeros(5), torch.zeros(2, dtype=torch.float64))
