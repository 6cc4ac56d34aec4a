"""Is the prediction kept? Sample again under the weighted loss and compare (the fluctuation–dissipation relation)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr

from patterning_fast.engine.sample import sample
from patterning_fast.patterning.plan import Plan
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.samplers.langevin import Sampler


def verify(
    plan: Plan, posterior: LocalPosterior, sampler: Sampler, *, scale: float = 1.0, **sampling: Any
) -> xr.Dataset:
    """Predicted against realised dμ of each component when the posterior's data are weighted by the plan.

    Args:
        plan: of weights on the data of `posterior`, whose n_beta χ must have been estimated at.
        scale: fraction of the plan's strength to check at: linear response holds for small ones.
        sampling: as for `sample` (components, chains, draws, ...). Both runs use the same noise and minibatches, so
            that their difference is far less noisy than either.

    Returns `predicted`, `realised`, their errors, and `z`, the difference in standard errors. Raises ValueError for
    weights that do not belong to the posterior's data or were made for another n_beta, and ChainDivergedError where
    negative weights leave L_ρ without a floor.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a finite number > 0, got {scale}")
    if plan.attrs["n_beta"] != posterior.n_beta:
        raise ValueError(f"the plan was made at n_beta {plan.attrs['n_beta']}, the posterior has {posterior.n_beta}")
    weighted = posterior.reweighted(plan.scaled(scale))
    before = sample(posterior, sampler, **sampling)
    after = sample(weighted, sampler, **sampling)
    difference = after.grouped.means(slice(None)).observable - before.grouped.means(slice(None)).observable
    by_group = difference.view(-1, before.plan.groups).cpu().numpy()  # NaN where a group has lost all its chains
    names = [name for name in before.component_names if name in plan.predicted["component"].values]
    at = [before.component_names.index(name) for name in names]
    healthy = np.isfinite(by_group[at]).sum(1)
    predicted = plan.predicted.sel(component=names)
    result = xr.Dataset(
        {
            "predicted": scale * predicted["dmu"],
            "predicted_error": scale * predicted["dmu_error"],
            "realised": ("component", np.nanmean(by_group[at], 1)),
            "realised_error": ("component", np.nanstd(by_group[at], 1, ddof=1) / np.sqrt(healthy)),
        },
        attrs=after.attrs | {"scale": scale},
    )
    error = np.hypot(result["predicted_error"], result["realised_error"])
    return result.assign(z=(result["realised"] - result["predicted"]) / error)
