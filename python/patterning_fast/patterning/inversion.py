"""The patterning equation: which data weights move the components as wanted (arXiv:2601.13548, §2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import numpy as np
import xarray as xr

from patterning_fast.arguments import Positive, checked
from patterning_fast.domains import Mend
from patterning_fast.patterning.blindness import blind_components
from patterning_fast.patterning.constraints import Constraints, constrained
from patterning_fast.patterning.estimates import Estimates, by_datum, by_unit, check_chi
from patterning_fast.patterning.metric import Noise, measured
from patterning_fast.patterning.modes import Mode
from patterning_fast.patterning.plan import Plan, predictions, report
from patterning_fast.patterning.regularization import Regularization, Spectrum, spans, spectrum
from patterning_fast.patterning.response import response_of
from patterning_fast.patterning.settled import unsettled_attrs
from patterning_fast.patterning.targets import (
    Aim,
    InfeasibleTargetError,
    Target,
    check_same_data,
    named,
    shortened,
    target_vector,
    towards_components,
    towards_direction,
    towards_minimum,
)
from patterning_fast.posterior.observables import PHI

NegativeWeights = Literal["allow", "clip", "project"]


class Solution(NamedTuple):
    """Weights that do what a target asks, and what they were found by."""

    noise: Noise
    found: Spectrum
    aim: Aim
    change: np.ndarray
    """Of weights without bounds `[data]`."""
    weights: np.ndarray


@checked
def invert(
    chi: xr.Dataset,
    target: Target,
    *,
    strength: Annotated[Positive | None, Mend("reverse a mode with -mode")] = None,
    negative_weights: NegativeWeights = "project",
    regularization: Regularization = "wiener",
    constraints: Constraints | None = None,
    unit: str | None = None,
    unsettled: bool = False,
) -> Plan:
    """Weights ρ = 1 + change, of least norm and mean 1, whose linear response dμ = nβ·χ·(ρ − 1)/n meets a target.

    Args:
        chi: what `susceptibilities()` returns, for all components that matter.
        target: what is wanted. dμ by component [nats], components not named staying where they are; or a mode, whose
            loadings on data are then the direction of the change; or any direction over the data of χ, as
            `between_solutions` gives; or a function of dμ (an array by component) to be made small.
        strength: root mean square of ρ − 1, keeping the target's direction; with a function, the most it may be.
            None takes dμ as it stands.
        negative_weights: "allow" them; "clip" at 0 and rescale to mean 1; or "project": the non-negative weights
            nearest to 1 that still meet the target.
        regularization: what is done about the noise of χ. "wiener" changes least what noise moves, as groups of chains
            tell it, and makes the expected square of what is missed least; "truncated" inverts directions above the
            noise and drops the others; "none" is the pseudo-inverse. See `Spectrum.multiples`.
        constraints: what weights must keep to beside.
        unit: a coordinate over the data of χ ("sample", or "document" and "domain" where they have been assigned):
            weights are then the same for all data of a unit.
        unsettled: take χ of components whose chains had not settled, too; the plan's `attrs["unsettled_components"]`
            names them.

    Weights made from χ, for components, by a function, or along one of its modes, fit its noise: what χ·(ρ − 1) says of
    them is shrunk to signal. For a direction from elsewhere it is unbiased and stands as it is. `made_from_chi` in the
    plan's `attrs` says which: whether the direction is a combination of χ's rows. An array is taken to be from
    elsewhere where rows span all the data, and a mode to be one of χ.

    χ by group may be opened from disk: it is read up to four times, in blocks. What is held is χ, as it is stored,
    and little else.

    Raises:
        InfeasibleTargetError: targets that lie in the noise of χ or that no weights within the bounds can meet, with
            what could be asked instead.
        ValueError: components whose chains had not settled; unknown components, a target that is zero, a strength that
            is not positive, or missing with a direction or function; χ with missing values; constraints that contradict
            `negative_weights`.
    """
    check_arguments(chi, target, strength, negative_weights, constraints)
    estimates, codes = (by_datum(chi), None) if unit is None else by_unit(chi, unit)
    names = [str(name) for name in chi["component"].values]
    response = response_of(estimates.chi, estimates.counts, float(chi.attrs["n_beta"]))
    check_finite(chi, response.mean, estimates.error_norm)
    said = unsettled_attrs(chi, unsettled)
    constraints = constraints or Constraints()

    def solved(plain: bool) -> Solution:
        noise = measured(response, estimates, plain)
        found = spectrum(noise, regularization)
        if isinstance(target, Mapping):
            aim = towards_components(target_vector(target, names), noise.response, found, names)
        elif isinstance(target, Mode | xr.DataArray):
            data = target.data if isinstance(target, Mode) else target
            if data.ndim != 1:
                raise ValueError(
                    f"the target must be one direction over the data, got dimensions {data.dims}; select one"
                )
            check_same_data(chi["chi"], data, "the target and χ")
            aim = towards_direction(means(data.values.astype(np.float64), codes, estimates), estimates.counts)
        else:
            assert strength is not None
            aim = towards_minimum(target, strength, noise.response, found, names)
        change = aim.response.along(aim.rows @ aim.amounts)
        if strength is not None and not callable(target):
            factor = strength / root_mean_square(change, estimates.counts)
            aim, change = aim.times(factor), factor * change
        try:
            weights = bounded(aim, change, negative_weights, constraints, names)
        except InfeasibleTargetError:
            if plain:
                raise
            return solved(True)  # weights of least norm, which bounds let go furthest
        return Solution(noise, found, aim, change, weights)

    noise, found, aim, change, weights = solved(regularization == "none" or not isinstance(target, Mapping))
    made_from_chi = True
    if isinstance(target, Mode | xr.DataArray):  # rows that span all data tell nothing: modes are then taken for χ's
        spanned = isinstance(target, Mode) or int(found.exists.sum()) < response.data - 1
        made_from_chi = spanned and spans(response, change)
    negative = float(estimates.counts @ (change < -1)) / response.total
    unseen = noise.unseen((aim.rows @ aim.amounts)[: len(names)]) if aim.response is noise.response else 1.0
    variables = predictions(noise, estimates, found, weights, aim.asked, made_from_chi, unseen)
    predicted = xr.Dataset(variables, coords={"component": chi["component"].values})
    upper = math.inf if constraints.cap is None else constraints.cap
    attrs = {
        **report(predicted, found, weights, estimates.counts, upper),
        "made_from_chi": made_from_chi,
        "negative_weights": negative_weights,
        "regularization": regularization,
        "share_negative_before_policy": negative,
        "unit": unit,
        "n_beta": chi.attrs["n_beta"],
        "observable": chi.attrs.get("observable", PHI),
        **said,
        "blind": blind_components(chi),
    }
    dims = chi["chi"].dims[1:]
    labelled = xr.DataArray(
        weights if codes is None else weights[codes],
        dims=dims,
        coords={name: each for name, each in chi["chi"].coords.items() if each.dims == dims},
        name="weight",
        attrs={"long_name": "data weight rho", "units": "1"},
    )
    return Plan(labelled, predicted, attrs)


def bounded(
    aim: Aim, change: np.ndarray, policy: NegativeWeights, constraints: Constraints, names: list[str]
) -> np.ndarray:
    """Weights `[data]` within the bounds that do what the free change does; raises InfeasibleTargetError."""
    free = 1.0 + change - aim.response.counts @ change / aim.response.total
    if policy == "clip":
        clipped = np.maximum(free, 0.0)
        return clipped * (aim.response.total / (aim.response.counts @ clipped))
    upper = math.inf if constraints.cap is None else constraints.cap
    within = (policy == "allow" or free.min() >= 0) and free.max() <= upper
    if within and constraints.kl is None and constraints.reweighted is None:
        return free
    lower = -math.inf if policy == "allow" else 0.0
    attempt = constrained(aim.response, aim.rows, aim.amounts, change, lower, constraints)
    if attempt.weights is not None:
        return attempt.weights
    asked = {} if aim.asked is None or not attempt.share else named(attempt.share * aim.asked, names)
    possible = attempt.share * root_mean_square(change, aim.response.counts)
    kinds = "weights of mean 1" if policy == "allow" else "non-negative weights of mean 1"
    limits = "" if constraints == Constraints() else f" within {constraints}"
    if not attempt.share:
        message = f"no {kinds}{limits} come near this target"
    else:
        message = f"no {kinds}{limits} meet this target; {attempt.share:.0%} of it can be met: lower it to strength="
        message += f"{possible:.3g}" + (f" or {shortened(asked)}" if asked else "")
    loosen = "loosen the constraints" if limits else "choose negative_weights='clip' or 'allow'"
    raise InfeasibleTargetError(f"{message}, or {loosen}", asked, possible or None)


def root_mean_square(change: np.ndarray, counts: np.ndarray) -> float:
    """Of a change `[data]`."""
    return math.sqrt(float(counts @ change**2 / counts.sum()))


def means(values: np.ndarray, codes: np.ndarray | None, estimates: Estimates) -> np.ndarray:
    """Means over the data of each unit `[data]`."""
    return values if codes is None else np.bincount(codes, values) / estimates.counts


def check_arguments(
    chi: xr.Dataset,
    target: Target,
    strength: float | None,
    negative_weights: NegativeWeights,
    constraints: Constraints | None,
) -> None:
    """Raise ValueError or TypeError for arguments that are wrong whatever χ says."""
    check_chi(chi)
    if "n_beta" not in chi.attrs:
        raise ValueError("χ lacks attrs['n_beta'], the posterior's; keep it with xr.set_options(keep_attrs=True)")
    if not isinstance(target, Mapping) and strength is None:
        what = {Mode: "a mode is only a direction", xr.DataArray: "an array over data is only a direction"}
        raise ValueError(f"{what.get(type(target), 'a function sets no bound')}: say how far to go with strength=")
    if constraints is not None and negative_weights == "clip":
        raise ValueError("clipped weights keep to no constraints: choose negative_weights='project'")
    if constraints is not None and constraints.kl is not None and negative_weights == "allow":
        raise ValueError("weights near in KL are not negative: choose negative_weights='project'")


def check_finite(chi: xr.Dataset, mean: np.ndarray, error: np.ndarray) -> None:
    """Raise ValueError, with where they are and how to mend it, if values of χ or of its errors are missing."""
    broken = ~(np.isfinite(mean) & np.isfinite(error))
    if not broken.any():
        return
    dimension = str(chi["chi"].dims[1])
    part = chi.isel(component=np.flatnonzero(broken))
    missing = ~(np.isfinite(part["chi"].values) & np.isfinite(part["chi_error"].values))
    count, names = int(missing.any(0).sum()), part["component"].values.tolist()
    if missing.all(1).any():
        lost = np.asarray(names)[missing.all(1)].tolist()
        raise ValueError(f"χ of {lost} is missing for all data (NaN): leave them out with chi.sel(component=...)")
    raise ValueError(
        f"χ of {shown(names)} is missing (NaN) for {count} of {chi.sizes[dimension]} {dimension}s: leave these out of "
        f"χ and of the data, chi.isel({dimension}=np.isfinite(chi['chi']).all('component'))"
    )


def shown(names: list[str]) -> str:
    """The first of some names."""
    return f"{names[:5]}" + (f" and {len(names) - 5} others" if len(names) > 5 else "")
