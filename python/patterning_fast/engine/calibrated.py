"""Sampling settings for a model that nobody has sampled yet: tried in order until chains are healthy.

A chain in a direction of curvature a = n_beta·h + localization has a step-size bias of 1/(1 − lr·a/4) − 1, minibatch
gradients of variance v heat it by lr/4·n_beta²·v, and directions without curvature relax in 1/(lr·localization) steps.
The largest h of the components and their v are measured at w*. So for any n_beta there is a largest lr that keeps bias
and heat small, and a least localization at which burn-in fits into the steps that may be spent on it. What remains to
try is n_beta, and more localization where the loss is not what its curvature at w* says.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from torch import Tensor

from patterning_fast.arguments import Count, Seed, checked
from patterning_fast.categories import BlindWarning, UnsettledWarning
from patterning_fast.engine.calibration import LONG_STEPS, VERDICTS, WARM, findings
from patterning_fast.engine.proposal import Pace, pace
from patterning_fast.engine.run import ChainDivergedError
from patterning_fast.engine.sample import sample
from patterning_fast.estimators.blindness import BLIND
from patterning_fast.estimators.settling import REMAINS, frames_within
from patterning_fast.plain_torch import plain_torch
from patterning_fast.posterior.components import FULL, Components
from patterning_fast.posterior.devices import Device
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.losses import Data, Loss
from patterning_fast.posterior.wrapped import Model
from patterning_fast.samplers.sgld import SGLD
from patterning_fast.short import listed

LR, N_BETA, LOCALIZATION = 1e-3, 30.0, 300.0
"""Published for attention-only language models (arXiv:2504.18274)."""

LEAST = LOCALIZATION / 100
"""Localization that is left where the loss is flat."""

TIGHTER = (1.0, 10.0, 100.0)
"""Times the least localization, where that will not do."""

MARGIN = 1 / 3
"""Share of what `calibrate` calls steps too long, or too warm, that lr is chosen for: curvature varies over chains."""

DRAWS_IN_RELAXATION = 4
"""Of the slowest direction, in a trial."""

SOUND = VERDICTS.index("not mixed")
"""The worst verdict that will do. R̂ of a trial tells how short that is; whether chains had settled is told apart."""


class Calibrated(NamedTuple):
    """What to sample, how, and what else was tried."""

    posterior: LocalPosterior
    sampler: SGLD
    pace: Pace
    """`burn_in` and `steps_between_draws` of estimates."""
    tried: xr.Dataset
    """By setting and component."""


@checked
@plain_torch()
def calibrated(
    model: Model,
    loss: Loss,
    data: Data,
    *,
    components: Components | None = None,
    device: Device | None = None,
    max_burn_in: Count = 300,
    chains: Count = 8,
    draws: Count = 32,
    batch_size: Count = 16,
    loss_samples: Count | Tensor | None = None,
    seed: Seed = 0,
    progress: bool = True,
) -> Calibrated:
    """A posterior of a trained model and a sampler for it, with settings at which chains of all components are healthy.

        posterior, sampler, pace, tried = pf.calibrated(model, loss, data, components=heads)
        pf.sample(posterior, sampler, components=heads, **pace)

    n_beta is n/log n for n samples or tokens (arXiv:2308.12108), 30 (arXiv:2504.18274), or halfway. lr is the largest
    at which steps of SGLD widen the posterior's stiffest direction by no more than a ninth, and minibatches add no more
    than a thirtieth of the injected noise, by the curvature and the noise of gradients at w*. localization is the
    least, from 3 on, at which `max_burn_in` steps are enough, or 10 or 100 times that. These nine are tried, those with
    most n_beta for their localization first, where the loss has most to say, and of like ones the largest n_beta. The
    first is taken at which chains of every component settle, without long steps, heat or divergence, and their E[φ] is
    below 0.9 of what it is without the loss (`blind`).

    Args:
        model, loss, data, device: as for `LocalPosterior`. components: what is to be sampled; None for "full".
        max_burn_in: steps that chains may take to forget w*. More lets the loss weigh more.
        Others: of the trials, as for `sample`; `batch_size` should be that of the estimates to come.

    Returns the posterior, the sampler, `pace` for estimates, and `tried`: a dataset over (setting, component) with
    `verdict` and most of what `calibrate` returns, and `blind` (see `Statistics`); its coordinates lr, n_beta and
    localization belong to the setting, and `attrs["chosen"]` is the one that was taken. Where no setting will do, the
    best is taken, with a warning that says what is wrong with it: chains that are not healthy, or blind.

    Raises:
        TypeError, ValueError: as `LocalPosterior` and `sample`. ChainDivergedError: at every setting.
    """
    posterior = LocalPosterior(model, loss, data, n_beta=N_BETA, localization=LOCALIZATION, device=device)
    names = list(components or [FULL])
    shared: dict[str, Any] = {
        "components": components, "batch_size": batch_size, "loss_samples": loss_samples, "seed": seed,
        "progress": progress,
    }  # fmt: skip
    curvature, noise = at_center(posterior, shared)
    rows: list[xr.Dataset] = []
    for n_beta, localization, lr in settings(posterior.item_count, curvature, noise, max_burn_in):
        relaxation = 1 / (lr * localization)
        apart = max(1, round(relaxation / DRAWS_IN_RELAXATION))
        burn_in = math.ceil(math.log(1 / REMAINS) * relaxation / apart)
        try:
            run = sample(
                posterior.tempered(n_beta, localization), SGLD(lr), chains=chains, draws=draws, burn_in=burn_in,
                steps_between_draws=apart, **shared,
            )  # fmt: skip
            found = findings(run).assign(run.blindness).assign_coords(component=run.component_names)
        except ChainDivergedError:
            found = xr.Dataset({"verdict": ("component", ["diverged"] * len(names))}, {"component": names})
        rows.append(found.assign_coords(lr=lr, n_beta=n_beta, localization=localization))
        if preference(found) <= (SOUND, BLIND):
            break
    best = min(range(len(rows)), key=lambda at: preference(rows[at]))
    chosen, tried = rows[best], xr.concat(rows, "setting").assign_attrs(chosen=best)
    if "llc" not in chosen:
        raise ChainDivergedError("every chain diverged at every setting that was tried: train the model further")
    warn_of_choice(chosen)
    return Calibrated(
        posterior.tempered(float(chosen["n_beta"]), float(chosen["localization"])),
        SGLD(float(chosen["lr"])),
        pace(*(chosen[each].where(np.isfinite, max_burn_in) for each in ("relaxation_steps", "burn_in_steps"))),
        tried,
    )


def preference(found: xr.Dataset) -> tuple[int, float]:
    """The less the better: the worst verdict of a component, "healthy" and "not mixed" as one; the largest `blind`."""
    verdict = max(VERDICTS.index(each) for each in found["verdict"].values)
    blind = float(found["blind"].max()) if "blind" in found else math.nan
    return max(verdict, SOUND), BLIND if math.isnan(blind) else max(blind, BLIND)


def at_center(posterior: LocalPosterior, shared: dict[str, Any]) -> tuple[float, float]:
    """Largest curvature of the loss, and variance of minibatch gradients, mean over coordinates, of any component.

    From one step at the published settings; 0 where they are not known.
    """
    run = sample(posterior, SGLD(LR), chains=2, draws=1, **shared)
    seen = run.diagnostics()
    curvature = (seen["curvature"] - posterior.localization) / posterior.n_beta
    noise = seen["gradient_noise"] / SGLD(LR).heating(LR, posterior.n_beta)
    return float(np.nan_to_num(curvature).max()), float(np.nan_to_num(noise).max())


def settings(items: int, curvature: float, noise: float, max_burn_in: int) -> list[tuple[float, float, float]]:
    """What to try, in order: n_beta, localization and lr, from the largest curvature and the noise of minibatches."""
    long, warm = MARGIN * LONG_STEPS, MARGIN * WARM
    reach = 4 * long / (1 + long)  # of lr·a
    rates = math.log(1 / REMAINS) / max_burn_in  # lr·localization, at the least
    tempered = items / math.log(max(items, 2))
    found = []
    for n_beta in {N_BETA, math.sqrt(N_BETA * tempered), tempered}:
        coolest = warm / (noise * SGLD(LR).heating(1.0, n_beta)) if noise > 0 else math.inf
        # Where lr·localization is `rates`, with lr = reach/(n_beta·h + localization) or with lr = coolest.
        by_curvature = n_beta * curvature * rates / (reach - rates) if reach > rates else LOCALIZATION
        least = max(by_curvature, rates / coolest, LEAST)
        for localization in [least * each for each in TIGHTER]:
            found.append((n_beta, localization, min(reach / (n_beta * curvature + localization), coolest)))
    return sorted(found, key=lambda each: (-round(math.log(each[0] / each[1]), 1), -each[0]))


def warn_of_choice(chosen: xr.Dataset) -> None:
    """Say in a sentence what is wrong with the settings that are taken."""
    names, (verdict, blind) = chosen["component"].values, preference(chosen)
    if verdict > SOUND:
        ill = [f"{name} ({said})" for name, said in zip(names, chosen["verdict"].values, strict=True)
               if VERDICTS.index(said) > SOUND]  # fmt: skip
        warnings.warn(
            f"no setting that was tried has healthy chains of all components, at the best not of {listed(ill)}; raise "
            "max_burn_in or batch_size, or calibrate components apart",
            UnsettledWarning,
            stacklevel=frames_within(),
        )
    elif blind > BLIND:
        warnings.warn(
            f"the loss has hardly a part in what chains give at any setting that was tried (blind is {blind:.2g} at "
            "the best): raise max_burn_in",
            BlindWarning,
            stacklevel=frames_within(),
        )
