"""LocalPosterior: what it keeps of the model, and what it refuses before any work."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import patterning_fast as pf
from tests.models import CONTEXT, VOCABULARY, WithDropout, language_model, language_posterior, tokens


def linear_posterior(**changes: object) -> pf.LocalPosterior:
    arguments: dict[str, object] = {
        "model": nn.Linear(3, 1),
        "loss": pf.losses.squared_error,
        "data": (torch.randn(5, 3), torch.randn(5, 1)),
        "n_beta": 1.0,
        "localization": 1.0,
    }
    return pf.LocalPosterior(**arguments | changes)  # type: ignore[arg-type]


def test_the_model_is_copied_and_scored_without_dropout() -> None:
    model = WithDropout().train()
    x, classes = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    posterior = pf.LocalPosterior(model, pf.losses.cross_entropy, (x, classes), n_beta=1.0, localization=1.0)
    with torch.no_grad():
        before = posterior.loss(posterior.model, (x, classes))
        assert torch.equal(posterior.loss(posterior.model, (x, classes)), before)
        model.linear.weight.zero_()
        assert torch.equal(posterior.loss(posterior.model, (x, classes)), before)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_item_count_counts_tokens() -> None:
    assert language_posterior().item_count == 12 * CONTEXT
    assert linear_posterior().item_count == 5


def test_weights_multiply_the_losses() -> None:
    weights, samples = torch.rand(12, CONTEXT), torch.tensor([3, 1])
    posterior = language_posterior(weights=weights)
    losses = pf.losses.next_token(posterior.model, tokens()[samples])
    weighted = posterior.mean_loss(posterior.model, tokens()[samples], samples)
    assert torch.allclose(weighted, (weights[[3, 1]] * losses).mean())  # default tolerances: sums of 16 float32


def test_the_copy_and_the_data_go_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by where they are sent, as this machine may have no other."""
    sent: list[object] = []
    to = nn.Module.to

    def told(module: nn.Module, device: object) -> nn.Module:
        sent.append((module, device))
        return to(module, device)  # type: ignore[call-overload]

    monkeypatch.setattr(nn.Module, "to", told)
    model = language_model()
    posterior = pf.LocalPosterior(model, pf.losses.next_token, tokens(), n_beta=1.0, localization=1.0, device="cpu")
    assert sent == [(posterior.model, torch.device("cpu"))]
    assert posterior.model is not model


def reduced(model: nn.Module, batch: object) -> Tensor:
    return pf.losses.squared_error(model, batch).mean()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_beta": -1.0}, "n_beta must be a finite number >= 0, got -1.0"),
        ({"n_beta": float("nan")}, "n_beta must be a finite number >= 0, got nan"),
        ({"localization": -3.0}, "localization must be a finite number >= 0, got -3.0"),
        ({"n_beta": 0.0, "localization": 0.0}, "both 0: nothing would hold the chains"),
        ({"data": (torch.zeros(0, 3), torch.zeros(0, 1))}, "data is empty"),
        ({"data": (torch.zeros(4, 3), torch.zeros(5, 1))}, r"must agree on the number of samples, got \[4, 5\]"),
        ({"data": [1, 2]}, "data must be .*tuple of Tensors.*, got"),
        ({"model": nn.Linear(3, 1).double()}, "parameters must be float32"),
        ({"model": nn.ReLU()}, "ReLU has no parameters"),
        ({"loss": reduced}, r"the loss returned shape \[\] for 2 samples"),
        ({"device": "meta"}, "device must be .*of a device that is there.*got 'meta'.*; leave it out"),
        ({"device": torch.device("cuda", 99)}, "device must be .*of a device that is there"),
        ({"device": "gpu"}, "device must be .*of a device that is there"),
        ({"weights": torch.ones(4)}, r"do not fit the data, whose losses have shape \[5\]"),
        ({"weights": torch.tensor([1.0, 1, float("nan"), 1, float("inf")])}, "2 weights are not finite"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        linear_posterior(**changes)


def test_weights_at_w_star_that_are_not_finite_are_named() -> None:
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"the parameters bias hold values that are not finite"):
        linear_posterior(model=model)


@pytest.mark.parametrize("wrong", [VOCABULARY, -1, 2**31])
def test_token_ids_outside_the_vocabulary_are_refused(wrong: int) -> None:
    data = tokens()
    data[2, 3] = wrong
    with pytest.raises(ValueError, match=rf"outside the model's vocabulary \[0, {VOCABULARY}\)"):
        pf.LocalPosterior(language_model(), pf.losses.next_token, data, n_beta=1.0, localization=1.0)


def test_samples_longer_than_the_context_are_refused() -> None:
    data = tokens(length=CONTEXT + 2)
    with pytest.raises(
        ValueError, match=f"samples of {CONTEXT + 2} tokens are longer than the model's context of {CONTEXT}"
    ):
        pf.LocalPosterior(language_model(), pf.losses.next_token, data, n_beta=1.0, localization=1.0)
