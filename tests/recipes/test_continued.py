"""Directions continued to tokens that χ is not of."""

from __future__ import annotations

import pytest
import torch

from patterning_fast.models.attention_only import AttentionOnlyLM
from patterning_fast.posterior.losses import next_token
from patterning_fast.recipes.continued import FITTED, continued, token_features


@pytest.fixture
def model() -> AttentionOnlyLM:
    torch.manual_seed(0)
    return AttentionOnlyLM(vocabulary=11, context=8, width=6, heads=2, head_width=4)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(11, (200, 9), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_features_hold_the_loss_and_what_makes_it(model: AttentionOnlyLM, tokens: torch.Tensor) -> None:
    features = token_features(model, tokens)
    assert features.shape == (200, 8, 4 + 7 * 6)
    losses = next_token(model, tokens)
    assert torch.allclose(features[..., 1], losses, atol=1e-5)
    assert torch.allclose(features[..., 2], losses.square(), atol=1e-4)
    log_p = model(tokens[:, :-1]).log_softmax(-1)
    assert torch.allclose(features[..., 3], torch.distributions.Categorical(logits=log_p).entropy(), atol=1e-5)
    # Layers' parts add up to the stream, in units of its spread.
    streams = model.streams(tokens[:, :-1])
    parts = features[..., 10:28].unflatten(-1, (3, 6)).sum(-2)
    assert torch.allclose(parts, streams[-1] / streams[-1].std(-1, correction=0, keepdim=True), atol=1e-5)


@torch.no_grad()
def test_what_features_say_is_found_everywhere(model: AttentionOnlyLM, tokens: torch.Tensor) -> None:
    losses = next_token(model, tokens)
    wanted = 0.7 * losses - 0.1 * losses.square() + 1.0
    found = continued(model, tokens, wanted[:100])
    assert found.correlation > 0.99
    assert torch.corrcoef(torch.stack((found.values[100:].flatten(), wanted[100:].flatten())))[0, 1] > 0.99


@torch.no_grad()
def test_noise_is_not_taken_for_a_direction(model: AttentionOnlyLM, tokens: torch.Tensor) -> None:
    """The correlation is that on contexts that were not fitted to: of noise, within 4 of its 1/√n of 0."""
    noise = torch.randn(160, 8, generator=torch.Generator().manual_seed(2))
    found = continued(model, tokens, noise)
    left_out = noise[int(FITTED * 160) :].numel()
    assert abs(found.correlation) < 4 / left_out**0.5
    fitted = slice(int(FITTED * 160))
    pairs = torch.stack((found.values[fitted].flatten(), noise[fitted].flatten()))
    assert torch.corrcoef(pairs)[0, 1] > 2 * abs(found.correlation)
