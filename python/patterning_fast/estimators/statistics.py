"""What a run has gathered, and the estimates it gives: labelled, each with its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from patterning_fast.arguments import Count, Whole, checked
from patterning_fast.chains.plan import ChainPlan
from patterning_fast.estimators.bias import Bias
from patterning_fast.estimators.blindness import BallMoments, correlations, ratios
from patterning_fast.estimators.comoments import Comoments, Means, pseudo_values, unbiased_covariance
from patterning_fast.estimators.goal import Known
from patterning_fast.estimators.labelled import (
    SIGN,
    Variable,
    chains_for_target,
    labelled,
    reliabilities,
    root_mean_square,
    split_half_reliability,
)
from patterning_fast.estimators.settling import Settling, settling, warn_of_unsettled
from patterning_fast.estimators.traces import ChainTraces
from patterning_fast.plain_torch import plain_torch
from patterning_fast.posterior.components import FULL
from patterning_fast.posterior.observables import PHI
from patterning_fast.short import html_of, listed


class Part(NamedTuple):
    """A part of χ: what it is called, and its value from the means of a component's and of the full chains."""

    name: str
    long_name: str
    value: Callable[[Means, Means], Tensor]


@dataclass
@checked
class Statistics:
    """The streaming statistics of one call of `sample`; its methods return labelled estimates with errors.

    Chains that diverged are left out, with the others of their bundle where totals were too large for every chain to
    have its own. A component with fewer than two groups of healthy chains has estimates of NaN. Each estimate has
    beside it, by component, `r_hat` and `ess`, those of φ in `diagnostics()`; and `blind` ± `blind_error`, the ratio of
    E[φ] to what chains at n_beta = 0 would give. Near 1 the estimate is geometry of a Gaussian ball around w*, in which
    the loss has no part. It is left out for random losses, and for samplers other than SGLD without localization.

    Chains start at w*, and what they give before they have settled is not of the posterior. So each estimate also has,
    by component, `settled`, `relaxation_steps` (in which what E[φ] lacks falls to 1/e) and `burn_in_steps` (that would
    have done), from the drift of φ and of the tracked losses; see `estimators/settling.py`. An estimate from chains
    that had not settled warns with `UnsettledWarning`.
    """

    plan: ChainPlan
    setting: Whole
    """Index among the plan's settings of the one that this is about."""
    totals: Comoments
    """By bundle of chains."""
    early: Comoments
    """Counts and losses of the first part of the draws, by bundle: those of `totals` include them."""
    units_per_bundle: Count
    traces: ChainTraces
    bias: Bias
    evaluated: list[str]
    """How the losses of each component's chains were computed."""
    loss_dimension: str
    """What a tracked loss belongs to: "token" or "sample"."""
    loss_coordinates: dict[str, np.ndarray]
    """Probe, sample and position of each tracked loss."""
    observables: list[str]
    """Names of the user's."""
    loss_kernel_tracked: bool
    attrs: dict[str, Any]
    twin: Callable[[], BallMoments] | None = None
    """What such chains give at n_beta = 0, where that can be known without running them."""

    def __repr__(self) -> str:
        names = self.component_names
        return (
            f"<Statistics of {len(names)} components ({listed(names)}) × {self.attrs['chains']} chains × "
            f"{self.attrs['draws']} draws, {len(self.loss_coordinates['sample']):,} losses tracked>"
        )

    def _repr_html_(self) -> str:
        return html_of(self, self.llc())

    @property
    def component_names(self) -> list[str]:
        return [each.name for each in self.plan.components]

    @cached_property
    def grouped(self) -> Comoments:
        """Totals by independent group of chains; a group that has lost all its chains counts no draws."""
        return self.by_groups(self.totals)

    @cached_property
    def observed(self) -> Comoments:
        """`grouped` without losses: small, however many are tracked."""
        return self.by_groups(self.totals.of_observables())

    @cached_property
    def phi_mixing(self) -> dict[str, Variable]:
        """R̂ and bulk effective sample size of φ by component, of healthy chains (Vehtari et al. 2021)."""
        healthy = []
        for at in range(len(self.plan.components)):
            rows = self.rows(at)
            healthy.append(self.traces.phi[rows][~self.traces.diverged[rows]].numpy())
        described = {
            "r_hat": ("rhat", "rank-normalised R-hat of phi over chains", "1"),
            "ess": ("ess", "bulk effective sample size of phi", "draws"),
        }
        return {
            name: (
                "component",
                np.array([chain_statistic(function, each) for each in healthy]),
                {"long_name": text, "units": units},
            )
            for name, (function, text, units) in described.items()
        }

    @cached_property
    def ball(self) -> BallMoments | None:
        """What such chains give at n_beta = 0; computed when it is first asked for."""
        return self.twin() if self.twin else None

    @cached_property
    def blindness(self) -> dict[str, Variable]:
        """Ratio of E[φ] to that at n_beta = 0, with its error, by component."""
        if self.ball is None:
            return {}
        components = range(len(self.plan.components))
        return ratios([self.observed.means(self.groups(at)).observable[:, 0] for at in components], self.ball)

    def said(self, result: xr.Dataset, sign: str) -> xr.Dataset:
        """An estimate with how its sign is to be read, and how the chains it is from have fared.

        Warns with `UnsettledWarning` where some had not settled.
        """
        warn_of_unsettled(dict(zip(self.component_names, self.settlings, strict=True)), self.attrs)
        return result.assign(self.phi_mixing | self.settling | self.blindness).assign_attrs(self.attrs, sign=SIGN[sign])

    @property
    def settling(self) -> dict[str, Variable]:
        """Whether chains had settled, and how long they take to, by component."""
        described = {
            "settled": ("whether chains had settled", "1"),
            "relaxation_steps": ("steps in which what E[phi] lacks falls to 1/e", "steps"),
            "burn_in_steps": ("steps of burn-in that would have done", "steps"),
        }
        return {
            name: (
                "component",
                np.array([getattr(each, name) for each in self.settlings]),
                {"long_name": text, "units": units},
            )
            for name, (text, units) in described.items()
        }

    @cached_property
    def settlings(self) -> list[Settling]:
        """Of each component's chains."""
        early, total = self.by_groups(self.early), self.by_groups(self.totals.of_losses())
        return [self.settling_of(component, early, total) for component in range(len(self.plan.components))]

    def settling_of(self, component: Whole, early: Comoments, total: Comoments) -> Settling:
        """Of a component's healthy chains, from losses by group."""
        here, groups, traces = self.rows(component), self.groups(component), self.traces

        def by_unit(trace: Tensor) -> Tensor:
            return trace[here].unflatten(0, (self.plan.units, self.plan.chains_per_draw))

        healthy = ~by_unit(traces.diverged).any(1)
        before, draws = early.count[groups, None], total.count[groups, None]
        early_sum, all_sum = early.loss_sum[groups], total.loss_sum[groups]
        lr, pull = self.attrs["lr"], self.attrs["localization"]
        each = torch.arange(1, traces.phi.shape[1] + 1, dtype=torch.float64)
        return settling(
            phi=by_unit(traces.phi).mean(1)[healthy].numpy(),
            square_distance=by_unit(traces.distance.double().square()).mean(1)[healthy].numpy(),
            steps=((self.attrs["burn_in"] + each) * self.attrs["steps_between_draws"]).numpy(),
            early_losses=(early_sum / before).cpu().numpy(),
            late_losses=((all_sum - early_sum) / (draws - before)).cpu().numpy(),
            early_share=float(before.sum() / draws.sum()),
            slowest=1 / (lr * pull) if self.attrs["sampler"].startswith("SGLD(") and pull > 0 else math.inf,
        )

    def by_groups(self, totals: Comoments) -> Comoments:
        """Totals by bundle, joined to totals by group."""
        bundles = self.plan.bundles(self.units_per_bundle)
        groups = bundles.unique() // (self.plan.units // self.plan.groups // self.units_per_bundle)
        groups[bundles[self.traces.diverged].unique()] = -1
        unread = torch.full((1,), -1, dtype=torch.int64)  # the last totals are of diverged chains
        groups = torch.cat((groups, unread)).to(totals.count.device)
        return totals.joined(groups, self.plan.cells * self.plan.groups)

    def groups(self, component: Whole) -> Tensor:
        """The groups of a component with healthy chains, int64; none where they are fewer than two."""
        start = (component * len(self.plan.settings) + self.setting) * self.plan.groups
        alive = start + (self.observed.count[start : start + self.plan.groups] > 0).nonzero().squeeze(1)
        return alive if len(alive) > 1 else alive[:0]

    def by_group(self, component: Whole, statistic: Callable[[Means], Tensor]) -> Tensor:
        """Pseudo-values `[healthy groups, ...]` of a statistic of a component's chains: their mean is the estimate."""
        return pseudo_values(statistic, self.grouped.means(self.groups(component)))

    def rows(self, component: Whole) -> slice:
        """The rows of a component's chains."""
        return self.plan.cell_rows(component, self.setting)

    def dataset(
        self, name: str, statistic: Callable[[Means], Tensor], dims: tuple[str, ...], long_name: str, units: str
    ) -> xr.Dataset:
        """A statistic of every component, with its standard error and, as `NAME_group`, its values by group."""

        def values(component: Whole) -> Tensor:
            return self.by_group(component, statistic)

        shape = tuple(statistic(self.grouped.means(slice(0, 1)).of(0)).shape)
        return self.labelled(name, values, shape, dims, long_name, units)

    def labelled(
        self,
        name: str,
        values: Callable[[int], Tensor],
        shape: tuple[int, ...],
        dims: tuple[str, ...],
        long_name: str,
        units: str,
    ) -> xr.Dataset:
        """Estimates, errors and values by group of all components from `values(component)` `[healthy groups, ...]`."""
        found = []
        for component in range(len(self.plan.components)):
            alive = self.groups(component)
            each = values(component) if len(alive) else torch.empty(0, *shape, dtype=torch.float64)
            found.append((alive % self.plan.groups, each))
        where = {at: (self.loss_dimension, each) for at, each in self.loss_coordinates.items()} if dims else {}
        return labelled(name, self.component_names, found, self.plan.groups, dims, where, long_name, units)

    @plain_torch()
    def llc(self) -> xr.Dataset:
        """Local learning coefficient λ̂ = nβ(E[L] − L(w*)) by component (arXiv:2308.12108), and mu = E[φ] [nats].

        Of losses it reads only their sums, which tell whether chains had settled.
        """
        return self.said(self.mean_and_llc(), "llc")

    def mean_and_llc(self) -> xr.Dataset:
        """What `llc()` gives beside how the chains have fared."""

        def phi(component: Whole) -> Tensor:
            return self.observed.means(self.groups(component)).observable[:, 0]

        def scaled(component: Whole) -> Tensor:
            return float(self.attrs["n_beta"]) * phi(component)

        mean = self.labelled("mu", phi, (), (), "posterior mean of L(w) - L(w*)", "nats")
        llc = self.labelled("llc", scaled, (), (), "local learning coefficient", "1")
        both = mean.assign(llc.data_vars)
        errors = {f"{name}_bias_error": self.bias.error(both[name], self.bias.llc) for name in ("mu", "llc")}
        return both.assign(errors)

    @plain_torch()
    def contributions(self) -> xr.Dataset:
        """What each datum adds to λ̂, dλ̂/dρ_j at ρ = 1 `[component, token or sample]`, beside what `llc()` gives.

        λ̂_ρ = nβ(E_ρ[L_ρ] − L_ρ(w*)) with w* held, so dλ̂/dρ_j = β(E[l_j] − l_j(w*)) − nβ·β·Cov(L, l_j), β = nβ/n for
        n samples or tokens (`docs/patterning.md`, Estimates). For a datum of a probe that is not in the data it is
        what adding it does, at first order of its weight.

        Raises ValueError for a weighted posterior, whose φ is not the loss that its chains feel.
        """
        if self.attrs["weighted"]:
            raise ValueError("contributions are derivatives at weights of 1: sample the posterior without weights")
        n_beta, items, dims = float(self.attrs["n_beta"]), int(self.attrs["items"]), (self.loss_dimension,)
        found = self.dataset(
            "contribution",
            lambda means: contribution(means, n_beta, items),
            dims,
            "contribution to the local learning coefficient",
            "1",
        )
        return self.said(found.assign(self.mean_and_llc().data_vars), "contribution")

    def place(self, observable: str) -> int:
        """Where an observable is among all; raises ValueError for one that was not observed."""
        names = [PHI, *self.observables]
        if observable not in names:
            raise ValueError(f"{observable!r} was not observed, but {', '.join(names)}: sample(..., observables=...)")
        return names.index(observable)

    @plain_torch()
    def observed_means(self) -> xr.Dataset:
        """Posterior mean E_C[O] `[component]` of each of the user's observables, by its name, with its error."""
        found = xr.Dataset()
        for at, name in enumerate(self.observables, 1):
            center = float(self.totals.observable_shift[at])

            def values(component: Whole, at: int = at, center: float = center) -> Tensor:
                return center + self.observed.means(self.groups(component)).observable[:, at]

            found.update(self.labelled(name, values, (), (), f"posterior mean of {name}", "1"))
            found[name].attrs["at_center"] = center
        return self.said(found, "observable")

    @plain_torch()
    def susceptibilities(self, observable: str = PHI) -> xr.Dataset:
        """Susceptibilities `[component, token or sample]` in nats² (arXiv:2504.18274), in two parts and together.

        `chi` = −Cov_C[φ, l_z − L] is what is particular to the component C: χ > 0 at z where up-weighting z raises
        E[φ]. Where "full" is among the components, `chi_drift` = E_C[φ]·(E_full[l_z − L] − E_C[l_z − L]) is what the
        two-chain form adds, which all components share but for a factor, and `chi_two_chain` is their sum,
        E_C[φL] − E_C[φ l_z] − E_C[φ]·E_full[L − l_z].

        Each has its standard error, and `_reliability`: the correlation over tokens that two such runs would have,
        from halves of the groups (Spearman–Brown). `chains_for_r_0.9` is how many chains of each component would give
        `chi` a correlation of 0.9 with its true value. `blind_correlation` is that over data of `chi` with what chains
        at n_beta = 0 give, freed of the noise of both. All three need 4 groups, and are NaN below.

        Args:
            observable: one of the user's in place of φ: χ > 0 at z where up-weighting z raises its posterior mean. In
                `chi_drift` it is taken less its value at w*.

        Raises ValueError for one that was not observed.
        """
        at = self.place(observable)
        two_chain = [
            Part(
                "chi_drift",
                f"E[{observable}] times the full chains' less the component's E[l_z - L]",
                lambda own, of_full: drift(own, of_full, at),
            ),
            Part(
                "chi_two_chain",
                "two-chain susceptibility: chi and chi_drift together",
                lambda own, of_full: particular(own, at) + drift(own, of_full, at),
            ),
        ]
        parts = [
            Part("chi", f"susceptibility -Cov[{observable}, l_z - L]", lambda own, _: particular(own, at)),
            *(two_chain if FULL in self.component_names else []),
        ]
        units = "nats^2" if observable == PHI else "nats"
        tracked = self.totals.loss_shift.numel()
        dims = (self.loss_dimension,)
        result = xr.Dataset()
        for part in parts:

            def values(component: Whole, part: Part = part) -> Tensor:
                own, of_full = self.paired(component)
                both = Means(*(torch.stack(each, 1) for each in zip(own, of_full, strict=True)))
                return pseudo_values(lambda means: part.value(means.of(0), means.of(1)), both)

            result.update(self.labelled(part.name, values, (tracked,), dims, part.long_name, units))
            reliable = [self.reliability(component, part, at) for component in range(len(self.plan.components))]
            result.update(reliabilities(part.name, part.long_name, reliable))
        healthy = [int((~self.traces.diverged[self.rows(at)]).sum()) for at in range(len(self.plan.components))]
        result["chains_for_r_0.9"] = chains_for_target(result["chi_reliability"].values, np.array(healthy))
        if self.ball is not None and observable == PHI:
            by_group = result["chi_group"].values
            result.update(correlations([each[np.isfinite(each).all(1)] for each in by_group], self.ball))
        result["chi_bias_error"] = self.bias.error(result["chi"], self.bias.chi)
        return self.said(result, "chi").assign_attrs(observable=observable)

    def known(self, component: Whole) -> Known:
        """How well χ of a component is known, by how many draws."""
        values = self.by_group(component, lambda means: particular(means, 0))
        error = root_mean_square(values.std(0) / len(values) ** 0.5) if len(values) > 1 else float("nan")
        part = Part("chi", "", lambda own, _: particular(own, 0))
        return Known(self.attrs["draws"], self.reliability(component, part, 0), error)

    def paired(self, component: Whole) -> tuple[Means, Means]:
        """Means of a component's healthy groups, and of as many of the full component's, independent of each other.

        Where "full" was not sampled they are the component's own.
        """
        full = self.component_names.index(FULL) if FULL in self.component_names else component
        own, of_full = self.groups(component), self.groups(full)
        if not len(of_full):
            return self.grouped.means(own), Means(*(each * torch.nan for each in self.grouped.means(own)))
        return self.grouped.means(own), self.grouped.means(of_full[torch.arange(len(own)) % len(of_full)])

    def reliability(self, component: Whole, part: Part, at: Whole) -> float:
        """Split-half reliability of a part of χ over tokens."""
        both = self.paired(component)
        return split_half_reliability(
            len(both[0].loss),
            lambda half: unbiased(part.name, at, *(Means(*(each[half] for each in means)) for means in both)),
        )

    @plain_torch()
    def influence(self, observable: str = PHI) -> xr.Dataset:
        """Bayesian influence −Cov_C[l_z, φ_C] on L, `[component, token or sample]` in nats² (arXiv:2509.26544).

        Or on another of the observables, by its name; raises ValueError for one that was not observed.
        """
        dims, at = (self.loss_dimension,), self.place(observable)
        name, units = f"influence -Cov[l_z, {observable}]", "nats^2" if observable == PHI else "nats"
        found = self.dataset("influence", lambda means: -covariance(means)[at], dims, name, units)
        return self.said(found, "influence").assign_attrs(observable=observable)

    @plain_torch()
    def loss_kernel(self) -> xr.Dataset:
        """Loss kernel Cov_C[l_i, l_j] of each component (arXiv:2509.26537) in nats², and its `correlation`.

        Correlations are jackknife estimates, which may lie outside [−1, 1] by their errors: nothing is clipped. That
        of a loss that never moves is NaN.

        Raises ValueError unless `sample` was told to track it.
        """
        if not self.loss_kernel_tracked:
            raise ValueError("the loss kernel was not tracked: call sample(..., loss_kernel=True)")
        dims, losses = (self.loss_dimension, f"other_{self.loss_dimension}"), 1 + len(self.observables)

        def kernel(means: Means) -> Tensor:
            return covariance(means)[losses:]

        found = self.dataset("kernel", kernel, dims, "loss kernel Cov[l_i, l_j]", "nats^2")
        name = "correlation of losses under the posterior"
        correlations = self.dataset("correlation", lambda means: correlation(kernel(means)), dims, name, "1")
        return self.said(found.assign(correlations.data_vars), "kernel")

    @plain_torch()
    def diagnostics(self) -> xr.Dataset:
        """Health of the chains, by component and chain.

        `phi` and `distance` are the traces of L(w) − L(w*) [nats] and |w − w*|; `r_hat` and `ess` are ArviZ's
        rank-normalised R̂ and bulk effective sample size of φ (Vehtari et al. 2021), of healthy chains with at least
        4 draws; `diverged` says which chains were left out. `gradient_noise_scale` is the batch size at which the
        minibatch gradient's noise equals its mean at w* (McCandlish et al. 2018), `gradient_noise` the variance that
        minibatches add to a step over the variance injected: the sampler's temperature is too high by that share; with
        `gradient_noise_correction` what it cannot take off, with `control_variates` what is left at the last draw, and
        NaN for SGNHT, which takes it out as far as it can. `curvature` is the largest of the potential at w*, n_beta
        times that of the loss and localization, by Lanczos's method on some of the data, and `step_size_bias` the share
        by which steps widen the posterior in that direction: 1/(1 − lr·curvature/4) − 1 for SGLD, infinite where chains
        cannot stay.
        `rounding` is the error of l − l(w*) that `precision="bfloat16"` makes, over l − l(w*). `observables` are traces
        of the user's, with `observable_r_hat` and `observable_ess`.
        """
        traces, names = self.traces, self.component_names
        rows = [self.rows(at) for at in range(len(names))]
        phi, distance, watched, diverged = (
            torch.stack([trace[each] for each in rows]).numpy()
            for trace in (traces.phi, traces.distance, traces.observables, traces.diverged)
        )
        square, variance = traces.gradient_noise.view(len(names), len(self.plan.settings), 2)[:, self.setting].T.numpy()
        batch = self.attrs["batch_size"]
        # The mean over units has variance / units of noise in its square.
        signal = np.maximum(square - variance / self.plan.units, 0.0)
        by_chain, by_component = ("component", "chain"), ("component",)
        of_observables = ("component", "observable")
        with np.errstate(divide="ignore", invalid="ignore"):
            noise_scale = batch * variance / signal
        return xr.Dataset(
            {
                "phi": ((*by_chain, "draw"), phi, {"long_name": "L(w) - L(w*)", "units": "nats"}),
                "distance": ((*by_chain, "draw"), distance, {"long_name": "|w - w*|", "units": "1"}),
                "diverged": (by_chain, diverged, {"long_name": "frozen and left out", "units": "1"}),
                **self.phi_mixing,
                "observables": ((*by_chain, "observable", "draw"), watched, {"long_name": "the user's observables"}),
                "observable_r_hat": (of_observables, self.mixing("rhat", watched, diverged)),
                "observable_ess": (of_observables, self.mixing("ess", watched, diverged)),
                "gradient_noise_scale": (by_component, noise_scale, {"units": "samples"}),
                "gradient_noise": (by_component, self.bias.gradient_noise, {"units": "1"}),
                "curvature": (by_component, self.bias.curvature, {"long_name": "largest of the potential at w*"}),
                "step_size_bias": (by_component, self.bias.step_size, {"units": "1"}),
                "rounding": (by_component, np.array([float(traces.rounding[each].mean()) for each in rows])),
                "evaluated": (
                    by_component,
                    np.array(self.evaluated),
                    {"long_name": "what its chains run of the model"},
                ),
            },
            coords={"component": names, "observable": self.observables},
            attrs=self.attrs,
        )

    @plain_torch()
    def to_datatree(self) -> xr.DataTree:
        """The traces in the groups that ArviZ takes, variables `[chain, draw, component]`.

        `/posterior` has phi = L(w) − L(w*) [nats] and the user's observables by name; `/sample_stats` has `distance`,
        |w − w*|, and `diverging` `[chain, draw]`, where a chain of any component has diverged. What a chain had after
        it diverged is NaN, and so is ArviZ's R̂ of its component; `diagnostics()` leaves such chains out.
        """
        health = self.diagnostics()
        health = health.assign_coords(chain=np.arange(health.sizes["chain"]), draw=np.arange(health.sizes["draw"]))
        watched = {name: health["observables"].sel(observable=name, drop=True) for name in self.observables}
        posterior = xr.Dataset({PHI: health["phi"], **watched}, attrs=self.attrs)
        diverging = health["phi"].isnull().any("component").assign_attrs(long_name="a chain has diverged", units="1")
        stats = xr.Dataset({"distance": health["distance"], "diverging": diverging}, attrs=self.attrs)
        order = ("chain", "draw", ...)
        return xr.DataTree.from_dict(
            {"posterior": posterior.transpose(*order), "sample_stats": stats.transpose(*order)}
        )

    def mixing(self, name: str, watched: np.ndarray, diverged: np.ndarray) -> np.ndarray:
        """An ArviZ statistic of traces `[components, chains, observables, draws]`, `[components, observables]`."""
        found = [
            [chain_statistic(name, each[~lost, at]) for at in range(len(self.observables))]
            for each, lost in zip(watched, diverged, strict=True)
        ]
        return np.array(found).reshape(len(found), len(self.observables))


