"""All that the runs of the superposition recipe came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .replicas import Course, wanted_shares
from .settings import Settings, Weighting, seeded

GOAL, AT_MOST = 0.9, 0.5


@dataclass(frozen=True)
class Outcome:
    """All that findings are made of."""

    settings: Settings
    steps: np.ndarray
    """Of the snapshots."""
    paths: Tensor
    """Parameters of the base run by snapshot and replica."""
    traced: dict[str, int]
    """Replicas whose λ̂ was followed, by what they came to."""
    coefficients: dict[str, dict[str, Any]]
    planned: dict[int, dict[str, Any]]
    tried: list[Weighting]
    best: dict[int, Weighting]
    controls: list[Weighting]
    checked: dict[int, dict[str, Any]]
    courses: dict[str, Course]
    adaptive: dict[tuple[int, str, int], dict[str, Any]]
    """What replicas became on adaptive plans, by wanted polygon, way and seed."""

    def share(self, name: str, sides: int) -> float:
        """Share of replicas that are as wanted at the end."""
        return float(wanted_shares(self.courses[name], sides)[-1])

    def error(self, share: float) -> float:
        """Standard error of a share over replicas."""
        return float(np.sqrt(share * (1 - share) / self.settings.replicas))

    def half(self, shares: np.ndarray) -> float:
        """Step of the first snapshot at which half of the replicas are so; NaN for never."""
        passed = np.flatnonzero(shares >= 0.5)
        return float(self.steps[passed[0]]) if len(passed) else float("nan")

    def over_seeds(self, name: str, sides: int) -> list[float]:
        """Shares at all seeds, the first of them that on which plans were made and chosen."""
        names = [name, *(seeded(name, seed) for seed in self.settings.seeds[1:])]
        return [self.share(each, sides) for each in names]


def named(sides: int, features: int) -> str:
    """A wanted polygon in words."""
    *most, last = [str(each + 1) for each in range(sides, features)] or [""]
    left_out = f"s {', '.join(most)} and {last}" if most else f" {last}"
    return f"{sides}-gon" + (f" without feature{left_out}" if last else "")
