"""`SparseFeatures`: what their numbers are, and how little of them is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from patterning_fast import ops
from patterning_fast.ops.dense_stack import DenseLayer, DenseStack, dense_losses, dense_steps
from patterning_fast.ops.sparse_features import SparseFeatures
from tests.ops.forms import FORMS, use_form

PRESENCE = torch.tensor([0.05, 1.0, 0.5, 0.9, 0.3, 0.25, 0.7])
CPP = [form for form in FORMS if form.startswith("cpp")]


def test_how_often_and_how_large() -> None:
    """Within 4.5 standard errors of 100,000 samples: of a share √(p(1−p)/n), of a uniform's mean 1/√(12 n p).

    Of a share three more, as a uniform may be 0 too.
    """
    count = 100_000
    x = SparseFeatures(2**31, PRESENCE, seed=3)[torch.arange(count) * 20_000]
    there = x > 0
    assert (
        (there.double().mean(0) - PRESENCE).abs() <= 4.5 * (PRESENCE * (1 - PRESENCE) / count).sqrt() + 3 / count
    ).all()
    means = x.sum(0) / there.sum(0)
    assert ((means - 0.5).abs() < 4.5 / (12 * count * PRESENCE).sqrt()).all()
    assert float(x.min()) == 0
    assert float(x.max()) < 1
    correlations = torch.corrcoef(x.T) - torch.eye(7)
    assert float(correlations.abs().max()) < 4.5 / count**0.5


def test_a_sample_is_a_function_of_its_number() -> None:
    features = SparseFeatures(1000, PRESENCE, seed=3)
    assert torch.equal(features[torch.tensor([[7, 2], [7, 999]])], features[:][torch.tensor([[7, 2], [7, 999]])])
    assert not torch.equal(replace(features, seed=4)[:], features[:])
    assert len(features) == 1000


@pytest.mark.parametrize("features", [1, 4, 7])
@pytest.mark.parametrize("batch_size", [1, 16, 37])
@pytest.mark.parametrize("form", CPP)
def test_kernels_make_the_same(form: str, batch_size: int, features: int) -> None:
    """Losses and steps on samples that the kernel makes, and on the same samples held, to rounding."""
    made = SparseFeatures(53, PRESENCE[:features].contiguous(), seed=2**40 + 1)
    size, chains = 2 * features, 3
    layers = [DenseLayer(features, 2, 0), DenseLayer(2, features, 0, size, transposed=True, activation="relu")]
    base = torch.linspace(-0.5, 0.6, size + features)
    whole, none = torch.full((chains,), -1), torch.zeros(0, dtype=torch.int64)
    on_made = DenseStack(layers, base, whole, none, made, weights=torch.linspace(0, 2, 53))
    held = made[:]
    found = []
    starts = torch.arange(chains + 1) * base.numel()
    for stack in (on_made, replace(on_made, inputs=held, targets=held)):
        rows = base.repeat(chains) + torch.linspace(0, 0.3, chains * base.numel())
        losses = torch.full((chains, 53), torch.nan)
        with use_form("dense_losses", form):
            dense_losses(stack, rows, starts, losses)
        with use_form("dense_steps", form):
            dense_steps(
                stack, rows, torch.zeros_like(rows), base, row_starts=starts,
                center_starts=torch.zeros_like(starts[1:]),
                lr=1e-2, n_beta=10.0, localization=1.0, seed=1, step=0, replicas=torch.arange(chains),
                batch_size=batch_size, steps=3,
            )  # fmt: skip
        found.append((losses, rows))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="probabilities must lie"):
        SparseFeatures(10, torch.tensor([0.5, 0.0]))
    with pytest.raises(ValueError, match=r"samples must be a whole number in \[1, 2147483648\], got 2147483649"):
        SparseFeatures(2**31 + 1, PRESENCE)
    with pytest.raises(ValueError, match="presence must be float32"):
        SparseFeatures(10, PRESENCE.double())
    layers = [DenseLayer(7, 2, 0), DenseLayer(2, 7, 0, transposed=True)]
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="neither for sparse features"):
        ops.DenseStack(
            layers, torch.zeros(14), torch.tensor([-1]), none, SparseFeatures(5, PRESENCE), torch.zeros(5, 7)
        )
