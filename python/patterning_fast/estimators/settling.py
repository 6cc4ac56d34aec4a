"""Whether chains had settled, and how long they take to, from what a run keeps of them.

All chains start at w*, where φ = 0, and E[φ] grows until they have spread over the posterior. Draws taken on the way
are of a posterior that nobody asked for. What is judged is the share of E[φ] (and, in the same way, of the mean shift
of the tracked losses) that the draws still lack.

*Drift.* Each independent unit (a chain, an antithetic pair, for losses a group) gives the mean of the later draws less
that of the earlier ones. Units are independent of each other and draws are not, so the error is that of a mean over
units, with one degree of freedom less than there are. Losses are many and noisy, and one test for each would find
something in any run: the vector of their drifts is projected on the mean shift E[l] − l(w*) that the *other* groups
have found. Noise of the two is independent, so it does not bias the product.

*What is missing.* With a relaxation time τ what is missing at step t is A·exp(−t/τ). The drift D is then A times the
difference of the means of that over the earlier and the later draws, and what is missing on average is D times a factor
`lever`: 1/2 where draws cover many relaxation times, 2τ/T where they cover T steps, less than one. So a small drift
says little in a short run. As chains start at w*, what is missing can be no more than the mean of exp(−t/τ) itself.

*Relaxation time*, of φ: a direction of curvature a = n_beta·h + localization relaxes in 2/(lr·a) steps, and what is
quadratic in it in half of that. The longest of three is taken:

- how long φ of a chain stays on its side of the mean over chains at the same step: where the correlation falls to 1/e.
  This holds for chains on their way as for settled ones, and does not take a chain's own short mean for the truth;
- where φ drifts, the τ with which m·(1 − exp(−t/τ)) fits its mean best;
- where |w − w*|² drifts, that of its mean. It is known far better than φ in many dimensions, and sees the flat
  directions that φ hardly feels. It lends its time scale alone: a drift that φ and the losses do not have is no
  reason to distrust them.

In directions without curvature SGLD relaxes in `slowest` = 1/(lr·localization) steps. More than that is believed only
of a mean that rises significantly longer, as it does where the loss curves down.
Correlations of few draws, or of few relaxation times of all chains together, tell nothing, and nothing faster than
`slowest` has been shown; where that is not known either, no more can be said than that it may be the whole run.

*Verdict.* Chains are unsettled where a drift is significant (level 2 %, for φ and for losses) and what is missing is
more than a tenth. Else they are settled where what is missing is no more than a tenth by one of two bounds: the upper
end of its own interval, or the mean of exp(−t/τ). Where neither holds the run was too short to tell, and they are not
called settled.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from patterning_fast.categories import UnsettledWarning

MATERIAL = 0.1
"""Share of E[φ], or of the losses' mean shift, that settled chains may lack."""

REMAINS = 0.05
"""Share that is still missing after the burn-in that is recommended: three relaxation times."""

SIGNIFICANT, UPPER = 0.99, 0.95
"""Quantiles of t: of a drift that is taken for one, and of the upper end of what may be missing."""

FEWEST_DRAWS = 4
"""Below, draws do not tell a relaxation time."""

ENOUGH = 40.0
"""Relaxation times that all chains together must run for their correlation to tell one: to some 30 %."""

LONGEST = 100.0
"""Relaxation times longer than so many times the whole run are not told from endless drift."""


NAMED = 3
"""Components that a warning names before it only counts them."""


class Settling(NamedTuple):
    """What is said of a component's chains."""

    settled: bool
    relaxation_steps: float
    """Steps in which what E[φ] lacks falls to 1/e; infinite where it grows without bending."""
    burn_in_steps: float
    """Steps after which a twentieth is missing; of chains that had not settled, no fewer than they have run."""


UNKNOWN = Settling(False, math.nan, math.nan)
"""Of a component with fewer than two independent units of healthy chains."""