def chain_statistic(name: str, traces: np.ndarray) -> float:
    """An ArviZ statistic of traces `[chains, draws]`; NaN where there is too little of them."""
    from arviz_stats.base.array import array_stats  # only here: it takes as long to import as all the rest

    if len(traces) < 2 or traces.shape[1] < 4:
        return float("nan")
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN for what never changes
        return float(getattr(array_stats, name)(traces, chain_axis=0, draw_axis=1))


def covariance(means: Means) -> Tensor:
    """Cov[φ, l], `[observables, losses]`."""
    return means.cross - means.observable[:, None] * means.loss


def correlation(kernel: Tensor) -> Tensor:
    """Correlations, of covariances `[losses, losses]`."""
    deviation = kernel.diagonal().sqrt()
    return kernel / (deviation[:, None] * deviation)


def contribution(means: Means, n_beta: float, items: int) -> Tensor:
    """dλ̂/dρ_j = β(E[l_j] − l_j(w*)) − nβ·β·Cov[φ, l_j] with β = nβ/n; sums are about the losses at w*."""
    return n_beta / items * (means.loss - n_beta * covariance(means)[0])


def particular(means: Means, at: Whole) -> Tensor:
    """−Cov[O, l − L] of the observable at a place; the first is L itself."""
    with_loss = means.square[at, 0] - means.observable[at] * means.observable[0]
    return with_loss - covariance(means)[at]


def drift(own: Means, of_full: Means, at: Whole) -> Tensor:
    """E_C[O]·(E_full[l − L] − E_C[l − L]); sums are about the losses at w*, which cancel."""
    return own.observable[at] * ((of_full.loss - of_full.observable[0]) - (own.loss - own.observable[0]))


def unbiased(part: str, at: Whole, own: Means, of_full: Means) -> Tensor:
    """A part of χ from a few groups, free of the bias of products of a group's means with themselves; up to a constant.

    What is the same for all tokens does not matter to correlations over tokens.
    """
    chi = -unbiased_covariance(own)[at]
    apart = (of_full.loss - of_full.observable[:, :1]) - (own.loss - own.observable[:, :1])
    number, phi = len(own.loss), own.observable[:, at]
    between = (phi.sum() * apart.sum(0) - (phi[:, None] * apart).sum(0)) / (number * (number - 1))
    return {"chi": chi, "chi_drift": between, "chi_two_chain": chi + between}[part]
