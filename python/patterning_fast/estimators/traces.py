"""What is kept of every chain by itself: small beside the totals, and enough to tell how it fares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from patterning_fast.chains.plan import ChainPlan


@dataclass
class ChainTraces:
    """φ [nats] and |w − w*| of every chain at every draw, float64 and float32 `[rows, draws]`; on the CPU."""

    phi: Tensor
    distance: Tensor
    observables: Tensor
    """The user's, float32 `[rows, observables, draws]`."""
    diverged: Tensor
    """bool `[rows]`"""
    gradient_noise: Tensor
    """Mean over coordinates of the square of the mean minibatch gradient at w*, and of its variance, `[cells, 2]`."""

    rounding: Tensor
    """Error of l − l(w*) over l − l(w*) at the last draw, root mean squares, float32 `[rows]`; 0 in float32."""

    def tensors(self, draws: int) -> dict[str, Tensor]:
        """All by name, and of draws the first so many."""
        return vars(self) | {name: getattr(self, name)[..., :draws] for name in ("phi", "distance", "observables")}

    def extend(self, draws: int) -> None:
        """Make room for that many more draws."""
        for name in ("phi", "distance", "observables"):
            trace = getattr(self, name)
            setattr(self, name, torch.cat((trace, trace.new_full((*trace.shape[:-1], draws), torch.nan)), -1))

    @classmethod
    def empty(cls, plan: ChainPlan, draws: int) -> ChainTraces:
        """NaN for what is not known yet."""
        return cls(
            torch.full((plan.rows, draws), torch.nan, dtype=torch.float64),
            torch.full((plan.rows, draws), torch.nan, dtype=torch.float32),
            torch.full((plan.rows, 0, draws), torch.nan, dtype=torch.float32),
            torch.zeros(plan.rows, dtype=torch.bool),
            torch.full((plan.cells, 2), torch.nan, dtype=torch.float64),
            torch.zeros(plan.rows, dtype=torch.float32),
        )