@dataclass(frozen=True)
class Window:
    """The steps at which draws were taken, ascending, of which the first so many are compared with the rest."""

    steps: np.ndarray
    first: int

    def missing(self, relaxation: float) -> float:
        """The most that the mean over draws can lack, as a share, of chains that start at w*."""
        return float(np.exp(-self.steps / self.bounded(relaxation)).mean())

    def lever(self, relaxation: float) -> float:
        """What the mean over draws lacks, over the drift."""
        left = np.exp(-(self.steps - self.steps[0]) / self.bounded(relaxation))
        return float(left.mean() / (left[: self.first].mean() - left[self.first :].mean()))

    def bounded(self, relaxation: float) -> float:
        return min(relaxation, LONGEST * float(self.steps[-1]))


@dataclass(frozen=True)
class Drift:
    """Later mean less earlier mean by independent unit, and the size of what drifts."""

    by_unit: np.ndarray
    size: float
    window: Window

    @property
    def error(self) -> float:
        return float(self.by_unit.std(ddof=1)) / math.sqrt(len(self.by_unit))

    def half_width(self, quantile: float) -> float:
        return float(stdtrit(len(self.by_unit) - 1, quantile)) * self.error

    @property
    def significant(self) -> bool:
        return abs(float(self.by_unit.mean())) > self.half_width(SIGNIFICANT)

    @property
    def rises(self) -> bool:
        return self.significant and float(self.by_unit.mean()) > 0

    def missing(self, relaxation: float) -> float:
        """Share of the size that the draws lack; negative where they have too much."""
        return float(self.by_unit.mean()) * self.window.lever(relaxation) / self.size

    def most_missing(self, relaxation: float) -> float:
        """Upper end of the interval of the share that is missing, or too much."""
        most = abs(float(self.by_unit.mean())) + self.half_width(UPPER)
        return most * self.window.lever(relaxation) / self.size if self.size > 0 else math.inf

    def unsettles(self, relaxation: float) -> bool:
        return self.significant and abs(self.missing(relaxation)) > MATERIAL


