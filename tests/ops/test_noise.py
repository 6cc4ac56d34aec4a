"""`normal_`, the noise that `langevin_step` adds: standard normal, independent across chains, steps and indices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

import patterning_fast as pf
from patterning_fast.ops.reference.normal import noise as reference_noise
from tests.ops.forms import FORMS, skip_if_interpreted, use_form

ROUNDING = 2.0**-24
LARGEST_RADIUS = math.sqrt(2 * 32 * math.log(2))


def noise(chains: int, params: int, seed: int = 0, step: int = 0, chain_ids: Tensor | None = None) -> Tensor:
    """The kernel's ξ, `[chains, params]`."""
    return pf.ops.normal_(torch.full((chains, params), torch.nan), seed=seed, step=step, chain_ids=chain_ids)


PLACES = [
    pytest.param(2**40 + 3, 2**33 + 5, 0, id="large seed and step"),
    pytest.param(0, 2**32 - 1, 2**32 - 3, id="steps and chains about 2^32"),
    pytest.param(2**63 - 1, 2**40 - 1, 2**40 - 8, id="the largest of all"),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("seed", "step", "first_chain"), PLACES)
@pytest.mark.parametrize(("chains", "params"), [(8, 4099), (2, 1027), (1, 1), (3, 67), (0, 5), (5, 0)])
def test_agrees_with_reference(seed: int, step: int, first_chain: int, chains: int, params: int, form: str) -> None:
    # Over all 2^31 radius words and 2^31 angle words the kernel's radius is within 1.64, its sine and cosine within
    # 0.98 units of 2^-24 of the exact ones (relative, absolute); their product rounds once more.
    chain = torch.arange(first_chain, first_chain + chains)
    skip_if_interpreted(form, chains, params)
    with use_form("normal_", form) as device:
        xi = torch.full((chains, params), torch.nan, device=device)
        pf.ops.normal_(xi, seed=seed, step=step, chain_ids=chain.to(device))
    index = torch.arange(params)
    exact = reference_noise(torch.tensor(seed), chain[:, None], torch.tensor(step), index)
    assert bool(((xi.cpu().double() - exact).abs() <= ROUNDING * (2.7 * exact.abs() + LARGEST_RADIUS)).all())


def test_it_is_the_noise_of_langevin_step() -> None:
    w, zeros = torch.zeros(3, 1000), torch.zeros(3, 1000)
    pf.ops.langevin_step(w, zeros, zeros, lr=1.0, n_beta=0.0, localization=0.0, seed=5, step=6)
    assert torch.equal(w, noise(3, 1000, seed=5, step=6))


def test_same_bits_in_every_cpp_form() -> None:
    def bits(form: str) -> Tensor:
        with use_form("normal_", form):
            return noise(3, 5003, seed=9, step=2)

    baseline, *others = [bits(form) for form in FORMS if form.startswith("cpp")]
    assert all(torch.equal(baseline, other) for other in others)


def test_opcheck() -> None:
    arguments = (torch.zeros(2, 5), torch.arange(2), torch.tensor(0), torch.tensor(1))
    torch.library.opcheck(torch.ops.patterning_fast.normal_.default, arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": torch.zeros(5)}, r"out has shape \[5\], but must have 2 dimensions"),
        ({"out": torch.zeros(2, 5).half()}, "out is torch.float16, but must be torch.float32"),
        ({"out": torch.zeros(5, 2).T}, "out is not contiguous"),
        ({"chain_ids": torch.zeros(3, dtype=torch.int64)}, r"chain_ids has shape \[3\], but must have \[2\]"),
        ({"seed": 0.5}, "seed must be a Tensor or a whole number >= 0, got 0.5"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"out": torch.zeros(2, 5), "seed": 0, "step": 0}
    with pytest.raises((TypeError, ValueError), match=message):
        pf.ops.normal_(**arguments | changes)


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
