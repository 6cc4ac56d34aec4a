"""Minibatches of weighted data: in expectation all ways are Σρl/Σρ."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.optim import SGD

import patterning_fast as pf
from patterning_fast.posterior.losses import Batch
from patterning_fast.training.minibatches import Minibatches, Weighting

SAMPLES, TOKENS = 7, 3
DRAWS = 200_000


def squared_errors(model: nn.Module, batch: Batch) -> Tensor:
    """A loss per token: `[batch, tokens]`."""
    x, y = batch
    return 0.5 * (model(x).squeeze(-1) - y).square()


def data(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(SAMPLES, TOKENS, 2, generator=generator), torch.randn(SAMPLES, TOKENS, generator=generator)


def weights_of(kind: str, generator: torch.Generator) -> Tensor:
    weights = 2 * torch.rand(SAMPLES, TOKENS, generator=generator)
    if kind == "samples":
        weights = weights[:, :1].expand(-1, TOKENS).contiguous()
    if kind == "signed":
        weights[::2] -= 1.0
    if kind in ("with zeros", "samples"):
        weights[2] = 0
    if kind == "with zeros":
        weights[4, 1] = 0
    return weights


@pytest.mark.parametrize(
    ("kind", "weighting"),
    [
        *((kind, way) for kind in ("tokens", "samples", "with zeros") for way in ("loss", "sampling")),
        ("signed", "loss"),
    ],
)
def test_the_expected_gradient_is_that_of_the_weighted_loss(
    kind: str, weighting: Weighting, generator: torch.Generator
) -> None:
    """One step of plain descent on a minibatch of 200,000, to 5 standard errors of its mean.

    The errors come from the exact variance of a drawn sample's gradient.
    """
    x, y = data(generator)
    rho = weights_of(kind, generator)
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    gradients = ((x @ before[0] - y)[..., None] * x).double()  # [samples, tokens, 2]
    expected = (rho[..., None] * gradients).sum((0, 1)) / rho.sum()
    kept = rho.any(1)
    if weighting == "loss":
        chances, rest = kept / kept.sum(), rho / rho[kept].mean()
    else:
        chances, rest = rho.sum(1) / rho.sum(), rho / rho.mean(1, keepdim=True).clamp(min=1e-30)
    of_sample = (rest[..., None] * gradients).mean(1)
    error = ((chances[:, None] * (of_sample - expected).square()).sum(0) / DRAWS).sqrt()
    pf.train(model, (x, y), squared_errors, steps=1, batch_size=DRAWS, lr=1.0, weights=rho, weighting=weighting,
             optimizer=SGD, progress=False)  # fmt: skip
    assert bool(((before - model.weight.detach() - expected).abs() < 5 * error + 1e-6).all())
    assert float(error.max()) < 0.02 * float(expected.abs().max())


def test_samples_are_drawn_in_proportion_to_their_weights(generator: torch.Generator) -> None:
    rho = weights_of("with zeros", generator)
    drawn = Minibatches(SAMPLES, rho, "sampling", DRAWS, seed=3).draw()
    counts = np.bincount(drawn.numpy(), minlength=SAMPLES)
    chances = (rho.sum(1) / rho.sum()).double().numpy()
    assert counts[2] == 0
    kept = chances > 0
    assert stats.chisquare(counts[kept], DRAWS * chances[kept] / chances.sum()).pvalue > 1e-3


def trained(weights: Tensor | None, x: Tensor, y: Tensor, **changes: Any) -> Tensor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 1))
    settings: dict[str, Any] = {"steps": 12, "batch_size": 4, "lr": 0.03, "progress": False}
    pf.train(model, (x, y), squared_errors, weights=weights, **settings | changes)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("weighting", ["loss", "sampling"])
def test_weights_of_one_are_no_weights(weighting: Weighting, generator: torch.Generator) -> None:
    x, y = data(generator)
    unweighted = trained(None, x, y)
    assert torch.equal(trained(torch.ones(SAMPLES), x, y, weighting=weighting), unweighted)
    assert torch.equal(trained(torch.full((SAMPLES, TOKENS), 0.3), x, y, weighting=weighting), unweighted)
    assert not torch.equal(trained(torch.arange(1.0, 8.0), x, y, weighting=weighting), unweighted)


@pytest.mark.parametrize("kind", ["with zeros", "samples", "zero or one"])
@pytest.mark.parametrize("weighting", ["loss", "sampling"])
def test_samples_of_weight_zero_are_as_good_as_removed(
    kind: str, weighting: Weighting, generator: torch.Generator
) -> None:
    """To the bit, the minibatches included, also where only one sample is left to draw."""
    x, y = data(generator)
    rho = torch.tensor([1.0, 0, 0, 1, 1, 0, 1]) if kind == "zero or one" else weights_of(kind, generator)
    kept = rho.view(SAMPLES, -1).any(1)
    found = trained(rho, x, y, weighting=weighting)
    assert torch.equal(found, trained(rho[kept], x[kept], y[kept], weighting=weighting))
    if kind == "zero or one":
        assert torch.equal(found, trained(None, x[kept], y[kept]))
    only = torch.zeros(SAMPLES).index_fill(0, torch.tensor(5), 2.0)
    assert torch.equal(trained(only, x, y, weighting=weighting), trained(None, x[5:6], y[5:6]))


def test_negative_weights_are_no_probabilities(generator: torch.Generator) -> None:
    rho = torch.ones(SAMPLES)
    rho[3] = -0.5
    with pytest.raises(ValueError, match=r"weights are negative, .* use weighting='loss', or a plan with"):
        trained(rho, *data(generator), weighting="sampling")
    assert bool(trained(rho, *data(generator)).isfinite().all())


def test_unknown_weightings_are_refused(generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match=r"weighting must be one of \('loss', 'sampling'\), got 'importance'"):
        trained(None, *data(generator), weighting="importance")


def test_momentum_is_made_by_a_partial(generator: torch.Generator) -> None:
    x, y = data(generator)
    assert not torch.equal(
        trained(None, x, y, optimizer=SGD), trained(None, x, y, optimizer=partial(SGD, momentum=0.9))
    )
