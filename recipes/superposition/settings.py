"""Settings of the superposition recipe, and the weights that it tries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Settings:
    """Sizes and settings of one run of the recipe."""

    features: int = 6
    magnitudes: int = 32
    wanted: tuple[int, ...] = (6, 5, 4)
    """k for the k-gon of the first k features, all others left out."""
    replicas: int = 1000
    initial_scale: float = 0.7
    steps: int = 3000
    batch_size: int = 16
    lr: float = 5e-3
    snapshots: int = 30
    seeds: tuple[int, ...] = (0, 1)
    """The first for all that is tried, the others for the base and for what came out best."""
    n_beta: float = 1000.0
    localization: float = 10.0
    sampling_lr: float = 5e-4
    chains: int = 64
    draws: int = 150
    burn_in: int = 50
    steps_between_draws: int = 20
    sampling_batch: int = 192
    rivals: int = 8
    """Replicas that contributions of what the base run came to are taken from."""
    stages: int = 10
    """Snapshots along training at which λ̂ is estimated."""
    strengths: tuple[float, ...] = (0.35, 1.0, 2.0)
    """Of plans by differences of losses; those of λ̂ are made at the first."""
    first_steps: int = 600
    """Of adaptive plans: on the one-off plan by loss and magnitude, before what is left out is looked at."""
    stage_steps: int = 300
    last_steps: int = 300
    """On weights of 1, so that what replicas end as is a minimum of the true loss."""
    raising: float = 0.75
    """Strength of what each stage adds."""
    frequencies: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 2.0, 4.0)
    """Weights of the last feature, others having 1."""
    device: str = "cpu"
    """Where replicas are trained."""


class Weighting(NamedTuple):
    """Weights of the data, and what they are for."""

    wanted: int
    way: str
    unit: str
    strength: float
    weights: Tensor

    @property
    def name(self) -> str:
        strength = "" if np.isnan(self.strength) else f", {self.strength:g}"
        return f"{self.wanted}-gon: {self.way} by {self.unit}{strength}"


def seeded(name: str, seed: int) -> str:
    """The name of a run at another seed than the first."""
    return f"{name}, seed {seed}"
