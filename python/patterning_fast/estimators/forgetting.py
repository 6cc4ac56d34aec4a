"""How soon chains forget, from what their response says of it: whether burn-in was long enough, and what would be.

The response of a mean over draws is a sum over the steps before them. Steps of burn-in are left out of the mean, so
what it answers to at the start of burn-in is what is not forgotten yet, and what came before that is missing from the
response. Parts of the response fall off as the chain forgets, and no slower than the adjoint contracts over burn-in,
which is known without noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

MISSING = 0.1
"""Share of a response that may be missing before its chains count as not settled."""

ENOUGH = 0.02
"""Share that is missing after the burn-in that is proposed."""


@dataclass(frozen=True)
class Forgetting:
    """What burn-in says of a component's chains; NaN where it is too short to say, infinite where they never settle."""

    relaxation_steps: float
    """Steps in which the adjoint falls by a factor e: what the slowest directions take."""
    missing: float
    """Share of the whole response that came before the first step."""
    burn_in_steps: float
    """Burn-in that leaves `ENOUGH` of it out."""

    @property
    def settled(self) -> bool:
        return self.missing <= MISSING


def forgetting(shares: Tensor, growth: float, steps_between_draws: int) -> Forgetting:
    """From products by draw of burn-in `[burn_in, 2]`, of the response to it with that to what comes later and of the
    latter with itself, and the logarithm of the adjoint's growth over burn-in.
    """
    burn_in = len(shares)
    if burn_in < 2 or not math.isfinite(growth):
        return Forgetting(math.nan, math.nan, math.nan)
    if growth >= 0:
        return Forgetting(math.inf, math.inf, math.inf)
    steps, relaxation = burn_in * steps_between_draws, burn_in * steps_between_draws / -growth
    new, square = shares.double().numpy().T
    # Each draw's part, in units of the response to all that is after burn-in.
    part, total = np.zeros(burn_in), 1.0
    for draw in range(burn_in - 1, -1, -1):
        part[draw] = total * new[draw] / square[draw] if square[draw] > 0 else math.nan
        total += part[draw]
    half = burn_in // 2
    early, late = part[:half].sum(), part[half : 2 * half].sum()
    if not total > 0:
        return Forgetting(relaxation, math.nan, math.nan)
    # Before the first draw: as many as in the early half, fallen off once more; and again, and again.
    fall = math.exp(growth * half / burn_in)
    fall = min(fall, max(early, 0.0) / late) if late > 0 else fall
    before = max(early, 0.0) * fall / (1 - fall)
    missing = before / (total + before)
    more = relaxation * math.log(missing / ENOUGH) if missing > ENOUGH else 0.0
    return Forgetting(relaxation, missing, steps + more)
