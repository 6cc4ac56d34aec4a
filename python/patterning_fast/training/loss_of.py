"""A model and its loss as one module, which `torch.func` can call with other parameters."""

from __future__ import annotations

from torch import Tensor, nn

from patterning_fast.posterior.losses import Batch, Loss


class LossOf(nn.Module):
    """A model and its loss as one module."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(self.model, batch)
