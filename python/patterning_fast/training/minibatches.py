"""Minibatches of weighted data, whose mean loss is in expectation Σρl/Σρ of all data."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Weighting = Literal["loss", "sampling"]


class Minibatches:
    """Samples drawn with replacement, and the weights of their losses.

    The loss of a minibatch is the mean of w·l over its losses. With T losses a sample, r_s the mean of ρ over those of
    sample s, and r the mean of all ρ, samples are drawn

    - "loss": uniformly, w = ρ/r;
    - "sampling": with probability r_s/Σr, w = ρ/r_s, which is 1 where a sample has one weight.

    Either way a loss has expectation probability · w/T = ρ/Σρ. To divide by the minibatch's own Σρ instead would bias
    it, and fail where that is 0. Samples of weight 0 are never drawn: training is to the bit that on the data without
    them. Where all others have equal chances "sampling" draws what "loss" does.

    Raises ValueError for an unknown weighting, and for negative weights as probabilities.
    """

    def __init__(self, samples: int, weights: Tensor | None, weighting: Weighting, batch_size: int, seed: int) -> None:
        self.samples, self.weighting, self.batch_size = samples, weighting, batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.weigh(weights)

    def weigh(self, weights: Tensor | None) -> None:
        """Go on with other weights; draws to come follow from where the generator is."""
        self.drawn_from = torch.arange(self.samples)
        self.chances_up_to: Tensor | None = None
        self.loss_weights: Tensor | None = None
        if weights is not None:
            self.drawn_from = weights.view(self.samples, -1).any(1).nonzero().squeeze(1).cpu()
            if self.weighting == "sampling":
                weights = self.as_chances(weights)
            self.loss_weights = weights / weights[self.drawn_from.to(weights.device)].mean(dtype=torch.float64).float()

    def as_chances(self, weights: Tensor) -> Tensor:
        """Draw samples in proportion to their ρ; the weights that this leaves to their losses, ρ/r_s."""
        negative = int((weights < 0).sum())
        if negative:
            raise ValueError(
                f"{negative} weights are negative, and nothing is drawn with a negative probability: use "
                "weighting='loss', or a plan with negative_weights='project' or 'clip'"
            )
        by_sample = weights.view(len(weights), -1).mean(1, dtype=torch.float64)
        chances = by_sample[self.drawn_from.to(weights.device)].cpu()
        if not bool((chances == chances[0]).all()):
            self.chances_up_to = chances.cumsum(0)
        divisor = torch.where(by_sample > 0, by_sample, 1.0)
        return (weights / divisor.view(-1, *(1 for _ in weights.shape[1:]))).float()

    def draw(self) -> Tensor:
        """The samples of the next minibatch, int64 `[batch_size]`."""
        if self.chances_up_to is None:
            return self.drawn_from[torch.randint(len(self.drawn_from), (self.batch_size,), generator=self.generator)]
        place = torch.rand(self.batch_size, generator=self.generator, dtype=torch.float64) * self.chances_up_to[-1]
        return self.drawn_from[torch.searchsorted(self.chances_up_to, place, right=True)]
