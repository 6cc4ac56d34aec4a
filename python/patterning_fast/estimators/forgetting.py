"""How soon chains forget, from what their response says of it: whether burn-in was long enough, and what would be.

The response of a mean over draws is a sum over the steps before them. Those of burn-in are left out of the mean, so what
the mean answers to at the start of burn-in is what it has not forgotten yet, and what came before that is missing from
the response. Parts of the response to burn-in fall off as the chain forgets: from its two halves comes the time, and
from both the share that is missing.
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
    """What the response to burn-in says of a component's chains."""

    relaxation_steps: float
    """Steps in which the response falls by a factor e; NaN where burn-in is too short to say."""
    missing: float
    """Share of the whole response that came before the first step, as it falls off; NaN likewise."""
    burn_in_steps: float
    """Burn-in that leaves `ENOUGH` of it out."""

    @property
    def settled(self) -> bool:
        return self.missing <= MISSING


def forgetting(shares: Tensor, steps_between_draws: int) -> Forgetting:
    """From products by draw of burn-in `[burn_in, 2]`: of the response to it with that to what comes later, and of the
    latter with itself.
    """
    draws = len(shares) // 2
    new, square = shares.double().numpy().T
    if draws == 0 or not (square > 0).all():
        return Forgetting(math.nan, math.nan, math.nan)
    # Each draw's part, in units of the response to all that is after burn-in.
    part, so_far = np.empty(len(new)), 1.0
    for draw in range(len(new) - 1, -1, -1):
        part[draw] = so_far * new[draw] / square[draw]
        so_far += part[draw]
    early, late = part[:draws].sum(), part[-draws:].sum()
    apart = (len(new) - draws) * steps_between_draws
    if so_far <= 0 or late <= early:
        if early <= MISSING * max(so_far, 0.0):  # both are noise, or nothing
            return Forgetting(float(apart), 0.0, float(len(new) * steps_between_draws))
        return Forgetting(math.inf, math.inf, math.inf)
    if early <= 0:
        return Forgetting(float(apart) / math.log(late / (1e-3 * late)), 0.0, float(len(new) * steps_between_draws))
    ratio = early / late
    relaxation = apart / -math.log(ratio)
    # The draws before the first would have answered as the early half does, once more fallen off, and again.
    beyond = early * math.exp(-draws * steps_between_draws / relaxation)
    beyond /= 1 - math.exp(-draws * steps_between_draws / relaxation)
    missing = beyond / (so_far + beyond)
    more = relaxation * math.log(max(missing / ENOUGH, 1e-9))
    return Forgetting(relaxation, missing, max(0.0, len(new) * steps_between_draws + more))
