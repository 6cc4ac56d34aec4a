"""Sampling Hugging Face decoders, from LocalPosterior to susceptibilities."""

from __future__ import annotations

import pytest
import torch
import xarray as xr

import patterning_fast as pf
from patterning_fast.chains.bank import ChainBank
from patterning_fast.chains.plan import Setting, chain_plan
from patterning_fast.engine.suffix import Modules, WholeModel
from patterning_fast.posterior.components import resolve_components
from tests.decoders import decoder
from tests.models import CONTEXT, VOCABULARY, tokens


def posterior(name: str) -> pf.LocalPosterior:
    return pf.LocalPosterior(decoder(name), pf.losses.next_token, tokens(), n_beta=10.0, localization=100.0)


def chi(name: str) -> xr.Dataset:
    model = decoder(name)
    components = pf.components(model, "heads", "layers", "full")
    run = pf.sample(
        posterior(name), pf.SGLD(1e-3), components=components, chains=2, draws=2, batch_size=4, tile=1, progress=False
    )
    return run.susceptibilities()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gpt_neox"])
def test_every_head_and_layer_is_estimated(name: str) -> None:
    result = chi(name)
    assert dict(result.sizes) == {"component": 8 + 2 + 1, "token": 12 * CONTEXT, "group": 2}
    assert bool(result["chi"].notnull().all())
    assert bool((result["chi"].std("token") > 0).all())


def test_the_number_of_threads_changes_nothing(threads: int) -> None:
    result = chi("llama")
    torch.set_num_threads(1)
    xr.testing.assert_identical(result["chi"], chi("llama")["chi"])


def test_tied_weights_move_in_both_places() -> None:
    """The full component holds them once; losses and gradients are those of a model changed in place."""
    local, data = posterior("llama"), tokens()
    parameters = dict(local.model.named_parameters())
    assert "lm_head.weight" not in parameters
    (full,) = resolve_components(local.model, None)
    bank = ChainBank(chain_plan([full], 2, False, None, (Setting(1e-3, 1.0, 1.0),)), parameters)
    moved = decoder("llama")
    with torch.no_grad():
        bank.params += 0.1
        for parameter in moved.parameters():
            parameter += 0.1
    assert moved.lm_head.weight is moved.model.embed_tokens.weight
    leaves = {name: leaf[0] for name, leaf in bank.leaves(slice(0, 1)).items()}
    losses = (
        WholeModel(full).runner(Modules(local.model)).run(lambda model: pf.losses.next_token(model, data), leaves, {})
    )
    expected = pf.losses.next_token(moved, data)
    assert torch.equal(losses, expected)
    grads = dict(zip(leaves, torch.autograd.grad(losses.mean(), list(leaves.values())), strict=True))
    expected.mean().backward()
    for name, parameter in moved.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(grads[name], parameter.grad)


def test_data_must_fit_the_model() -> None:
    for wrong, message in (
        (torch.full((2, 4), VOCABULARY), rf"outside the model's vocabulary \[0, {VOCABULARY}\)"),
        (
            tokens(length=CONTEXT + 2),
            f"samples of {CONTEXT + 2} tokens are longer than the model's context of {CONTEXT}",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            pf.LocalPosterior(decoder("gpt2"), pf.losses.next_token, wrong, n_beta=1.0, localization=1.0)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gpt_neox"])
def test_late_layers_run_their_suffix(name: str) -> None:
    """With the losses of the whole model: the engine holds them to it, and warns where they differ."""
    model = decoder(name)
    heads = pf.components(model, "l0h1", "l1h1", "full")
    run = pf.sample(
        posterior(name), pf.SGLD(1e-3), components=heads, chains=2, draws=2, batch_size=4, tile=1, progress=False
    )
    assert run.evaluated[0] == run.evaluated[2] == "whole model"
    assert run.evaluated[1].startswith("from ")
    assert run.evaluated[1].endswith(".1")
