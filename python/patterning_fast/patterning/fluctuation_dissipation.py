"""χ by covariances against χ by responses: they agree where chains have settled, and not on their way out from w*."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy.stats
import xarray as xr

from patterning_fast.arguments import KeywordsOf, Positive, Seed, checked, read_keywords
from patterning_fast.domains import Mend
from patterning_fast.engine.checkpoint import checkpoint_folder
from patterning_fast.engine.evaluation import loss_indices
from patterning_fast.engine.linear_response import linear_response
from patterning_fast.engine.sample import sample
from patterning_fast.estimators.regression import LEAST_GROUPS, Regression, regression
from patterning_fast.plain_torch import plain_torch
from patterning_fast.posterior.components import Components
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.losses import Probes
from patterning_fast.samplers.langevin import Sampler

LEVEL = 0.01
"""Chance of calling two estimates of the same χ different."""

SHARED = {"posterior", "sampler", "components", "probes", "loss_samples", "seed", "checkpoint", "progress"}
"""What both estimates have from `fluctuation_dissipation`."""

ALIKE = {"batch_size", "recording_bytes", "tile", "checkpoint_seconds", "allow_versions"}
"""Arguments of `sample` that responses take too, unless they have their own."""

DESCRIBED = {
    "slope": "regression of chi by covariances on chi by responses over data, freed of the noise of both",
    "correlation": "correlation of both chi over data, over the root of both reliabilities",
}


@checked
@plain_torch()
def fluctuation_dissipation(
    posterior: LocalPosterior,
    sampler: Sampler,
    *,
    components: Components | None = None,
    probes: Probes | None = None,
    response: Annotated[
        Mapping[str, Any], Mend("name arguments of linear_response: response={'chains': 8, 'burn_in': 10}")
    ]
    | None = None,
    tolerance: Positive = 0.25,
    seed: Seed = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    **sampling: Annotated[Any, KeywordsOf(sample)],
) -> xr.Dataset:
    """Whether χ by covariances of `sample` is the response of `linear_response`, on the same components and data.

    The fluctuation-dissipation theorem says so of chains that have settled. Chains that are on their way out from w*
    have larger covariances than responses, of another pattern over the data: their χ predicts nothing. It is the first
    thing to run on a new model.

    Args:
        posterior, sampler, components, probes: as for both; `linear_response` says which samplers it takes.
        response: arguments of `linear_response` (chains, draws, burn_in, steps_between_draws, ...); its defaults for
            those not named. `batch_size` and what is no number of chains or draws are those of `sampling`.
        tolerance: how far slope and correlation may be from 1, and the largest that their errors may be. Chains of
            finite steps have a slope of 1 + K, K = lr/2·(n_beta·h + localization) for a curvature h.
        seed: of `sample`. Noise and minibatches of the responses are those of the seed after it.
        checkpoint: folder for the checkpoints of both, in folders of their own; see `sample`.
        sampling: other arguments of `sample` (chains, draws, burn_in, ...).

    Returns by component `slope` and `correlation` of χ over data, each about its mean, with `slope_error` and
    `correlation_error` from independent groups of chains (jackknife); `covariance_reliability` and
    `response_reliability`; a `verdict`; what covariances say of their chains (`r_hat`, `blind`, ...); and both χ,
    `covariance` and `response` `[component, token or sample]` [nats²], each with its error. The verdict is

    - "agree" where the slope is within `tolerance` of 1, the correlation not further below it, and so are both errors;
    - "disagree" where either is off by more than `tolerance`, and by more than errors make it once in 100;
    - else "too noisy to tell": more chains or draws, of the estimate of less reliability, tell.

    `figures.fluctuation_dissipation` draws it.

    Raises:
        TypeError, ValueError: as `sample` and `linear_response`, before any sampling; fewer than 4 chains of either.
        ChainDivergedError: all chains of either have diverged.
    """
    given = read_keywords("fluctuation_dissipation: response", dict(response or {}), linear_response)
    if taken := sorted(SHARED & given.keys()):
        raise ValueError(f"response must leave {' and '.join(taken)} out, got {taken}; pass what both share beside it")
    for where, keywords in (("chains", sampling), ("response['chains']", given)):
        if (number := keywords.get("chains", LEAST_GROUPS)) < LEAST_GROUPS:
            raise ValueError(f"{where} must be at least {LEAST_GROUPS}, which errors come from, got {number}; raise it")
    of_phi = loss_indices(posterior, sampling.pop("loss_samples", None), seed)
    same: dict[str, Any] = {"components": components, "probes": probes, "loss_samples": of_phi, "progress": progress}
    folder = None if checkpoint is None else checkpoint_folder(checkpoint)
    responses = linear_response(
        posterior,
        sampler,  # type: ignore[arg-type]
        seed=(seed + 1) % 2**63,
        checkpoint=folder and folder / "response",
        **same | {name: sampling[name] for name in ALIKE & sampling.keys()} | given,
    )
    statistics = sample(posterior, sampler, seed=seed, checkpoint=folder and folder / "covariance", **same | sampling)
    covariances = statistics.susceptibilities().sel(component=responses["component"].values)
    return comparison(covariances, responses, tolerance)


def comparison(covariances: xr.Dataset, responses: xr.Dataset, tolerance: float) -> xr.Dataset:
    """What `fluctuation_dissipation` returns, from the χ of both."""
    names = responses["component"].values
    found, verdicts = [], []
    for name in names:
        by_group = [healthy_groups(each.sel(component=name)) for each in (covariances, responses)]
        found.append(regression(*by_group))
        verdicts.append(verdict(found[-1], min(map(len, by_group)), tolerance))
    dimension = str(responses["chi"].dims[1])
    result = covariances[
        [name for name, each in covariances.data_vars.items() if each.dims == ("component",) and "chi" not in str(name)]
    ].drop_vars("chains_for_r_0.9")
    for name, text in DESCRIBED.items():
        for part, described in ((name, text), (f"{name}_error", f"standard error of {text}")):
            values = np.array([getattr(each, part) for each in found])
            result[part] = ("component", values, {"long_name": described, "units": "1"})
    result["verdict"] = ("component", np.array(verdicts))
    for name, chi in (("covariance", covariances), ("response", responses)):
        result[f"{name}_reliability"] = chi["chi_reliability"]
        for part in ("", "_error"):
            result[f"{name}{part}"] = (("component", dimension), chi[f"chi{part}"].values, chi[f"chi{part}"].attrs)
    where = {name: each for name, each in responses.coords.items() if each.dims == (dimension,)}
    return result.assign_coords(where).assign_attrs(tolerance=tolerance)


def healthy_groups(chi: xr.Dataset) -> np.ndarray:
    """Values of a component's χ by healthy group `[groups, data]`."""
    values = chi["chi_group"].values
    return values[np.isfinite(values).all(1)]


def verdict(found: Regression, groups: int, tolerance: float) -> str:
    """What is to be thought of two estimates of the same χ."""
    apart = np.array([abs(found.slope - 1), 1 - found.correlation])
    error = np.array([found.slope_error, found.correlation_error])
    if ((apart > tolerance) & (apart > scipy.stats.t.isf(LEVEL / 2, groups - 1) * error)).any():
        return "disagree"
    return "agree" if ((apart <= tolerance) & (error <= tolerance)).all() else "too noisy to tell"
