"""When a susceptibility is known: chains run in waves until they are enough, or until a budget is spent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FIRST_WAVE = 4
"""Chains from which reliability can be told at all."""

MARGIN = 1.1
"""Chains are asked for with so much to spare: fewer waves, each of which ends with the slowest chain."""


@dataclass(frozen=True)
class Known:
    """What a component's chains have come to."""

    units: int
    """Independent chains, or pairs, that are healthy."""
    reliability: float
    error: float
    """Root mean square over the data of the standard error."""


@dataclass(frozen=True)
class Goal:
    """What is wanted of every component, in place of a number of chains, and what it may cost."""

    reliability: float | None
    """Split-half reliability."""
    errors: Mapping[str, float]
    """Root mean square over the data of the standard error, by component."""
    most_chains: int
    most_seconds: float

    def units_needed(self, name: str, known: Known) -> float:
        """Units that a component needs in all, as far as it can be told from those it has; infinite where it cannot.

        Errors fall with the root of their number, and reliability rises as Spearman and Brown say.
        """
        needed = 0.0
        if name in self.errors:
            needed = known.units * (known.error / self.errors[name]) ** 2
        if self.reliability is not None:
            r, wanted = known.reliability, self.reliability
            needed = max(needed, known.units * wanted * (1 - r) / (r * (1 - wanted)) if r > 0 else math.inf)
        return needed if math.isfinite(known.error) else math.inf

    def reached(self, name: str, known: Known) -> bool:
        """Whether a component is known well enough."""
        return self.units_needed(name, known) <= known.units

    def share(self, name: str, known: Known) -> float:
        """How far a component has come, from 0 to 1."""
        return min(1.0, known.units / max(self.units_needed(name, known), 1e-9))


@dataclass(frozen=True)
class Wave:
    """Chains that run together."""

    components: list[int]
    chains: int


def next_wave(
    names: Sequence[str],
    known: Sequence[Known],
    goal: Goal,
    ran: Sequence[int],
    chains_per_unit: int,
    seconds_per_chain: float,
    seconds_left: float,
) -> Wave | None:
    """The chains to run next, of the components that are not known yet; None where all are, or the budget is spent.

    As many chains as the nearest of them needs, at most as many again as there have been: what is said of more is not
    to be trusted.
    """
    open_ones = [at for at, name in enumerate(names) if not goal.reached(name, known[at])]
    open_ones = [at for at in open_ones if ran[at] + 2 * chains_per_unit <= goal.most_chains]
    if not open_ones:
        return None
    more = [MARGIN * goal.units_needed(names[at], known[at]) - known[at].units for at in open_ones]
    most = min(goal.most_chains - ran[at] for at in open_ones) // chains_per_unit
    affordable = seconds_left / max(seconds_per_chain * len(open_ones) * chains_per_unit, 1e-9)
    units = min(max(min(more), 2.0), max(2.0, float(max(known[at].units for at in open_ones))), most, affordable)
    return Wave(open_ones, math.ceil(units - 1e-9) * chains_per_unit) if units >= 2 else None


def root_mean_square(values: np.ndarray) -> float:
    """Over all values."""
    return float(np.sqrt(np.mean(np.square(values))))
