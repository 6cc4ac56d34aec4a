"""`SparseFeatures`: the data of toy models of superposition, made where they are looked at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from patterning_fast.arguments import Seed, checked
from patterning_fast.domains import Within
from patterning_fast.ops.reference.sparse_features import sparse_features

MOST_SAMPLES = 2**31
"""More would not fit where words choose samples: 32 bits of a word, and 31 of a number of samples."""


@dataclass(frozen=True, eq=False)
@checked
class SparseFeatures:
    """Samples `[samples, features]`, features uniform in [0, 1) with a probability, and else 0 (Elhage et al. 2022).

    Indexed like a tensor's first dimension; sample s is a function of (seed, s) alone, and takes no memory until it is
    asked for: kernels of dense layers make their minibatches on the spot.
    Raises ValueError for probabilities outside (0, 1], or not from 1 to 2³¹ samples.
    """

    samples: Annotated[int, Within(least=1, most=MOST_SAMPLES)]
    presence: Tensor
    """float32 `[features]`: the probability of each feature."""
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.presence.dim() != 1 or self.presence.dtype != torch.float32 or not self.presence.numel():
            raise ValueError(
                f"presence must be float32 [features], got {self.presence.dtype} {list(self.presence.shape)}"
            )
        if not bool(((self.presence > 0) & (self.presence <= 1)).all()):
            raise ValueError(f"probabilities must lie in (0, 1], got {self.presence.tolist()}")

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, which: Tensor | slice) -> Tensor:
        """Samples `[..., features]` at indices `[...]`, of which none is checked, or of a slice."""
        device = self.presence.device
        if isinstance(which, slice):
            which = torch.arange(*which.indices(self.samples), device=device)
        return sparse_features(self.presence, torch.tensor(self.seed, dtype=torch.int64, device=device), which)

    @property
    def device(self) -> torch.device:
        return self.presence.device

    def to(self, device: str) -> SparseFeatures:
        """The same samples on `device`."""
        return replace(self, presence=self.presence.to(device))
