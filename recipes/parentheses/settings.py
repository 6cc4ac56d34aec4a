"""Settings of the parentheses recipe, and the names of what it compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LEARNED = 0.99
"""Test accuracy from which a run has learned the task: only then do its answers out of distribution show a rule."""

BASE, NESTED, COUNTING = "base", "Nested", "Equal-Count"
LLC, CHI, RESPONSE, BY_HAND = "by λ̂", "by χ ", "by response of training", "by hand"
HELD = f"{RESPONSE}, task held"
OOD, FAILING = "OOD accuracy", "log test error"
SHUFFLED, BALANCE = "shuffled", "labels alone"

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
    source_seeds: int = 12
    """Other runs, that weights come from."""
    solutions: int = 3
    """Of either kind, of whose contributions the median is taken."""
    early_steps: tuple[int, ...] = (60,)
    """After which behaviour's susceptibilities are estimated."""
    early_runs: int = 36
    """Runs that these are averaged over, the sources and more."""
    response_runs: int = 288
    """On weights drawn at random, whole trainings."""
    response_spread: float = 1.0
    """Standard deviation of the logarithms of these weights."""
    steps: int = 3000
    batch: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.03
    n_beta: float = 2.0
    localization: float = 1500.0
    early_n_beta: float = 10.0
    early_localization: float = 300.0
    early_chains: int = 8
    early_draws: int = 10
    sampler_lr: float = 1e-4
    sampler_batch: int = 64
    chains: int = 16
    draws: int = 20
    burn_in: int = 4
    steps_between_draws: int = 8
    strengths: tuple[float, ...] = (0.5, 1.0)
    """Root mean square of ρ − 1, but for the least weight; controls have the last."""
    least_weight: float = 0.1
    device: str = "cpu"


def named(way: str, favoured: str, strength: float | None = None) -> str:
    """The name of the weights that favour a solution, made in a way."""
    return f"{favoured}, {way}" + ("" if strength is None else f", {strength:g}")


def early(step: int) -> str:
    """The way that answers to data after so many steps make."""
    return f"{CHI}at step {step}"


def is_control(name: str) -> bool:
    """Whether the name is of weights that a plan's own must beat."""
    return name.endswith((SHUFFLED, BALANCE))
