"""`linear_response`: the exact derivative of chains, and by it χ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import patterning_fast as pf
from patterning_fast.engine.torch_ensemble import TorchEnsemble
from tests.models import language_model, language_posterior, tokens

DATUM = tokens(2, seed=5)
RESPONDING: dict[str, Any] = {"chains": 2, "draws": 5, "burn_in": 2, "batch_size": 4, "tile": 1, "progress": False}
SAMPLER = pf.SGLD(1e-3)


def heads(*names: str) -> dict[str, pf.Component]:
    found = pf.attention_heads(language_model())
    return {name: found[name] for name in names}


@pytest.mark.parametrize("component", ["l0h1", "l1h0"])
def test_it_is_the_derivative_of_the_chains(component: str) -> None:
    """Up-weight a datum in what chains feel, same noise and minibatches: φ changes as the response says.

    φ is taken on one sample, so that no minibatch stands between. The tolerance is what is left of central differences
    in float32: 1e-4 of the largest change for their cubic term, and as much again for rounding.
    """
    sample, weight = torch.tensor([3]), 0.1

    def mean_phi(up: float, datum: int) -> np.ndarray:
        def loss(model: nn.Module, batch: Any) -> Tensor:
            felt = pf.losses.next_token(model, batch)
            if torch.is_grad_enabled():
                felt = felt + up * pf.losses.next_token(model, DATUM[datum : datum + 1]).sum()
            return felt

        posterior = pf.LocalPosterior(language_model(), loss, tokens(), n_beta=10.0, localization=100.0)
        found = pf.sample(posterior, SAMPLER, components=heads(component), loss_samples=sample, recording_bytes=0,
                          probes={"datum": DATUM}, **RESPONDING)  # fmt: skip
        return found.traces.phi[:2].mean(1).numpy()

    with pytest.warns(UserWarning, match="whole model"):
        changes = [(mean_phi(weight, datum) - mean_phi(-weight, datum)) / (2 * weight) for datum in (0, 1)]
    found = pf.linear_response(language_posterior(), SAMPLER, components=heads(component), probes={"datum": DATUM},
                               loss_samples=sample, steps_between_draws=1, **RESPONDING)  # fmt: skip
    by_datum = found["chi_group"].values[0].reshape(2, 2, -1).sum(2)
    # What is taken out of each token's response is the same for all of them.
    response = 10.0 * (by_datum[:, 0] - by_datum[:, 1])
    np.testing.assert_allclose(response, changes[0] - changes[1], atol=2e-4 * np.abs(changes).max(), rtol=0.01)


def test_alike_on_tiles_and_with_what_is_recalled() -> None:
    one = pf.linear_response(language_posterior(), SAMPLER, components=heads("l0h1", "l1h0"), **RESPONDING)
    with pytest.warns(UserWarning, match="whole model"):
        other = pf.linear_response(
            language_posterior(), SAMPLER, components=heads("l0h1", "l1h0"), recording_bytes=0,
            **RESPONDING | {"tile": 2},
        )  # fmt: skip
    scale = float(np.abs(one["chi"]).max())
    np.testing.assert_allclose(one["chi"], other["chi"], atol=1e-3 * scale)  # the rounding of central differences
    assert list(one["component"].values) == ["l0h1", "l1h0"]


def test_chains_that_wait_are_the_same() -> None:
    """As many as fit at a time: 64 coordinates of a head, 41 places."""
    options = RESPONDING | {"chains": 5, "components": heads("l1h1")}
    together = pf.linear_response(language_posterior(), SAMPLER, **options)
    in_turn = pf.linear_response(language_posterior(), SAMPLER, trajectory_bytes=2 * 4 * 128 * 29, **options)
    np.testing.assert_array_equal(together["chi_group"], in_turn["chi_group"])


def test_phi_is_unweighted() -> None:
    """Weights of 2 are twice nβ to the chains, and nothing to φ."""
    twice = pf.linear_response(language_posterior(weights=torch.full((12, 8), 2.0)), SAMPLER, **RESPONDING)
    warm = pf.linear_response(language_posterior(n_beta=20.0), SAMPLER, **RESPONDING)
    scale = float(np.abs(warm["chi"]).max())
    np.testing.assert_allclose(twice["chi"], warm["chi"], atol=1e-3 * scale)
    assert list(warm["component"].values) == ["full"]


def test_a_chain_without_a_finite_derivative_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    step = TorchEnsemble.step
    options = RESPONDING | {"chains": 4}
    alone = pf.linear_response(language_posterior(), SAMPLER, **options)

    def stumble(moving: TorchEnsemble, pool: Any) -> None:
        step(moving, pool)
        moving.bank.params[moving.bank.starts[1] : moving.bank.starts[2]] = torch.nan

    monkeypatch.setattr(TorchEnsemble, "step", stumble)
    found = pf.linear_response(language_posterior(), SAMPLER, **options)
    by_chain, expected = found["chi_group"].values[0], alone["chi_group"].values[0]
    assert np.isnan(by_chain[1]).all()
    np.testing.assert_array_equal(by_chain[[0, 2, 3]], expected[[0, 2, 3]])
    np.testing.assert_allclose(found["chi"][0], expected[[0, 2, 3]].mean(0), rtol=1e-4, atol=1e-9)


def test_what_cannot_work_is_said_at_once() -> None:
    posterior = language_posterior()
    with pytest.raises(ValueError, match="only SGLD without"):
        pf.linear_response(posterior, pf.SGLD(1e-3, gradient_noise_correction=True))
    with pytest.raises(TypeError, match=r"only pf\.SGLD"):
        pf.linear_response(posterior, pf.SGHMC(1e-3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="raise trajectory_bytes"):
        pf.linear_response(posterior, SAMPLER, trajectory_bytes=1000)
    with pytest.raises(ValueError, match="at least 2 independent chains"):
        pf.linear_response(posterior, SAMPLER, chains=1)
    with pytest.raises(ValueError, match="indices"):
        pf.linear_response(posterior, SAMPLER, loss_samples=torch.tensor([99]))
    with pytest.raises(pf.ChainDivergedError, match="lower lr"):
        pf.linear_response(posterior, pf.SGLD(10.0), **RESPONDING | {"draws": 20})
