"""Our side: `pf.sample` through the public face.

Variants: "" is what A and B compare, chains as independent as devinterp's; "burned-in" throws the first draws away;
"thinned" evaluates every fourth step only; "response" differentiates chains; "frugal" recalls little; "full" samples
the unrestricted posterior alone; "llc" the same where only the LLC is wanted, as canonical-interp gives it; "bfloat16"
evaluates in that precision.
"""

from __future__ import annotations

import numpy as np
import torch

import patterning_fast as pf
from bench.endtoend.contestant import Arrays, Prepared, Run, contest
from bench.endtoend.workload import Workload, our_model

THINNING = 4
"""Steps between draws of the variant "thinned": about half the chains' correlation time."""

BURN_IN = 10
"""Draws after which φ has forgotten w*: more than its correlation time of 6."""

FRUGAL_BYTES = 2**25


def prepare(run: Run, workload: Workload) -> Prepared:
    model = our_model(workload)
    model.load_state_dict(workload.weights())
    posterior = pf.LocalPosterior(
        model,
        pf.losses.next_token,
        workload.data("train"),
        n_beta=workload.n_beta,
        localization=workload.localization,
    )
    components = {
        head: pf.component(model, head, masks)
        for head, masks in workload.head_masks(model).items()
        if run.variant not in ("full", "llc")
    }
    probe = workload.data("probe")

    def respond() -> tuple[Arrays, float, float]:
        chi = pf.linear_response(
            posterior,
            pf.SGLD(workload.lr),
            components=components,
            probes={"probe": probe},
            chains=run.chains,
            draws=run.draws,
            batch_size=workload.batch_size,
            loss_samples=torch.arange(workload.loss_samples),
            seed=run.seed,
            progress=False,
        )
        steps = run.chains * (run.draws + chi.attrs["burn_in"]) * chi.attrs["steps_between_draws"]
        arrays = {"components": chi["component"].values, "chain_steps": np.array(len(components) * steps)}
        return arrays | {str(name): chi[name].values for name in chi}, 0.0, 0.0

    def sample() -> tuple[Arrays, float, float]:
        statistics = pf.sample(
            posterior,
            pf.SGLD(workload.lr),
            components=components | pf.components(model, "full"),
            probes={"probe": probe[:1] if run.variant == "llc" else probe},
            chains=run.chains,
            draws=run.draws,
            burn_in=BURN_IN if run.variant == "burned-in" else 0,
            batch_size=workload.batch_size,
            steps_between_draws=THINNING if run.variant == "thinned" else 1,
            recording_bytes=FRUGAL_BYTES if run.variant == "frugal" else 2**28,
            precision="bfloat16" if run.variant == "bfloat16" else "float32",
            loss_samples=torch.arange(workload.batch_size if run.variant == "llc" else workload.loss_samples),
            groups=min(run.chains, 64),
            seed=run.seed,
            progress=False,
        )
        chi, llc, health = statistics.susceptibilities(), statistics.llc(), statistics.diagnostics()
        steps = run.chains * (run.draws + chi.attrs["burn_in"]) * chi.attrs["steps_between_draws"]
        kept = {str(name): chi[name].values for name in chi if name != "chi_drift_group"}
        arrays = kept | {
            "components": chi["component"].values,
            "llc": llc["llc"].values,
            "llc_error": llc["llc_error"].values,
            "llc_group": llc["llc_group"].values,
            "rounding": health["rounding"].values if "rounding" in health else np.array(np.nan),
            "chain_steps": np.array((len(components) + 1) * steps),
        }
        return arrays, 0.0, 0.0

    return respond if run.variant == "response" else sample


if __name__ == "__main__":
    contest(prepare)
