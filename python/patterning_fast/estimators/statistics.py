"""What a run has gathered, and the estimates it gives: labelled, each with its standard error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from patterning_fast.chains.plan import ChainPlan
from patterning_fast.estimators.comoments import Comoments, Means, jackknife

if TYPE_CHECKING:
    from patterning_fast.engine.evaluation import EvaluationSet


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
    probes: list[EvaluationSet]
    loss_kernel_tracked: bool
    attrs: dict[str, object]

    @property
    def component_names(self) -> list[str]:
        return [each.name for each in self.plan.components]

    def estimate(self, component: int, statistic: Callable[[Means], Tensor]) -> tuple[Tensor, Tensor]:
        """A statistic of one component's chains and its standard error."""
        groups = self.plan.groups
        return jackknife(statistic, self.totals.means(slice(component * groups, (component + 1) * groups)))

    def by_component(self, statistic: Callable[[Means], Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """A statistic and its standard error for every component, `[component, ...]`."""
        pairs = [self.estimate(index, statistic) for index in range(len(self.plan.components))]
        value, error = (torch.stack(each).cpu().numpy() for each in zip(*pairs, strict=True))
        return value, error

    def dataset(self, name: str, statistic: Callable[[Means], Tensor], long_name: str, units: str) -> xr.Dataset:
        """The statistic by component and, where it has that dimension, by tracked loss."""
        value, error = self.by_component(statistic)
        per_loss = value.ndim == 2
        dims = ("component", self.loss_dimension) if per_loss else ("component",)
        result = xr.Dataset(
            {name: (dims, value), f"{name}_error": (dims, error)},
            coords={"component": self.component_names} | (self.loss_coordinates() if per_loss else {}),
            attrs=self.attrs,
        )
        result[name].attrs = {"long_name": long_name, "units": units}
        result[f"{name}_error"].attrs = {"long_name": f"standard error of {long_name}", "units": units}
        return result

    def llc(self) -> xr.Dataset:
        """Local learning coefficient λ̂ = nβ(E[L] − L(w*)) of each component (arXiv:2308.12108), with mu = E[φ] [nats]."""
        n_beta = float(str(self.attrs["n_beta"]))
        result = self.dataset("mu", lambda means: means.observable[0], "posterior mean of L(w) - L(w*)", "nats")
        result["llc"] = n_beta * result["mu"]
        result["llc_error"] = n_beta * result["mu_error"]
        result["llc"].attrs = {"long_name": "local learning coefficient of the restricted posterior", "units": "1"}
        result["llc_error"].attrs = {"long_name": "standard error of the learning coefficient", "units": "1"}
        return result

    def susceptibilities(self) -> xr.Dataset:
        """χ_C(z) = −Cov_C[φ_C, l_z − L], `chi [component, token or sample]` in nats² (arXiv:2504.18274, eq. 5).

        χ > 0 at z: up-weighting z raises E[φ_C].
        """
        result = self.dataset(
            "chi",
            lambda means: variance(means) - covariance(means)[0],
            "susceptibility -Cov[phi, l_z - L]",
            "nats^2",
        )
        result.attrs["sign"] = "chi > 0: up-weighting the token raises the posterior mean of phi = L(w) - L(w*)"
        return result

    def influence(self) -> xr.Dataset:
        """Bayesian influence −Cov_C[l_z, φ_C] on L, `[component, token or sample]` in nats² (arXiv:2509.26544)."""
        return self.dataset("influence", lambda means: -covariance(means)[0], "Bayesian influence -Cov[l_z, phi]", "nats^2")

    def loss_kernel(self) -> xr.Dataset:
        """Loss kernel Cov_C[l_i, l_j] of each component (arXiv:2509.26537), `[component, loss, other]` in nats².

        Raises ValueError unless `sample` was told to track it.
        """
        if not self.loss_kernel_tracked:
            raise ValueError("the loss kernel was not tracked: call sample(..., loss_kernel=True)")
        value, error = self.by_component(lambda means: covariance(means)[1:])
        dims = ("component", self.loss_dimension, f"other_{self.loss_dimension}")
        return xr.Dataset(
            {"kernel": (dims, value), "kernel_error": (dims, error)},
            coords={"component": self.component_names} | self.loss_coordinates(),
            attrs=self.attrs,
        )

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

    @property
    def loss_dimension(self) -> str:
        """What a tracked loss belongs to: "token" or "sample"."""
        return "token" if any(each.loss_shape for each in self.probes) else "sample"

    def loss_coordinates(self) -> dict[str, tuple[str, np.ndarray]]:
        """Coordinates of the tracked losses: probe, sample and position of each."""
        tables = [each.coordinates() for each in self.probes]
        return {
            name: (self.loss_dimension, np.concatenate([table[name] for table in tables])) for name in tables[0]
        }


def covariance(means: Means) -> Tensor:
    """Cov[φ, l], `[observables, losses]`."""
    return means.cross - means.observable[:, None] * means.loss


def variance(means: Means) -> Tensor:
    """Var[φ] of the first observable, L itself."""
    return means.square[0, 0] - means.observable[0] ** 2
