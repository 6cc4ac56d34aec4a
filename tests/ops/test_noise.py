"""The noise that `langevin_step` adds: standard normal, independent across chains, steps and indices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

import patterning_fast as pf
from patterning_fast.ops.reference.normal import noise as reference_noise

ROUNDING = 2.0**-24
LARGEST_RADIUS = math.sqrt(2 * 32 * math.log(2))


def noise(chains: int, params: int, seed: int = 0, step: int = 0, chain_ids: Tensor | None = None) -> Tensor:
    """The kernel's ξ, `[chains, params]`: a step from 0 with no drift and lr 1."""
    xi, zeros = torch.zeros(chains, params), torch.zeros(chains, params)
    pf.ops.langevin_step(
        xi, zeros, torch.zeros(params), lr=1.0, n_beta=0.0, localization=0.0, seed=seed, step=step, chain_ids=chain_ids
    )
    return xi


def test_kernel_agrees_with_reference() -> None:
    # Over all 2^31 radius words and 2^31 angle words the kernel's radius is within 1.64, its sine and cosine within
    # 0.98 units of 2^-24 of the exact ones (relative, absolute); their product rounds once more.
    xi = noise(64, 4099, seed=2**40 + 3, step=2**33 + 5).double()
    index = torch.arange(4099)
    exact = reference_noise(torch.tensor(2**40 + 3), torch.arange(64)[:, None], torch.tensor(2**33 + 5), index)
    assert bool(((xi - exact).abs() <= ROUNDING * (2.7 * exact.abs() + LARGEST_RADIUS)).all())


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    return noise(256, 40_000, seed=11).double().numpy()


def test_moments(many: np.ndarray) -> None:
    count = many.size
    # Standard errors of the first four moments of n normals: √(1, 2, 15, 96)/√n.
    for power, (moment, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
        assert abs((many**power).mean() - moment) < 4.5 * math.sqrt(variance / count)


def test_distribution(many: np.ndarray) -> None:
    assert scipy.stats.kstest(many[:, ::10].ravel(), "norm").pvalue > 1e-4
    uniform = np.sort(scipy.stats.norm.cdf(many[0]))
    count = len(uniform)
    rank = np.arange(1, count + 1)
    statistic = -count - np.mean((2 * rank - 1) * (np.log(uniform) + np.log1p(-uniform[::-1])))
    assert statistic < 6.0  # Anderson-Darling with known parameters passes 6.0 once in 1,000


@pytest.mark.parametrize("sigmas", [4.0, 4.5, 5.0])
def test_tails(many: np.ndarray, sigmas: float) -> None:
    expected = many.size * 2 * scipy.stats.norm.sf(sigmas)
    beyond = int((np.abs(many) > sigmas).sum())
    assert scipy.stats.poisson.cdf(beyond, expected) > 1e-4
    assert scipy.stats.poisson.sf(beyond - 1, expected) > 1e-4


def test_neighbours_are_uncorrelated(many: np.ndarray) -> None:
    after = noise(256, 40_000, seed=11, step=1).double().numpy()
    other_seed = noise(256, 40_000, seed=12).double().numpy()
    pairs = {
        "indices": (many[:, :-1], many[:, 1:]),
        "chains": (many[:-1], many[1:]),
        "steps": (many, after),
        "seeds": (many, other_seed),
        "squares": (many[:, :-1] ** 2 - 1, many[:, 1:] ** 2 - 1),
    }
    for name, (one, other) in pairs.items():
        correlation = (one * other).mean() / math.sqrt((one**2).mean() * (other**2).mean())
        assert abs(correlation) < 4.5 / math.sqrt(one.size), name


def test_noise_is_a_function_of_its_place() -> None:
    whole = noise(5, 1000, seed=3, step=7)
    assert torch.equal(noise(2, 300, seed=3, step=7, chain_ids=torch.tensor([4, 1])), whole[[4, 1], :300])
