"""RMSProp-SGLD's step sizes, from its first step on."""

from __future__ import annotations

import pytest
import torch

import patterning_fast as pf
from tests.samplers.banks import heads_bank


@pytest.mark.parametrize("bias_correction", [False, True])
def test_the_first_step_has_the_size_that_its_form_says(bias_correction: bool) -> None:
    """With n_beta = 0 it is √lr_i·ξ, lr_i = lr/(√v̂ + stability), and v is (1 − decay)·g²: v̂ is g² if corrected."""
    gradient, decay, stability = 2.0, 0.9, 0.3
    bank, other = heads_bank(), heads_bank()
    ones = torch.ones(bank.plan.rows)
    sampler, plain = pf.RMSPropSGLD(0.01, decay, stability, bias_correction), pf.SGLD(0.01)
    for each, own in ((sampler, bank), (plain, other)):
        own.grads.fill_(gradient)
        each.update(own, each.init(own, 0.01 * ones, 0 * ones, 0 * ones, seed=3))
    v = gradient**2 * (1.0 if bias_correction else 1 - decay)
    # Distances of some 0.1 √params from parameters below 4, rounded to 2^-22.
    assert torch.allclose(bank.distances(), other.distances() / (v**0.5 + stability) ** 0.5, rtol=1e-5)
