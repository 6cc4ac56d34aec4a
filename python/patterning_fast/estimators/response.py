"""What responses of chains say: susceptibilities, contributions, and how far they are to be trusted."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from patterning_fast.categories import BiasWarning, BudgetWarning, UnsettledWarning
from patterning_fast.estimators.blindness import BallMoments, correlations, ratios
from patterning_fast.estimators.forgetting import forgetting
from patterning_fast.estimators.labelled import (
    SIGN,
    Variable,
    chains_for_target,
    labelled,
    reliabilities,
    split_half_reliability,
)
from patterning_fast.estimators.statistics import chain_statistic
from patterning_fast.posterior.local_posterior import LocalPosterior

TOLERABLE = 0.1
"""Error of differences over that of chains from which on it is told."""


@dataclass
class Found:
    """What the chains of a component say."""

    response: Tensor
    """−Cov[O, l_z], `[units, losses]`."""
    loss_response: Tensor
    """−Cov[O, L], `[units]`."""
    means: Tensor
    """E[l_z] − l_z(w*), `[units, losses]`."""
    phi: Tensor
    """φ at draws, those of burn-in counted, `[chains, draws]`; NaN where L is not evaluated."""
    shares: Tensor
    """See `Sweep`; `[burn_in, 2]`."""
    sizes: Tensor
    """`[chains, 2]`"""
    errors: Tensor
    """`[4]`"""
    diverged: Tensor
    """bool `[chains]`"""
    seconds: Tensor
    """0-d: from the start of the run until its last chain was done."""

    @classmethod
    def joined(cls, parts: Sequence[Mapping[str, Tensor]]) -> Self:
        """Of chains that ran one after the other."""
        if not parts:
            raise ValueError("no chains have run")
        stacked = {each.name: [part[each.name] for part in parts] for each in fields(cls)}
        summed = {name: torch.stack(stacked.pop(name)).sum(0) for name in ("shares", "errors")}
        seconds = torch.stack(stacked.pop("seconds")).max()
        return cls(**{name: torch.cat(each) for name, each in stacked.items()}, **summed, seconds=seconds)

    @property
    def alive(self) -> Tensor:
        """The units whose numbers are all finite, bool `[units]`."""
        lost = self.diverged.view(len(self.response), -1).any(1)
        return self.response.isfinite().all(1) & self.loss_response.isfinite() & ~lost

    @property
    def healthy(self) -> Tensor:
        """Indices of these; none where they are fewer than two."""
        found = self.alive.nonzero().squeeze(1)
        return found if len(found) > 1 else found[:0]

    @property
    def chi(self) -> Tensor:
        """`[units, losses]`"""
        return self.response - self.loss_response[:, None]

    @property
    def phi_mean(self) -> Tensor:
        """E[φ] after burn-in, `[units]`."""
        return self.phi[:, len(self.shares) :].mean(1).view(len(self.response), -1).mean(1)

    @property
    def growth(self) -> float:
        """Natural logarithm of how the size of a chain's derivative changes over burn-in, going back; median."""
        sizes = self.sizes[(self.sizes > 0).all(1) & self.sizes.isfinite().all(1)]
        return float((sizes[:, 1] / sizes[:, 0]).log().median()) / 2 if len(sizes) else math.nan


def reliability(found: Found) -> float:
    """Split-half reliability of χ over the data."""
    values = found.chi[found.healthy]
    return split_half_reliability(len(values), lambda chosen: values[chosen].mean(0))


