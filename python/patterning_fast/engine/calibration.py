"""Which hyper-parameters to sample with: a grid of them, all in one bank."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import xarray as xr
from torch import Tensor

from patterning_fast.arguments import Count, NonNegative, Positive, Seed, Whole, checked
from patterning_fast.chains.plan import Setting
from patterning_fast.domains import Distinct, Holds
from patterning_fast.engine.options import Keeping, Options
from patterning_fast.engine.proposal import proposal
from patterning_fast.engine.sample import sample_settings
from patterning_fast.estimators.statistics import Statistics
from patterning_fast.plain_torch import plain_torch
from patterning_fast.posterior.components import Components
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.losses import Probes
from patterning_fast.samplers.langevin import Sampler

VERDICTS = ("healthy", "not mixed", "too warm", "steps too long", "on the way out", "negative", "diverged")
"""From best to worst."""

MIXED_R_HAT = 1.1
"""Above this R̂ the chains of a component do not agree yet on the mean of φ (Vehtari et al. 2021 ask for 1.01)."""

LONG_STEPS = 1 / 3
"""Above this `step_size_bias` steps are too long: χ is inflated by 78 % along the stiffest direction."""

WARM = 0.1
"""Above this `gradient_noise` minibatches make the posterior too warm."""


@checked
@plain_torch()
def calibrate(
    posterior: LocalPosterior,
    sampler: Sampler,
    *,
    lr: Annotated[Sequence[Positive], Holds(1), Distinct()],
    n_beta: Annotated[Sequence[NonNegative], Holds(1), Distinct()] | None = None,
    localization: Annotated[Sequence[NonNegative], Holds(1), Distinct()] | None = None,
    components: Components | None = None,
    probes: Probes | None = None,
    chains: Count = 4,
    draws: Count = 100,
    burn_in: Whole = 0,
    steps_between_draws: Count = 1,
    batch_size: Count = 16,
    loss_samples: Count | Tensor | None = None,
    tile: Count | None = None,
    seed: Seed = 0,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: NonNegative = 60.0,
    allow_versions: bool = False,
    progress: bool = True,
) -> xr.Dataset:
    """Sample at every combination of step sizes, nβ and γ, side by side with the same noise; say which are healthy.

    Args:
        lr: step sizes, in place of the sampler's own. n_beta, localization: None for the posterior's own.
        Others: as for `sample`.

    Returns a dataset over (lr, n_beta, localization, component): `llc`, `llc_error`, `llc_bias_error`, `r_hat`, `ess`,
    `distance` from w* at the last draw, `gradient_noise`, `step_size_bias` (see `Statistics.diagnostics`), `settled`,
    `relaxation_steps` and `burn_in_steps` (see `Statistics`), `diverged`, the share of chains that did, and `verdict`:

    - "diverged" where any chain did;
    - "negative" where the learning coefficient lies two errors below 0 (w* is no minimum for these chains);
    - "on the way out" where chains had not settled;
    - "steps too long" where steps widen the posterior's stiffest direction by more than a third (lower lr);
    - "too warm" where minibatches add more than a tenth of the injected noise (lower lr, raise batch_size, or correct
      for it: `gradient_noise_correction`);
    - "not mixed" where R̂ exceeds 1.1, else "healthy". `figures.calibration` draws it.

    `attrs` have settings at which chains of all components settle: `proposed_lr`, `proposed_n_beta` and
    `proposed_localization`, of those tried, `proposed_burn_in` and `proposed_steps_between_draws`; NaN where there are
    none. See `engine/proposal.py` for the choice.

    Raises:
        TypeError, ValueError: as `sample`; an empty grid. ChainDivergedError: no chain of any setting is left.
    """
    axes = {
        "lr": lr,
        "n_beta": [posterior.n_beta] if n_beta is None else n_beta,
        "localization": [posterior.localization] if localization is None else localization,
    }
    settings = tuple(Setting(*each) for each in product(*axes.values()))
    for setting in settings:
        if setting.n_beta == 0 and setting.localization == 0:
            raise ValueError("n_beta and localization are both 0 at a setting: nothing would hold its chains")
    options = Options(
        chains, draws, burn_in, steps_between_draws, batch_size, shared_minibatches=False, antithetic=False,
        groups=None, loss_kernel=False, recording_bytes=2**28, precision="float32", tile=tile, seed=seed,
    )  # fmt: skip
    keeping = Keeping(checkpoint, checkpoint_seconds, allow_versions=allow_versions)
    runs = sample_settings(
        posterior, sampler, settings, components, probes, None, loss_samples, options, keeping, progress
    )
    found = [findings(run) for run in runs]
    shape = tuple(len(values) for values in axes.values())
    grid = xr.Dataset(
        {
            name: (
                (*axes, "component"),
                np.stack([each[name].values for each in found]).reshape(*shape, -1),
                found[0][name].attrs,
            )
            for name in found[0].data_vars
        },
        coords={**{name: list(values) for name, values in axes.items()}, "component": found[0]["component"].values},
    )
    shared = {name: value for name, value in runs[0].attrs.items() if name not in axes}
    return grid.assign_attrs(shared | proposal(grid))


def findings(run: Statistics) -> xr.Dataset:
    """What one setting's chains tell, by component."""
    llc, health = run.mean_and_llc()[["llc", "llc_error", "llc_bias_error"]].assign(run.settling), run.diagnostics()
    diverged = health["diverged"].mean("chain")
    verdict = np.select(
        [
            diverged > 0,
            llc["llc"] < -2 * llc["llc_error"],
            ~llc["settled"],
            abs(health["step_size_bias"]) > LONG_STEPS,
            health["gradient_noise"] > WARM,
            ~(health["r_hat"] <= MIXED_R_HAT),
        ],
        VERDICTS[:0:-1],
        VERDICTS[0],
    )
    return llc.assign(
        r_hat=health["r_hat"],
        ess=health["ess"],
        distance=health["distance"].isel(draw=-1).mean("chain"),
        gradient_noise=health["gradient_noise"],
        step_size_bias=health["step_size_bias"],
        diverged=diverged,
        verdict=("component", verdict),
    )
