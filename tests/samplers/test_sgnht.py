"""SGNHT's momentum: normal at the start, reproducible, and never at rest."""

from __future__ import annotations

import torch
from torch import Tensor

import patterning_fast as pf
from patterning_fast.chains.bank import ChainBank
from tests.samplers.banks import advance, begin, heads_bank

SAMPLER = pf.SGNHT(1e-2, diffusion=0.3)


def momenta(bank: ChainBank, seed: int = 3) -> list[Tensor]:
    state = begin(SAMPLER, bank, seed)
    assert state.memory is not None
    return [state.memory[state.place(row)] for row in range(bank.plan.rows)]


def test_the_first_momentum_is_standard_normal() -> None:
    state = begin(SAMPLER, heads_bank(chains=64))
    assert state.memory is not None
    # 4.5 standard errors of the mean, the variance and the fourth moment of that many normals.
    count = state.memory.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
        assert abs(float(state.memory.double().pow(power).mean()) - moment) < 4.5 * (variance / count) ** 0.5
    assert state.thermostat is not None
    assert torch.equal(state.thermostat, torch.full_like(state.lr, 0.3))


def test_the_first_momentum_is_a_function_of_seed_and_chain() -> None:
    many, alone = momenta(heads_bank()), momenta(heads_bank(only="l0h1"))
    assert all(torch.equal(many[4 + replica], alone[replica]) for replica in range(4))
    assert not any(torch.equal(a, b) for a, b in zip(many, momenta(heads_bank(), seed=4), strict=True))
    for row, own in enumerate(many[:-4]):
        assert not any(torch.equal(own, other[: len(own)]) for other in many[row + 1 :])


def test_the_first_momentum_is_no_step_s_noise() -> None:
    bank = heads_bank()
    state = begin(SAMPLER, bank)
    for step in range(20):
        noise = torch.empty(1, 64)
        pf.ops.normal_(noise, seed=3, step=step, chain_ids=state.chain_ids[:1])
        # Of 64 pairs of independent normals; 4.5 standard errors, 20 times over.
        assert abs(float(noise[0] @ momenta(bank)[0][:64]) / 64) < 4.5 / 8


def test_an_antithetic_pair_starts_with_opposite_momenta() -> None:
    rows = momenta(heads_bank(antithetic=True))
    assert all(torch.equal(a, -b) for a, b in zip(rows[::2], rows[1::2], strict=True))


def test_the_momentum_moves() -> None:
    """Every coordinate, and as the gradient says: dp/dg = −lr·n_beta."""
    bank, pushed = heads_bank(), heads_bank()
    state, other = begin(SAMPLER, bank), begin(SAMPLER, pushed)
    assert state.memory is not None
    assert other.memory is not None
    before = state.memory.clone()
    pushed.grads += 1.0
    SAMPLER.update(bank, state)
    SAMPLER.update(pushed, other)
    assert float((state.memory != before).float().mean()) > 0.99
    for row in range(bank.plan.rows):
        place = state.place(row)
        expected = -state.lr[row] * state.n_beta[row]
        # Momenta below 8 in float32: differences carry 4 roundings of 2^-24 · 8.
        assert float((other.memory[place] - state.memory[place] - expected).abs().max()) < 4 * 8 * 2.0**-24
        kinetic = state.memory[place].double().square().mean()
        assert state.thermostat is not None
        assert abs(float(state.thermostat[row] - (0.3 + state.lr[row] * (kinetic - 1)))) < 1e-6
    moved = state.memory.clone()
    advance(SAMPLER, bank, state, range(1, 3))
    assert float((state.memory != moved).float().mean()) > 0.99