def response_dataset(
    names: Sequence[str],
    found: Sequence[Found],
    where: Mapping[str, tuple[str, np.ndarray]],
    posterior: LocalPosterior,
    steps_between_draws: int,
    of_phi: bool,
) -> xr.Dataset:
    """The estimates of all components, labelled."""
    (dimension, places), *_ = where.values()
    tracked, burn_in = len(places), len(found[0].shares)
    groups = max(len(each.response) for each in found)

    def estimate(name: str, values: Sequence[Tensor], dims: tuple[str, ...], long_name: str, units: str) -> xr.Dataset:
        healthy = [(each.healthy, own[each.healthy].double()) for each, own in zip(found, values, strict=True)]
        return labelled(name, names, healthy, groups, dims, where if dims else {}, long_name, units)

    long_name = "susceptibility -Cov[phi, l_z - L] by linear response"
    units = "nats^2" if of_phi else "nats"
    chi = estimate("chi", [each.chi[:, :tracked] for each in found], (dimension,), long_name, units)
    reliable = np.array([reliability(each) for each in found])
    chi.update(reliabilities("chi", long_name, list(reliable)))
    alive = np.array([len(each.healthy) for each in found])
    chi["chains_for_r_0.9"] = chains_for_target(reliable, alive * len(found[0].diverged) // len(found[0].response))
    n_beta, beta = posterior.n_beta, posterior.n_beta / posterior.item_count
    if of_phi and posterior.weights is None:
        adds = [beta * (each.means + n_beta * each.response)[:, :tracked] for each in found]
        chi.update(estimate("contribution", adds, (dimension,), "contribution to the local learning coefficient", "1"))
    if any(bool(each.phi.isfinite().any()) for each in found):
        after = [each.phi[:, burn_in:] for each in found]
        mu = [each.phi_mean for each in found]
        chi.update(estimate("mu", mu, (), "posterior mean of L(w) - L(w*)", "nats"))
        chi.update(estimate("llc", [n_beta * each for each in mu], (), "local learning coefficient", "1"))
        traces = [own[~each.diverged].numpy() for own, each in zip(after, found, strict=True)]
        for name, function, text, of in (
            ("r_hat", "rhat", "rank-normalised R-hat of phi over chains", "1"),
            ("ess", "ess", "bulk effective sample size of phi", "draws"),
        ):
            chi[name] = by_component([chain_statistic(function, each) for each in traces], text, of)
    chi.update(health(found, chi, steps_between_draws))
    return chi.assign_attrs(sign=SIGN["chi"])


def by_component(values: Sequence[float | bool | int], long_name: str, units: str) -> Variable:
    return "component", np.array(values), {"long_name": long_name, "units": units}


def health(
    found: Sequence[Found], chi: xr.Dataset, steps_between_draws: int
) -> dict[str, Variable | tuple[tuple[str, str], np.ndarray, dict[str, str]]]:
    """Whether chains had settled, by component, and what differences and lost chains do to estimates."""
    most = max(len(each.diverged) for each in found)
    diverged = np.zeros((len(found), most), dtype=bool)
    for own, each in zip(diverged, found, strict=True):
        own[: len(each.diverged)] = each.diverged.numpy()
    forgotten = [forgetting(each.shares, each.growth, steps_between_draws) for each in found]
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = [difference_error(each) for each in found]
        spread = np.sqrt((chi["chi_error"].values ** 2).mean(1) / (chi["chi"].values ** 2).mean(1))
        relative = np.array(errors) / spread
    return {
        "settled": by_component([each.settled for each in forgotten], "burn-in was long enough for the response", "1"),
        "relaxation_steps": by_component(
            [each.relaxation_steps for each in forgotten],
            "steps in which the slowest part of the response falls by a factor e",
            "steps",
        ),
        "burn_in_steps": by_component(
            [each.burn_in_steps for each in forgotten], "burn-in that would be long enough", "steps"
        ),
        "missing": by_component([each.missing for each in forgotten], "share of the response before burn-in", "1"),
        "growth": by_component([each.growth for each in found], "log of the adjoint's growth over burn-in", "1"),
        "difference_error": by_component(list(relative), "error of differences over that of chains", "1"),
        "chains_run": by_component([len(each.diverged) for each in found], "chains that ran", "chains"),
        "diverged": (("component", "chain"), diverged, {"long_name": "frozen and left out", "units": "1"}),
    }


def blindness(found: Sequence[Found], ball: BallMoments) -> dict[str, Variable]:
    """How much of χ and of E[φ] the loss has no part in; see `estimators/blindness.py`."""
    tracked = ball.chi.shape[2]
    means = [each.phi_mean[each.healthy] for each in found]
    chi = [each.chi[each.healthy][:, :tracked].double().numpy() for each in found]
    return ratios(means, ball) | correlations(chi, ball)


def difference_error(found: Found) -> float:
    """Relative error of χ by finite differences, from those that were examined."""
    of_losses, losses, of_gradients, gradients = found.errors.tolist()
    return math.sqrt(of_losses / losses + of_gradients / gradients) if losses > 0 and gradients > 0 else math.nan


def warn_of_response(result: xr.Dataset, stopped: str, wanted: float | None) -> None:
    """Say in a sentence each what is wrong with an estimate."""
    names = result["component"].values
    growing = result["growth"].values > 0
    if growing.any():
        warnings.warn(
            f"chains of {shown(names[growing])} do not contract: what they answer to grows by a factor "
            f"{math.exp(float(result['growth'].values[growing].max())):.2g} over burn-in; lower lr, or raise "
            "localization",
            UnsettledWarning,
            stacklevel=5,
        )
    open_ones = ~result["settled"].values & ~growing
    if open_ones.any():
        need = result["burn_in_steps"].values[open_ones]
        need = need[np.isfinite(need)]
        steps = f": some {need.max():.0f} steps would do" if len(need) else ""
        warnings.warn(
            f"chains of {shown(names[open_ones])} had not settled: part of what they answer to is missing; raise "
            f"burn_in{steps}, or raise localization",
            UnsettledWarning,
            stacklevel=5,
        )
    large = result["difference_error"].values > TOLERABLE
    if large.any():
        warnings.warn(
            f"finite differences are {float(result['difference_error'].values[large].max()):.1g} of the standard error "
            f"for {shown(names[large])}: losses bend too much over the posterior; raise localization or n_beta",
            BiasWarning,
            stacklevel=5,
        )
    if stopped in ("max_chains", "max_seconds"):
        lowest = int(np.nanargmin(np.nan_to_num(result["chi_reliability"].values, nan=-1.0)))
        said = f"{names[lowest]} has reliability {float(result['chi_reliability'][lowest]):.2f}"
        of = "" if wanted is None else f" of {wanted:g}"
        warnings.warn(
            f"{stopped} was spent before all components were known as well as wanted: {said}{of} after "
            f"{int(result['chains_run'][lowest])} chains; raise {stopped}",
            BudgetWarning,
            stacklevel=5,
        )


def shown(names: np.ndarray) -> str:
    """The first of some names."""
    first = ", ".join(map(str, names[:4]))
    return first + (f" and {len(names) - 4} others" if len(names) > 4 else "")
