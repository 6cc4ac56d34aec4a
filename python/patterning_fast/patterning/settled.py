"""Whether a χ may be built on: what the chains that it is from have had to say of themselves."""

from __future__ import annotations

from typing import Any

import xarray as xr

from patterning_fast.posterior.weights import shown


def unsettled_attrs(chi: xr.Dataset, unsettled: bool) -> dict[str, Any]:
    """What the attributes of whatever is made of χ say of chains that had not settled; nothing where all had.

    χ that does not say, of other estimators or the user's own, passes. Raises ValueError for components whose chains
    had not settled, unless `unsettled` are wanted.
    """
    if "settled" not in chi:
        return {}
    names = [str(name) for name in chi["component"].values[~chi["settled"].values.astype(bool)]]
    if not names:
        return {}
    if not unsettled:
        raise ValueError(
            f"χ of {shown(names)} is from chains that had not settled: sample again with more burn_in (χ's "
            "`burn_in_steps` says how much), leave these components out with chi.sel(component=...), or pass "
            "unsettled=True to take χ as it is"
        )
    return {"unsettled": 1, "unsettled_components": ", ".join(names)}
