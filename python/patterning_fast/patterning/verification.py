"""Sample again under the weighted loss, and compare with what was predicted (the fluctuation–dissipation relation)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import xarray as xr

from patterning_fast.arguments import KeywordsOf, Positive, checked
from patterning_fast.domains import Holds
from patterning_fast.engine.checkpoint import checkpoint_folder
from patterning_fast.engine.run import ChainDivergedError
from patterning_fast.engine.sample import sample
from patterning_fast.estimators.statistics import Statistics
from patterning_fast.patterning.agreement import agreement, check_comparison, predicted_names
from patterning_fast.patterning.plan import Plan
from patterning_fast.plain_torch import plain_torch
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.samplers.langevin import Sampler


@checked
@plain_torch()
def verify(
    plan: Plan,
    posterior: LocalPosterior,
    sampler: Sampler,
    *,
    fractions: Annotated[Sequence[Positive], Holds(1)] = (0.25, 0.5, 1.0),
    tolerance: Positive = 0.25,
    checkpoint: str | Path | None = None,
    **sampling: Annotated[Any, KeywordsOf(sample)],
) -> xr.Dataset:
    """Predicted against realised dμ `[strength, component]` when the posterior's data are weighted by the plan.

    Samples once without weights and once at each strength, with the same noise and minibatches, so that differences
    are far less noisy than either. `plan.verified(result.attrs["radius"])` notes the strength up to which the
    prediction was kept. A seed other than that of χ makes the two sides independent.

    Args:
        plan: of weights on the data of `posterior`, whose n_beta χ must have been estimated at.
        fractions: of the plan's strength to check at; above 1 asks how much further one could go.
        tolerance: relative deviation that still counts as agreement, and the largest that errors may have.
        checkpoint: folder for the checkpoints of all runs, in folders of their own; see `sample`.
        sampling: as for `sample` (components, chains, draws, ...).

    Returns `predicted`, `realised`, their errors [nats] and `z`; by strength, `verdict` ("kept", "broken",
    "too noisy", or "diverged" where weights cost chains), made of `p_value`, `deviation` and `deviation_error`; and
    `attrs["radius"]`, 0 where nothing is kept. See `agreement` for the rule. `settled`, `relaxation_steps` and
    `burn_in_steps` are of the chains without weights: a prediction from chains on their way is kept on their way.

    A plan made from χ of one of the user's observables is compared with that one, which `observables=` must then name.

    Raises ValueError for weights that do not belong to the posterior's data or were made for another n_beta, a
    posterior with weights of its own, an observable that is not sampled, and `traces`, which are of one run;
    ChainDivergedError where all chains diverge without the plan's weights.
    """
    fractions = check_comparison(plan, posterior.n_beta, fractions)
    if posterior.weights is not None:
        raise ValueError("the posterior has weights of its own: pass the one without, which χ is of")
    if "traces" in sampling:
        raise ValueError("verify makes several runs, and traces would be of one: leave it out")
    folder = None if checkpoint is None else checkpoint_folder(checkpoint)
    weighted = [posterior.reweighted(plan.scaled(fraction)) for fraction in fractions]
    before = sample(posterior, sampler, checkpoint=folder and folder / "unweighted", **sampling)
    names = predicted_names(plan, before.component_names)
    observable = before.place(plan.attrs["observable"])
    base = mu_by_group(before, names, observable)
    by_group = np.full((len(fractions), *base.shape), np.nan)
    verdicts: list[str | None] = ["diverged"] * len(fractions)
    for at, (fraction, each) in enumerate(zip(fractions, weighted, strict=True)):
        own = folder and folder / f"weighted-{float(fraction)!r}"
        try:
            after = sample(each, sampler, checkpoint=own, **sampling)
        except ChainDivergedError:
            continue
        by_group[at] = mu_by_group(after, names, observable) - base
        if not bool((after.traces.diverged & ~before.traces.diverged).any()):
            verdicts[at] = None
    found = agreement(plan, names, fractions, by_group, verdicts, tolerance, before.attrs)
    settling = xr.Dataset(before.settling, coords={"component": before.component_names})
    return found.assign(settling.sel(component=names).data_vars)


def mu_by_group(statistics: Statistics, names: Sequence[str], observable: int) -> np.ndarray:
    """E[O] of components by group of chains `[components, groups]`; NaN where a group has lost all its chains."""
    means = statistics.observed.means(slice(None)).observable[:, observable].cpu().numpy()
    means = means.reshape(-1, statistics.plan.groups)
    return means[[statistics.component_names.index(name) for name in names]]
