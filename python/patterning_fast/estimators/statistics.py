"""What a run has gathered, and the estimates it gives: labelled, each with its standard error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from patterning_fast.chains.plan import ChainPlan
from patterning_fast.estimators.comoments import Comoments, Means, mean_and_error, pseudo_values


@dataclass
class ChainSeries:
    """Sums of φ and φ² of each chain over the first and the second half of its draws, float64 `[rows, 2]`."""

    draws: int
    total: Tensor
    square: Tensor

    @classmethod
    def zeros(cls, rows: int, draws: int) -> ChainSeries:
        return cls(draws, torch.zeros(rows, 2, dtype=torch.float64), torch.zeros(rows, 2, dtype=torch.float64))

    def add(self, rows: range, draw: int, phi: Tensor) -> None:
        """Add a draw of some rows; an odd number of draws leaves the middle one out."""
        half = self.draws // 2
        if draw < half or draw >= self.draws - half:
            which = int(draw >= half)
            self.total[rows.start : rows.stop, which] += phi.cpu()
            self.square[rows.start : rows.stop, which] += phi.cpu() ** 2

    def split_r_hat(self, rows: slice) -> float:
        """Split R̂ of some rows (Gelman et al., BDA3 §11.4); NaN for fewer than 4 draws."""
        half = self.draws // 2
        if half < 2:
            return float("nan")
        means = (self.total[rows] / half).flatten()
        within = ((self.square[rows].flatten() / half - means**2) * half / (half - 1)).mean()
        return float((((half - 1) / half * within + means.var()) / within).sqrt())


@dataclass
class Statistics:
    """The streaming statistics of one call of `sample`; its methods return labelled estimates with errors."""

    plan: ChainPlan
    totals: Comoments
    series: ChainSeries
    distances: Tensor
    loss_dimension: str
    """What a tracked loss belongs to: "token" or "sample"."""
    loss_coordinates: dict[str, np.ndarray]
    """Probe, sample and position of each tracked loss."""
    loss_kernel_tracked: bool
    attrs: dict[str, Any]

    @property
    def component_names(self) -> list[str]:
        return [each.name for each in self.plan.components]

    def by_group(self, component: int, statistic: Callable[[Means], Tensor]) -> Tensor:
        """Pseudo-values `[groups, ...]` of a statistic of one component's chains: their mean is the estimate."""
        groups = self.plan.groups
        return pseudo_values(statistic, self.totals.means(slice(component * groups, (component + 1) * groups)))

    def dataset(
        self, name: str, statistic: Callable[[Means], Tensor], dims: tuple[str, ...], long_name: str, units: str
    ) -> xr.Dataset:
        """A statistic of every component, with its standard error and, as `NAME_group`, its values by group."""
        variables: dict[str, list[np.ndarray]] = {name: [], f"{name}_error": [], f"{name}_group": []}
        for component in range(len(self.plan.components)):
            groups = self.by_group(component, statistic)
            value, error = mean_and_error(groups)
            for variable, each in zip(variables, (value, error, groups.float()), strict=True):
                variables[variable].append(each.cpu().numpy())
        described = {name: long_name, f"{name}_error": f"standard error of {long_name}",
                     f"{name}_group": f"jackknife values of {long_name}, by independent group of chains"}  # fmt: skip
        return xr.Dataset(
            {
                variable: (
                    ("component", *(("group",) if variable.endswith("_group") else ()), *dims),
                    np.stack(values),
                    {"long_name": described[variable], "units": units},
                )
                for variable, values in variables.items()
            },
            coords={"component": self.component_names}
            | ({name: (self.loss_dimension, each) for name, each in self.loss_coordinates.items()} if dims else {}),
            attrs=self.attrs,
        )

    def llc(self) -> xr.Dataset:
        """Local learning coefficient λ̂ = nβ(E[L] − L(w*)) by component (arXiv:2308.12108), and mu = E[φ] [nats]."""
        mean = self.dataset("mu", lambda means: means.observable[0], (), "posterior mean of L(w) - L(w*)", "nats")
        n_beta = self.attrs["n_beta"]
        scaled = self.dataset("llc", lambda means: n_beta * means.observable[0], (), "local learning coefficient", "1")
        return mean.merge(scaled)

    def susceptibilities(self) -> xr.Dataset:
        """χ_C(z) = −Cov_C[φ_C, l_z − L], `chi [component, token or sample]` in nats² (arXiv:2504.18274).

        χ > 0 at z: up-weighting z raises E[φ_C].
        """
        result = self.dataset(
            "chi",
            lambda means: variance(means) - covariance(means)[0],
            (self.loss_dimension,),
            "susceptibility -Cov[phi, l_z - L]",
            "nats^2",
        )
        result.attrs["sign"] = "chi > 0: up-weighting the token raises the posterior mean of phi = L(w) - L(w*)"
        return result

    def influence(self) -> xr.Dataset:
        """Bayesian influence −Cov_C[l_z, φ_C] on L, `[component, token or sample]` in nats² (arXiv:2509.26544)."""
        dims = (self.loss_dimension,)
        return self.dataset(
            "influence", lambda means: -covariance(means)[0], dims, "influence -Cov[l_z, phi]", "nats^2"
        )

    def loss_kernel(self) -> xr.Dataset:
        """Loss kernel Cov_C[l_i, l_j] of each component (arXiv:2509.26537) in nats².

        Raises ValueError unless `sample` was told to track it.
        """
        if not self.loss_kernel_tracked:
            raise ValueError("the loss kernel was not tracked: call sample(..., loss_kernel=True)")
        dims = (self.loss_dimension, f"other_{self.loss_dimension}")
        return self.dataset("kernel", lambda means: covariance(means)[1:], dims, "loss kernel Cov[l_i, l_j]", "nats^2")

    def diagnostics(self) -> xr.Dataset:
        """Health of the chains: φ of each, split R̂ of each component, and the distance travelled from w*."""
        chains, names = self.plan.chains, self.component_names
        shape = (len(names), chains)
        drawn = 2 * (self.series.draws // 2)
        mean = self.series.total.sum(1) / drawn if drawn else torch.full((self.plan.rows,), torch.nan)
        r_hat = [self.series.split_r_hat(slice(at * chains, (at + 1) * chains)) for at in range(len(names))]
        return xr.Dataset(
            {
                "mean_loss_shift": (("component", "chain"), mean.view(shape).numpy()),
                "distance": (("component", "chain"), self.distances.cpu().view(shape).numpy()),
                "r_hat": ("component", np.array(r_hat)),
            },
            coords={"component": names},
            attrs=self.attrs,
        )


def covariance(means: Means) -> Tensor:
    """Cov[φ, l], `[observables, losses]`."""
    return means.cross - means.observable[:, None] * means.loss


def variance(means: Means) -> Tensor:
    """Var[φ] of the first observable, L itself."""
    return means.square[0, 0] - means.observable[0] ** 2
