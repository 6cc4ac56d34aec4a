"""Settings of the parentheses recipe, and the names of what it compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LEARNED = 0.99
"""Test accuracy from which a run has learned the task: only then do its answers out of distribution show a rule."""

BASE, NESTED, COUNTING = "base", "Nested", "Equal-Count"

ADJOINT, CHI, LOW_LOSS = "by the adjoint of training", "by χ of test loss", "by low loss"
NO_LOSS, FIT, LLC, BY_HAND = "by χ at nβ = 0", "by whole runs", "by λ̂", "by hand"
"""Ways of making weights."""
GRADIENT, N_GRAMS, AT_RANDOM = "by gradient", "by n-grams", "at random"
"""Ways of scoring kinds of string that are only held to the yardstick."""

AT_LAST_STRENGTH = (NO_LOSS, FIT, LLC)
"""Ways whose weights are made at the last strength alone."""

CONTROLLED = ADJOINT
"""The way whose weights have controls."""
SHUFFLED, BALANCE = "shuffled", "labels alone"
OOD = "OOD accuracy"

Part = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Sizes and settings of one run of the recipe."""

    strings: int = 4000
    test_strings: int = 1000
    longest: int = 20
    width: int = 32
    heads: int = 4
    layers: int = 1
    seeds: int = 24
    """Runs on each weighting."""
    steps: int = 3000
    batch: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.03
    early_step: int = 60
    """After which the adjoint, χ, losses and gradients are taken."""
    early_runs: int = 36
    """Runs that χ, losses and gradients are averaged over."""
    adjoint_runs: int = 192
    fit_runs: int = 288
    """On weights drawn at random, whole trainings: what scores are held to."""
    fit_spread: float = 1.0
    """Standard deviation of the logarithms of these weights."""
    n_beta: float = 10.0
    localization: float = 300.0
    sampler_lr: float = 5e-4
    sampler_batch: int = 64
    chains: int = 2
    draws: int = 5
    burn_in: int = 8
    steps_between_draws: int = 8
    source_seeds: int = 24
    """Whole runs, that solutions are chosen from."""
    solutions: int = 6
    """Of either kind, at which λ̂ is estimated."""
    llc_n_beta: float = 480.0
    """About n / log n."""
    llc_localization: float = 1000.0
    llc_lr: float = 3e-6
    llc_chains: int = 4
    llc_draws: int = 20
    llc_burn_in: int = 40
    """Draws that are thrown away."""
    llc_steps_between_draws: int = 50
    strengths: tuple[float, ...] = (0.5, 1.0)
    """Root mean square of ρ − 1, but for the least weight; controls have the last."""
    least_weight: float = 0.1
    device: str = "cpu"


def named(way: str, favoured: str, strength: float | None = None) -> str:
    """The name of the weights that favour a solution, made in a way."""
    return f"{favoured}, {way}" + ("" if strength is None else f", {strength:g}")


def is_control(name: str) -> bool:
    """Whether the name is of weights that a plan's own must beat."""
    return name.endswith((SHUFFLED, BALANCE))
