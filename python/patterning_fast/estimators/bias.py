"""How far chains are from sampling the posterior: by long steps, and by the noise of minibatches.

Both are told of the Gaussian posterior that has a component's curvatures at w*. Its learning coefficient is a mean over
directions of nβh/(nβh + γ), h a curvature of the loss, and its χ goes with the square of that.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import xarray as xr
from torch import Tensor

from patterning_fast.categories import BiasWarning
from patterning_fast.chains.plan import Setting
from patterning_fast.samplers.langevin import Langevin, Sampler
from patterning_fast.samplers.sgld import SGLD


class Ritz(NamedTuple):
    """Curvatures that Lanczos's method has found from a start vector, and the vector's share in each; float64."""

    curvature: np.ndarray
    share: np.ndarray

    def mean(self, values: np.ndarray) -> float:
        """vᵀf(H)v/|v|² of the start vector v, from f at the curvatures (Golub & Meurant 2010, Gauss quadrature)."""
        return float((self.share * values).sum())


@dataclass(frozen=True)
class AtCenter:
    """Of a component's loss at w*."""

    found: Ritz
    """From a random vector, which has the same share in every direction, but for chance."""
    noise: Tensor
    """Variance of one sample's gradient `[coordinates]`."""

    @property
    def directions(self) -> np.ndarray:
        """How many directions each curvature stands for: for one, and for its share of those not found.

        All weigh the same where every curvature has been found. A large one that stands alone is counted for two on
        average, so that its bias is rather told too large.
        """
        return 1 + (self.noise.numel() - len(self.found.share)) * self.found.share


@dataclass(frozen=True)
class AtDraw:
    """Of a component's loss where a chain has come to."""

    found: Ritz
    """From a vector of gradient noise."""
    noise: Tensor
    """Variance of one sample's gradient `[coordinates]`, mean over some chains."""


@dataclass(frozen=True)
class Bias:
    """What is told of one setting's chains, float64 `[components]` each; NaN where it is not known."""

    curvature: np.ndarray
    """Largest curvature of the potential: nβ times that of the loss, and γ."""
    step_size: np.ndarray
    """Variance along the stiffest direction over the posterior's, less 1; infinite where steps overshoot."""
    gradient_noise: np.ndarray
    """Variance that minibatches add to a step over the variance injected."""
    llc: np.ndarray
    """λ̂ over that of the posterior, less 1."""
    chi: np.ndarray
    """χ over that of the posterior, less 1."""

    @classmethod
    def unknown(cls, components: int) -> Self:
        """Of chains that are still running."""
        return cls(*np.full((5, components), np.nan))

    def error(self, estimates: xr.DataArray, excess: np.ndarray) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
        """The part of estimates `[component, ...]` that is bias, as a variable."""
        with np.errstate(invalid="ignore"):
            share = np.where(np.isinf(excess), 1.0, excess / (1 + excess))
        values = abs(estimates.values) * abs(share).reshape(-1, *[1] * (estimates.ndim - 1))
        described = {
            "long_name": f"bias of {estimates.name} by step size and minibatch noise",
            "units": str(estimates.attrs["units"]),
        }
        return tuple(map(str, estimates.dims)), values, described


def bias_of(
    sampler: Sampler,
    setting: Setting,
    batch_size: int,
    centers: Sequence[AtCenter | None],
    draws: Sequence[AtDraw | None],
    variance: np.ndarray,
) -> Bias:
    """The bias of a setting's chains, each component's from what is known of it at w* and at its last draw.

    `variance` is that of minibatch gradients at w*, mean over coordinates, `[components]`, as the chains have seen it;
    where it is NaN, that of the samples in `centers` is taken.
    """
    known = [
        (np.nan,) * 5
        if center is None or not isinstance(sampler, Langevin)
        else bias_of_component(sampler, setting, batch_size, center, draw, float(seen))
        for center, draw, seen in zip(centers, draws, variance, strict=True)
    ]
    return Bias(*np.array(known, dtype=np.float64).T)


