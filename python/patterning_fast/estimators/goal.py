"""When a susceptibility is known: runs go on until their estimates are good enough, or a budget is spent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from patterning_fast.arguments import Positive
from patterning_fast.domains import Holds, Within

Reliability = Annotated[float, Within(above=0, below=1)]
Error = Positive | Annotated[Mapping[str, Positive], Holds(1)]

MARGIN = 1.1
"""So much more than seems needed is asked for, so that few runs need another turn."""


@dataclass(frozen=True)
class Known:
    """How well a component is known, and by how much: chains of a response, draws of a covariance."""

    amount: int
    reliability: float
    error: float
    """Root mean square over the data of the standard error."""


@dataclass(frozen=True)
class Goal:
    """What is wanted of components, in place of a number of chains or draws."""

    reliability: float | None
    """Split-half reliability, of all."""
    errors: Mapping[str, float]
    """Root mean square over the data of the standard error, by component."""

    def needed(self, name: str, known: Known) -> float:
        """How much a component takes in all, as far as what there is can tell; infinite where it cannot.

        Errors fall with the root of it, and reliability rises as Spearman and Brown say.
        """
        wanted, factor = self.reliability, 1e-9
        if name in self.errors:
            factor = (known.error / self.errors[name]) ** 2
        if wanted is not None:
            r = known.reliability
            factor = max(factor, wanted * (1 - r) / (r * (1 - wanted)) if r > 0 else math.inf)
        return known.amount * factor if math.isfinite(factor) else math.inf

    def reached(self, name: str, known: Known) -> bool:
        """Whether a component is known well enough."""
        return self.needed(name, known) <= known.amount

    def said(self, known: Mapping[str, Known]) -> str:
        """How far the slowest component has come, in words."""
        name = max(known, key=lambda each: self.needed(each, known[each]) / max(1, known[each].amount))
        parts = []
        if self.reliability is not None:
            parts.append(f"reliability {known[name].reliability:.2f} of {self.reliability:g}")
        if name in self.errors:
            parts.append(f"error {known[name].error:.2g} of {self.errors[name]:.2g}")
        return f"{name} has {' and '.join(parts)}" if parts else ""


def goal_of(names: list[str], reliability: float | None, error: float | Mapping[str, float] | None) -> Goal | None:
    """What is wanted, if anything is; raises ValueError for errors of components that there are not."""
    errors = error if isinstance(error, Mapping) else {} if error is None else dict.fromkeys(names, error)
    unknown = sorted(set(errors) - set(names))
    if unknown:
        raise ValueError(f"error names unknown components {unknown}; there are {names}")
    return None if reliability is None and not errors else Goal(reliability, errors)


def amount_to_add(needed: float, there: int, least: int, most: float) -> int:
    """How much more to run, in all at most `most` more: as it seems to take, but no more than there is already.

    What few chains or draws say of how many it takes is not to be trusted further. 0 where not even `least` is left.
    """
    more = min(max(MARGIN * needed - there, float(least)), float(max(there, least)), most)
    return math.floor(more + 1e-9) if more >= least else 0
