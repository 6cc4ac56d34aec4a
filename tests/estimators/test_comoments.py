"""Jackknife pseudo-values: unbiased where the plug-in value is not, and the right spread."""

from __future__ import annotations

import torch

from patterning_fast.estimators.comoments import Comoments, Means, mean_and_error, pseudo_values
from patterning_fast.estimators.statistics import ChainSeries, covariance


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


def test_split_r_hat_tells_drift_from_rest(generator: torch.Generator) -> None:
    def r_hat(drift: float) -> float:
        series = ChainSeries.zeros(8, 101)
        for draw in range(101):
            phi = torch.randn(8, generator=generator, dtype=torch.float64) + drift * draw
            series.add(range(8), draw, phi)
        return series.split_r_hat(slice(0, 8))

    assert abs(r_hat(0.0) - 1.0) < 0.02
    # Halves 2.5 apart: variance between them 1.67, within 1 + 2.5²/12, R̂ = 1.45.
    assert r_hat(0.05) > 1.3


def test_totals_do_not_grow() -> None:
    totals = Comoments.zeros(2, torch.zeros(10), torch.zeros(1))
    before = {name: value.shape for name, value in vars(totals).items()}
    for _ in range(100):
        totals.update(torch.rand(4, 10), torch.rand(4, 1), torch.tensor([0, 0, 1, 1]))
    assert {name: value.shape for name, value in vars(totals).items()} == before
    assert totals.count.tolist() == [200.0, 200.0]
