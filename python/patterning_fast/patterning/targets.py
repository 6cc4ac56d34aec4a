"""What is wanted of a plan: a change of components, a direction over data, or a function to be made small."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import scipy.optimize
import xarray as xr

from patterning_fast.arguments import Number, checked
from patterning_fast.callbacks import calling
from patterning_fast.domains import Mend
from patterning_fast.patterning.modes import Mode
from patterning_fast.patterning.regularization import Spectrum
from patterning_fast.patterning.response import Response, response_of
from patterning_fast.posterior.components import FULL

Objective = Callable[[xr.DataArray], float]
Target = Annotated[
    Mapping[str, Number] | Mode | xr.DataArray | Objective,
    Mend("pass {component: change}, a mode such as pf.modes(chi)[0], an array over the data, or a function of dmu"),
]

SHARE_MET = 0.5
"""Share of a target's square that weights must be expected to meet."""

NAMED = 6
"""Components that a message lists."""


class InfeasibleTargetError(ValueError):
    """No weights meet the target, or only noise says that some would; with what could be asked instead."""

    def __init__(self, message: str, nearest: dict[str, float], strength: float | None) -> None:
        super().__init__(message)
        self.nearest = nearest
        """The nearest dμ by component that can be met [nats]; empty where there is none, or the target names none."""
        self.strength = strength
        """The largest strength found that can be met, where the target's direction can be kept."""


@dataclass(frozen=True)
class Aim:
    """Amounts by which weights must change along orthonormal rows over data."""

    response: Response
    """What the rows are made of: χ, or a direction over data."""
    rows: np.ndarray
    """Combinations of the response's rows `[rows of the response, rows]`."""
    amounts: np.ndarray
    """`[rows]`"""
    asked: np.ndarray | None
    """dμ of each component [nats], where the target says so."""

    def times(self, factor: float) -> Aim:
        """The same direction, further."""
        asked = None if self.asked is None else factor * self.asked
        return Aim(self.response, self.rows, factor * self.amounts, asked)


def target_vector(target: Mapping[str, float], components: list[str]) -> np.ndarray:
    """dμ `[components]`; raises ValueError for names that χ lacks, values that are not finite, or nothing asked."""
    unknown = sorted(set(target) - set(components))
    if unknown:
        raise ValueError(f"the target names unknown components {unknown}; χ has {components}")
    wanted = np.array([float(target.get(name, 0.0)) for name in components])
    if not np.isfinite(wanted).all() or not wanted.any():
        raise ValueError(f"the target must be finite and ask for something, got {dict(target)}")
    return wanted


def towards_components(wanted: np.ndarray, response: Response, spectrum: Spectrum, components: list[str]) -> Aim:
    """The change of least norm for dμ wanted; raises InfeasibleTargetError where that lies in the noise of χ."""
    share = spectrum.share(wanted)
    if share < SHARE_MET:
        met, above = spectrum.met(wanted), int(spectrum.trusted.sum())
        nearest = named(met, components) if met.any() and spectrum.share(met) >= SHARE_MET else {}
        instead = f", ask for the nearest that can be told from noise, {shortened(nearest)}," if nearest else ""
        raise InfeasibleTargetError(
            f"only {share:.0%} of the target can be expected to be met: {above} of {len(spectrum.singular)} directions "
            f"of χ stand above its noise: run more chains or draws{instead} or take one of the strongest "
            "modes of χ",
            nearest,
            None,
        )
    return Aim(response, spectrum.rows, spectrum.amounts(wanted), wanted)


def towards_direction(direction: np.ndarray, counts: np.ndarray) -> Aim:
    """A change along a direction over data `[data]`; raises ValueError unless it is finite and tells data apart."""
    if not np.isfinite(direction).all():
        raise ValueError(f"{int((~np.isfinite(direction)).sum())} values of the target's direction are not finite")
    centred = direction - counts @ direction / counts.sum()
    size = math.sqrt(float(counts @ centred**2))
    if size <= 1e-12 * math.sqrt(float(counts @ direction**2)):
        raise ValueError("the target's direction is the same for all data: weights of mean 1 cannot follow it")
    response = response_of(direction[None], counts, float(counts.sum()))
    return Aim(response, np.array([[1.0 / size]]), np.array([size]), None)