def bias_of_component(
    sampler: Langevin, setting: Setting, batch_size: int, center: AtCenter, draw: AtDraw | None, variance: float
) -> tuple[float, ...]:
    """The fields of `Bias`."""
    n_beta, localization, lr = setting.n_beta, setting.localization, setting.lr
    found, last = center.found, draw or AtDraw(Ritz(np.zeros(1), np.ones(1)), center.noise)
    stiffest = n_beta * float(np.concatenate((found.curvature, last.found.curvature, [0.0])).max()) + localization
    excess = float(sampler.inflation([stiffest], lr)[0]) - 1
    at_center = float(center.noise.mean()) / batch_size if np.isnan(variance) else variance
    # The same samples at both places: what their choice does to both falls out.
    here = max(at_center + float(last.noise.mean() - center.noise.mean()) / batch_size, 0.0)
    warmth = heat(sampler, setting, batch_size, last.noise, here)
    felt = share_of_loss(found, setting)
    wide = sampler.inflation(n_beta * np.maximum(found.curvature, 0.0) + localization, lr)
    weight = center.directions * felt
    if not weight.sum() > 0:
        return stiffest, excess, warmth, np.nan, np.nan
    bends = weight > 0
    llc, chi = (
        float((weight * felt**power)[bends] @ wide[bends] ** (1 + power) / (weight * felt**power).sum())
        for power in (0, 1)
    )
    felt_noise = last.found.mean(share_of_loss(last.found, setting)) * center.noise.numel() / weight.sum()
    warmer = 1 + (0.0 if np.isnan(warmth) else warmth * felt_noise)
    return stiffest, excess, warmth, llc * warmer - 1, chi * warmer**2 - 1


def share_of_loss(found: Ritz, setting: Setting) -> np.ndarray:
    """nβh/(nβh + γ): what the loss has of the potential's curvature; 0 where the loss bends down."""
    loss = setting.n_beta * np.maximum(found.curvature, 0.0)
    return np.divide(loss, loss + setting.localization, out=np.zeros_like(loss), where=loss > 0)


def heat(sampler: Langevin, setting: Setting, batch_size: int, noise: Tensor, variance: float) -> float:
    """Variance that minibatches add to a step over the variance injected, mean over coordinates.

    From the variance of a sample's gradient `[coordinates]`, and its mean, better known, of a minibatch's.
    """
    if isinstance(sampler, SGLD) and sampler.gradient_noise_correction:
        return float((noise_over_injected(setting, batch_size, noise) - 1).clamp(min=0).mean())
    return sampler.heating(setting.lr, setting.n_beta) * variance


def noise_over_injected(setting: Setting, batch_size: int, noise: Tensor) -> Tensor:
    """(lr/2)²·nβ²·s²/m over lr `[coordinates]`: above 1 SGLD's correction has nothing left to take off."""
    return setting.lr / 4 * setting.n_beta**2 * noise.double() / batch_size


CORRECTABLE = 0.1
"""Noise that a correction may leave, over what is injected, mean over coordinates."""


def check_correctable(
    sampler: Sampler,
    settings: Sequence[Setting],
    batch_size: int,
    components: Sequence[str],
    centers: Sequence[AtCenter | None],
) -> None:
    """Raise ValueError where minibatches are noisier than what is to be injected, at every setting."""
    if not isinstance(sampler, SGLD) or not sampler.gradient_noise_correction:
        return
    known = [(name, each.noise) for name, each in zip(components, centers, strict=True) if each is not None]
    if not known:
        return
    worst = [max((heat(sampler, setting, batch_size, each, 0.0), name) for name, each in known) for setting in settings]
    (left, name), setting = min(zip(worst, settings, strict=True), key=lambda each: each[0][0])
    if left <= CORRECTABLE:
        return
    most = max(float(noise_over_injected(setting, batch_size, each).max()) for _, each in known)
    raise ValueError(
        f"gradient_noise_correction cannot correct lr={setting.lr:g}: in {name} minibatches at w* bring more noise "
        f"than is to be injected, which heats chains by {left:.2g} of it, and {CORRECTABLE} is the most allowed; lower "
        f"lr to {setting.lr / most:.2g}, the largest that can be corrected in all coordinates, or raise batch_size"
    )


def warn_of_clipping(sampler: Sampler, bias: Bias) -> None:
    """Warn where minibatches were noisier than what was to be injected at the places that chains have come to."""
    if isinstance(sampler, SGLD) and sampler.gradient_noise_correction and (bias.gradient_noise > CORRECTABLE).any():
        warnings.warn(
            f"gradient_noise_correction has left up to {np.nanmax(bias.gradient_noise):.2g} of the injected noise "
            f"where chains have come to, and estimates are of a warmer posterior: lower lr={sampler.lr:g} or raise "
            "batch_size",
            BiasWarning,
            stacklevel=5,
        )
