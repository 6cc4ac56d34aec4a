"""`intervals`: between which numbers an estimate's true value lies, from few independent groups of chains."""

from __future__ import annotations

from typing import Annotated

import scipy.stats
import xarray as xr

from patterning_fast.arguments import Name, checked
from patterning_fast.domains import Within


@checked
def intervals(
    estimates: xr.Dataset, name: Name = "chi", level: Annotated[float, Within(above=0, below=1)] = 0.95
) -> xr.Dataset:
    """Confidence intervals of an estimate, by Student's t with `degrees_of_freedom` (healthy groups − 1).

    Few groups give an uncertain standard error: at 2 groups ±2 errors hold the truth in 47 to 75 % of runs, where
    intervals of 95 % by Student's t, ±12.7 errors, hold it in 84 to 96 %. Groups of covariances are not independent
    of each other and skewed, which costs χ a few hundredths of coverage at 8 groups or fewer. Where the estimate has a
    `NAME_bias_error`, the interval is wider by it on either side.

    Args:
        estimates: what `llc()`, `susceptibilities()` or another method of `Statistics`, or `linear_response`, return.
        name: the estimate: "llc", "chi", "influence", ...
        level: share of runs whose interval holds the true value.

    Returns `lower` and `upper`, with the estimate's dimensions and units; NaN where there are no healthy groups.
    Raises ValueError for a name that has no standard error or degrees of freedom in `estimates`.
    """
    missing = {name, f"{name}_error", "degrees_of_freedom"} - set(estimates.data_vars)
    if missing:
        raise ValueError(
            f"an interval of {name!r} needs {sorted(missing)}, which the estimates lack; name an estimate with a "
            f"standard error among {sorted(str(each) for each in estimates.data_vars)}"
        )
    mean, freedom = estimates[name], estimates["degrees_of_freedom"]
    quantile = freedom.copy(data=scipy.stats.t.ppf((1 + level) / 2, freedom.where(freedom > 0)))
    half = quantile * estimates[f"{name}_error"]
    if f"{name}_bias_error" in estimates:
        half = half + estimates[f"{name}_bias_error"].fillna(0.0)
    ends = xr.Dataset({"lower": mean - half, "upper": mean + half})
    for end in ends.values():
        end.attrs = {"long_name": f"{end.name} end of the {level:.4g} interval of {name}"} | {
            key: value for key, value in mean.attrs.items() if key == "units"
        }
    return ends.assign_attrs(estimates.attrs, level=level)