def towards_minimum(
    objective: Objective, strength: float, response: Response, spectrum: Spectrum, components: list[str]
) -> Aim:
    """The change of at most that strength whose expected dμ makes the objective least (scipy's SLSQP).

    Raises ValueError for objectives that are not finite, or that no change makes smaller.
    """
    kept = spectrum.trusted
    radius = strength * math.sqrt(response.total)
    moves = spectrum.root @ spectrum.left[:, kept] * (spectrum.signal * spectrum.singular)[kept]

    def value(amounts: np.ndarray) -> float:
        moved = xr.DataArray(radius * (moves @ amounts), {"component": components}, ("component",))
        with calling("invert: target", "take dμ, a DataArray along component, and return a number"):
            found = float(objective(moved))
        if not math.isfinite(found):
            raise ValueError(f"the target's function must give a finite number, got {found}")
        return found

    start = np.zeros(int(kept.sum()))
    ball = {"type": "ineq", "fun": lambda x: 1.0 - x @ x, "jac": lambda x: -2.0 * x}
    slope = float(np.linalg.norm(scipy.optimize.approx_fprime(start, value, 1e-6))) or 1.0
    solved = scipy.optimize.minimize(
        lambda x: value(x) / slope, start, method="SLSQP", constraints=[ball], options={"maxiter": 500, "ftol": 1e-12}
    )
    if not value(solved.x) < value(start):
        raise ValueError(
            "no change of the weights makes the target's function smaller: it is least where it is, or depends only "
            "on what χ does not tell from noise"
        )
    amounts = np.zeros(len(kept))
    amounts[kept] = radius * solved.x / max(1.0, float(np.linalg.norm(solved.x)))
    return Aim(response, spectrum.rows, amounts[spectrum.kept], radius * (moves @ solved.x))


@checked
def between_solutions(
    favoured: xr.Dataset, other: xr.Dataset, variable: str = "contribution", component: str = FULL
) -> xr.DataArray:
    """The direction over data that favours one solution over another, as a target of `invert`.

    To first order weights ρ change a solution's learning coefficient by Σ(ρ_z − 1)·c_z, with c_z what datum z
    contributes, so data that are simpler for the favoured solution, c_z(other) − c_z(favoured) > 0, gain weight
    (arXiv:2601.13548). Each difference is shrunk by its error: d·τ²/(τ² + error²), with τ² the variance of the true
    differences.

    Errors of the two add in squares, which takes them for independent: sample the solutions with different seeds. With
    one seed chains share noise and minibatches, and differences are most often known better than is said here, and
    shrunk more than they need be.

    Args:
        favoured, other: what `contributions()` returns of each solution, over the same data; or any `variable` with
            its standard error as `VARIABLE_error`.
        component: whose estimates to take where they are of several.

    Raises ValueError for data that differ, missing values, and differences that their errors do not tell from none.
    """
    favoured, other = (of_component(each, variable, component) for each in (favoured, other))
    check_same_data(favoured[variable], other[variable], "the two solutions")
    difference = other[variable] - favoured[variable]
    difference = difference - difference.mean()
    noise = favoured[f"{variable}_error"] ** 2 + other[f"{variable}_error"] ** 2
    spread = float((difference**2).mean() - noise.mean())
    if not spread > 0:
        raise InfeasibleTargetError(
            f"the solutions' {variable} differ by {float(difference.std()):.3g} from datum to datum, of which errors "
            f"explain {float(np.sqrt(noise.mean())):.3g}: run more chains or draws of both",
            {},
            None,
        )
    return difference * spread / (spread + noise)


def of_component(estimates: xr.Dataset, variable: str, component: str) -> xr.Dataset:
    """A variable and its error, of one component; raises ValueError unless each datum has one finite value."""
    missing = sorted({variable, f"{variable}_error"} - {str(name) for name in estimates.data_vars})
    if missing:
        raise ValueError(f"{missing} are missing; the datasets have {sorted(map(str, estimates.data_vars))}")
    found = estimates[[variable, f"{variable}_error"]]
    if "component" in found.dims:
        known = found["component"].values.tolist()
        if component not in known:
            raise ValueError(f"there are no estimates of component {component!r}; the datasets have {known}")
        found = found.sel(component=component, drop=True)
    if found[variable].ndim != 1 or not np.isfinite(found[variable]).all():
        raise ValueError(f"{variable} must have one finite value for each datum, got shape {found[variable].shape}")
    return found


def check_same_data(one: xr.DataArray, other: xr.DataArray, what: str) -> None:
    """Raise ValueError unless the last dimension of both is over the same data."""
    dimension = one.dims[-1]
    same = other.dims[-1] == dimension and one.shape[-1] == other.shape[-1]
    same = same and all(
        np.array_equal(one[name].values, other[name].values)
        for name in dict.fromkeys(("probe", "sample", "position", dimension))
        if name in one.coords and name in other.coords
    )
    if not same:
        raise ValueError(
            f"{what} belong to different data; take them from the same probes, with the same selection and order"
        )


def named(values: np.ndarray, components: list[str]) -> dict[str, float]:
    """dμ by component."""
    return dict(zip(components, values.tolist(), strict=True))


def shortened(target: Mapping[str, float]) -> str:
    """A target as text, the largest of its components first."""
    order = sorted(target, key=lambda name: -abs(target[name]))
    text = ", ".join(f"{name!r}: {target[name]:.3g}" for name in order[:NAMED])
    return "{" + text + (", ..." if len(order) > NAMED else "") + "}"
