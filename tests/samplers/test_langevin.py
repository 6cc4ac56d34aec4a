"""Every sampler on a bank: numbers of its own in each row, frozen rows, and a state that can be saved."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import patterning_fast as pf
from patterning_fast.samplers.langevin import Sampler
from tests.samplers.banks import SAMPLERS, advance, begin, gradients, heads_bank

each_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)


@each_sampler
def test_a_step_moves_every_row_and_leaves_no_gradient(sampler: Sampler) -> None:
    bank = heads_bank()
    state = begin(sampler, bank)
    advance(sampler, bank, state, range(2))
    assert float(bank.distances().min()) > 0
    assert float(bank.grads.abs().max()) == 0
    assert int(state.step) == 2


@each_sampler
def test_every_row_has_numbers_of_its_own(sampler: Sampler) -> None:
    """A row of many does what it does in a bank where all rows have its numbers."""
    bank = heads_bank()
    state = begin(sampler, bank)
    advance(sampler, bank, state, range(4))
    numbers = (state.lr, state.n_beta, state.localization)
    for row in (0, 7, bank.plan.rows - 1):
        other = heads_bank()
        lr, n_beta, localization = (each[row].expand(bank.plan.rows).contiguous() for each in numbers)
        same = sampler.init(other, lr, n_beta, localization, seed=3)
        for step in range(4):
            other.grads.copy_(gradients(other, step))
            sampler.update(other, same)
        assert torch.equal(bank.params[state.place(row)], other.params[state.place(row)])
        assert not torch.equal(bank.params[state.place(1)], other.params[state.place(1)])


@each_sampler
def test_antithetic_pairs_mirror_each_other(sampler: Sampler) -> None:
    """Where gradients are odd about w*: here 0."""
    bank = heads_bank(antithetic=True)
    rows = torch.arange(bank.plan.rows) // 2  # a pair has the same numbers
    state = sampler.init(bank, sampler.lr * (1.0 + rows), 10.0 + rows, 50.0 - rows, seed=3)
    for _ in range(4):
        sampler.update(bank, state)
    for row in range(0, bank.plan.rows, 2):
        center = bank.centers[state.center_place(row)]
        first, second = (bank.params[state.place(at)] - center for at in (row, row + 1))
        # Parameters below 4; w is rounded in each of 4 steps and once more here, in both.
        assert float((first + second).abs().max()) < 2 * 5 * 4 * 2.0**-24
        assert float(first.abs().max()) > 0.01


@each_sampler
@pytest.mark.parametrize("broken", ["nothing", "gradients", "one parameter is NaN", "one parameter is infinite", "all"])
def test_a_frozen_row_stays_and_the_others_take_no_notice(sampler: Sampler, broken: str) -> None:
    bank, other = heads_bank(), heads_bank()
    state, undisturbed = begin(sampler, bank), begin(sampler, other)
    advance(sampler, bank, state, range(3))
    advance(sampler, other, undisturbed, range(3))
    row = 5
    place = state.place(row)
    if broken == "one parameter is infinite":
        bank.params[place][7] = torch.inf
    elif broken == "one parameter is NaN":
        bank.params[place][7] = torch.nan
    elif broken == "all":
        bank.params[place] = 1e38
        for memory in (state.memory, state.thermostat):
            if memory is not None:
                memory[place if memory is state.memory else row] = torch.inf
    state.freeze(bank, row)
    assert float(state.lr[row]) == float(state.noise_scale[row]) == 0
    held = bank.params[place].clone()
    assert int(held.isfinite().sum()) == held.numel() - broken.startswith("one parameter")
    for step in range(3, 6):
        noise = gradients(other, step)
        other.grads.copy_(noise)
        bank.grads.copy_(noise)
        if broken != "nothing":
            bank.grads[place] = torch.nan
        sampler.update(bank, state)
        sampler.update(other, undisturbed)
    assert torch.equal(bank.params[place].nan_to_num(7.0), held.nan_to_num(7.0))
    assert all(bool(tensor.isfinite().all()) for tensor in state.tensors().values())
    for at in range(bank.plan.rows):
        if at != row:
            own = state.place(at)
            assert torch.equal(bank.params[own], other.params[own])
            if state.memory is not None and undisturbed.memory is not None:
                assert torch.equal(state.memory[own], undisturbed.memory[own])
            if state.thermostat is not None and undisturbed.thermostat is not None:
                assert torch.equal(state.thermostat[at], undisturbed.thermostat[at])


@each_sampler
def test_a_loaded_state_goes_on_where_the_saved_one_was(sampler: Sampler) -> None:
    bank = heads_bank()
    state = begin(sampler, bank)
    advance(sampler, bank, state, range(3))
    state.freeze(bank, 2)
    saved = {name: tensor.clone() for name, tensor in state.tensors().items()}
    params = bank.params.clone()
    advance(sampler, bank, state, range(3, 6))

    resumed_bank = heads_bank()
    resumed = begin(sampler, resumed_bank, seed=99)
    places = {name: tensor.data_ptr() for name, tensor in resumed.tensors().items()}
    resumed.load(saved)
    assert {name: tensor.data_ptr() for name, tensor in resumed.tensors().items()} == places
    assert resumed.frozen == {2}
    resumed_bank.params.copy_(params)
    advance(sampler, resumed_bank, resumed, range(3, 6))
    assert torch.equal(resumed_bank.params, bank.params)
    for name, tensor in state.tensors().items():
        assert torch.equal(resumed.tensors()[name], tensor), name


def test_states_of_other_samplers_and_banks_are_refused() -> None:
    bank = heads_bank()
    state, momentum = begin(pf.SGLD(1e-3), bank), begin(pf.SGHMC(1e-3), bank)
    with pytest.raises(ValueError, match="resume with the sampler that saved it"):
        state.load(momentum.tensors())
    fewer = begin(pf.SGHMC(1e-3), heads_bank(only="l0h0"))
    with pytest.raises(ValueError, match="load: lr has shape"):
        momentum.load(fewer.tensors())
    assert set(momentum.tensors()) == set(state.tensors()) | {"memory"}
    assert set(begin(pf.SGNHT(1e-3), bank).tensors()) == set(momentum.tensors()) | {"thermostat"}


@each_sampler
def test_the_caller_s_numbers_are_not_touched(sampler: Sampler) -> None:
    bank = heads_bank()
    lr, n_beta, localization = (torch.full((bank.plan.rows,), value) for value in (1e-3, 10.0, 20.0))
    sampler.init(bank, lr, n_beta, localization, seed=0).freeze(bank, 0)
    assert all(float(tensor.min()) == float(tensor.max()) for tensor in (lr, n_beta, localization))


@each_sampler
def test_rows_with_numbers_that_cannot_work_are_refused(sampler: Sampler) -> None:
    bank = heads_bank()
    one = torch.ones(bank.plan.rows)
    for wrong in (0.0, -1.0, torch.nan, torch.inf):
        lr = one.clone()
        lr[3] = wrong
        with pytest.raises(ValueError, match="lr must be finite and > 0 in every row"):
            sampler.init(bank, lr, one, one, 0)
    with pytest.raises(ValueError, match="n_beta has shape"):
        sampler.init(bank, one, one[1:], one, 0)
    with pytest.raises(TypeError, match=r"localization is torch\.float64"):
        sampler.init(bank, one, one, one.double(), 0)


@pytest.mark.parametrize(
    ("sampler", "wrong", "message"),
    [
        (pf.SGLD, {"lr": 0.0}, "lr must be a finite number > 0, got 0.0"),
        (pf.RMSPropSGLD, {"lr": float("inf")}, "lr must be"),
        (pf.SGHMC, {"lr": float("nan")}, "lr must be"),
        (pf.SGNHT, {"lr": -1.0}, "lr must be"),
        (pf.RMSPropSGLD, {"decay": 1.0}, r"decay must be a finite number in \[0, 1\), got 1.0"),
        (pf.RMSPropSGLD, {"stability": 0.0}, "stability must be"),
        (pf.SGHMC, {"friction": 0.0}, r"friction must be a finite number in \(0, 1\]"),
        (pf.SGHMC, {"friction": 1.5}, "friction must be"),
        (pf.SGNHT, {"diffusion": -0.1}, "diffusion must be a finite number >= 0"),
        (pf.SGNHT, {"diffusion": float("inf")}, "diffusion must be"),
    ],
)
def test_hyperparameters_that_cannot_work_are_refused(sampler: Any, wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(**{"lr": 1e-3, **wrong})