def settling(
    phi: np.ndarray,
    square_distance: np.ndarray,
    steps: np.ndarray,
    early_losses: np.ndarray,
    late_losses: np.ndarray,
    early_share: float,
    slowest: float,
) -> Settling:
    """What is said of chains that start at w*.

    Args:
        phi, square_distance: φ and |w − w*|² of independent units `[units, draws]`.
        steps: after which each draw was taken `[draws]`, ascending.
        early_losses, late_losses: means of l − l(w*) over the first and over the other draws `[groups, losses]`.
        early_share: which share of the draws the first are.
        slowest: relaxation time of what is held by localization alone; infinite where that is not known.
    """
    draws = len(steps)
    if len(phi) < 2:
        return UNKNOWN
    halves = Window(steps, draws // 2)
    drifts = [drift_of_mean(phi, halves)] if draws > 1 else []
    relaxation = relaxation_steps(phi, square_distance, halves, slowest)
    if 0 < early_share < 1 and len(early_losses) > 1:
        parts = Window(steps, min(max(round(early_share * draws), 1), draws - 1))
        drifts.append(drift_along_shift(early_losses, late_losses, early_share, parts))
    unsettled = any(each.unsettles(relaxation) for each in drifts)
    known = bool(drifts) and all(each.most_missing(relaxation) <= MATERIAL for each in drifts)
    short = halves.missing(relaxation) > MATERIAL and not known
    burn_in = math.log(1 / REMAINS) * relaxation
    if unsettled or short:
        return Settling(False, relaxation, max(burn_in, float(steps[-1])))
    return Settling(True, relaxation, burn_in)


def drift_of_mean(values: np.ndarray, window: Window) -> Drift:
    """Drift of a trace `[units, draws]`."""
    early, late = values[:, : window.first].mean(1), values[:, window.first :].mean(1)
    return Drift(late - early, float(values.mean()), window)


def drift_along_shift(early: np.ndarray, late: np.ndarray, early_share: float, window: Window) -> Drift:
    """Drift of losses `[groups, losses]` along the mean shift that the other groups have found."""
    shift = early_share * early + (1 - early_share) * late
    others = (shift.sum(0) - shift) / (len(shift) - 1)
    along = ((late - early) * others).sum(1)
    return Drift(along, float((shift * others).sum(1).mean()), window)


def relaxation_steps(phi: np.ndarray, square_distance: np.ndarray, window: Window, slowest: float) -> float:
    """The longest relaxation time that the chains show; see the module."""
    steps = window.steps
    unknown = slowest if math.isfinite(slowest) else float(steps[-1])
    if len(steps) < FEWEST_DRAWS:
        return unknown
    correlation = correlation_time(phi, steps)
    told = len(phi) * (steps[-1] - steps[0]) >= ENOUGH * correlation
    found = [min(slowest, correlation) if told else unknown]
    for values in (phi, square_distance):
        if drift_of_mean(values, window).significant:
            time = approach_time(values.mean(0), steps)
            found.append(time if grows_longer(values, window, slowest) else min(time, slowest))
    return max(found)


def grows_longer(values: np.ndarray, window: Window, relaxation: float) -> bool:
    """Whether values `[units, draws]` that start at 0 grow significantly longer than with a relaxation time."""
    curve = -np.expm1(-window.steps / window.bounded(relaxation))
    ratio = curve[window.first :].mean() / curve[: window.first].mean()
    return drift_of_mean(
        np.concatenate((ratio * values[:, : window.first], values[:, window.first :]), 1), window
    ).rises


def correlation_time(values: np.ndarray, steps: np.ndarray) -> float:
    """Steps after which the correlation of `values` `[units, draws]`, less their mean over units, falls to 1/e."""
    apart = values - values.mean(0)
    spacing, draws = float(steps[1] - steps[0]), len(steps)
    before, lag = 1.0, 0
    for lag in range(1, draws // 2 + 1):
        early, late = apart[:, :-lag], apart[:, lag:]
        size = math.sqrt(float((early**2).sum() * (late**2).sum()))
        now = float((early * late).sum()) / size if size > 0 else 0.0
        if now < 1 / math.e:
            # Between lags the logarithm is taken to be linear. A correlation within its noise of 0 says no more.
            noise = 1 / math.sqrt(values.size)
            fall = math.log(before) - math.log(max(now, noise, math.exp(-3)))
            return spacing * (lag - 1 + (1 + math.log(before)) / fall)
        before = now
    return math.inf if before >= 1 else -spacing * lag / math.log(before)


def approach_time(mean: np.ndarray, steps: np.ndarray) -> float:
    """The τ with which m·(1 − exp(−t/τ)) fits the mean over units `[draws]` best; infinite where none bends it."""
    grid = np.geomspace((steps[1] - steps[0]) / 3, LONGEST * steps[-1], 400)
    curves = -np.expm1(-steps / grid[:, None])
    fitted = (curves @ mean) ** 2 / (curves**2).sum(1)
    best = int(fitted.argmax())
    return math.inf if best == len(grid) - 1 else float(grid[best])


def warn_of_unsettled(found: Mapping[str, Settling], attrs: Mapping[str, Any]) -> None:
    """Warn of the components whose chains had not settled, at the user's line; those without healthy chains apart."""
    unsettled = {name: each for name, each in found.items() if not each.settled and each != UNKNOWN}
    if not unsettled:
        return
    names, most = list(unsettled), max(each.burn_in_steps for each in unsettled.values())
    named = ", ".join(map(repr, names[:NAMED])) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    apart, pull = attrs["steps_between_draws"], attrs["localization"]
    remedy = (
        f"sample with burn_in={math.ceil(most / apart)} at steps_between_draws={apart}, or raise localization"
        if math.isfinite(most)
        else f"their loss grows without bending, so raise localization above {pull:g}"
    )
    warnings.warn(f"chains of {named} had not settled: {remedy}", UnsettledWarning, stacklevel=frames_within())


def frames_within() -> int:
    """How many frames lie between a caller of this and the first that is of neither this library nor its decorators."""
    frame, count = sys._getframe(1), 1
    while frame.f_back and str(frame.f_globals.get("__name__")).split(".")[0] in ("patterning_fast", "contextlib"):
        frame, count = frame.f_back, count + 1
    return count
