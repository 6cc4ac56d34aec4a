"""Results in a line, in a notebook, and in files of any format."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from torch import nn

import patterning_fast as pf
from patterning_fast.short import listed
from tests.models import language_model, tokens
from tests.truth.linear_regression import linear_regression

pytestmark = pytest.mark.filterwarnings("ignore:χ of .* is geometry of a Gaussian ball")

SAMPLING: dict[str, Any] = {"chains": 4, "draws": 4, "burn_in": 4, "batch_size": 4, "progress": False}


@pytest.fixture(scope="module")
def posterior() -> pf.LocalPosterior:
    return pf.LocalPosterior(language_model(), pf.losses.next_token, tokens(), n_beta=30.0, localization=300.0)


@pytest.fixture(scope="module")
def statistics(posterior: pf.LocalPosterior) -> pf.Statistics:
    return pf.sample(posterior, pf.SGLD(1e-3), components=pf.components(posterior.model, "heads", "full"), **SAMPLING)


def test_results_are_a_line(statistics: pf.Statistics) -> None:
    chi = statistics.susceptibilities()
    modes = pf.modes(chi, unsettled=True)
    plan = pf.invert(chi, modes[0], strength=0.3, negative_weights="clip", unsettled=True)
    said = {
        "<Statistics of 5 components (l0h0, l0h1, l1h0, l1h1 and 1 more) × 4 chains × 4 draws, 96 losses": statistics,
        f"<{len(modes)} modes of 5 components, ": modes,
        f"<Mode of singular value {modes[0].singular_value:.3g} ± ": modes[0],
        "<Plan of 96 weights from ": plan,
    }
    for begins, result in said.items():
        line = repr(result)
        assert line.startswith(begins), line
        assert len(line) < 250
    for result in (statistics, modes, plan):
        page = result._repr_html_()
        assert repr(result).split(" of ")[0][1:] in page
        assert "xr-wrap" in page


def test_attributes_are_what_every_format_holds(posterior: pf.LocalPosterior, statistics: pf.Statistics) -> None:
    """netCDF's writers take strings, numbers and arrays of them, of these very types."""
    chi = pf.linear_response(
        posterior, pf.SGLD(1e-3), components=pf.components(posterior.model, "heads", "full"), **SAMPLING
    )
    every = [chi, statistics.llc(), statistics.susceptibilities(), statistics.influence(), statistics.diagnostics()]
    for result in (*every, pf.modes(chi, unsettled=True).table):
        assert isinstance(result, xr.Dataset)
        for where in (result, *(result[name] for name in result.variables)):
            for name, value in where.attrs.items():
                plain = type(value) in (str, int, float) or isinstance(value, np.generic | np.ndarray | list)
                assert plain, (name, type(value))


def test_few_of_many_are_listed() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(list("abcdef")) == "a, b, c, d and 2 more"


@pytest.mark.parametrize("engine", ["torch", "native"])
def test_loggers_are_told_of_every_draw(posterior: pf.LocalPosterior, engine: str) -> None:
    """Of those that are kept, in order, with the means that `diagnostics` has."""
    if engine == "native":
        problem = linear_regression(1)
        posterior = problem.posterior(nn.Sequential(problem.model()))
    told: dict[int, dict[str, float]] = {}
    kept = SAMPLING | {"burn_in": 3, "draws": 5}
    found = pf.sample(posterior, pf.SGLD(1e-3), engine=engine, on_draw=told.__setitem__, **kept)  # type: ignore[arg-type]
    assert list(told) == list(range(5))
    traces = found.diagnostics()
    for draw, numbers in told.items():
        for name in ("phi", "distance"):
            expected = float(traces[name].sel(component="full").isel(draw=draw).mean())
            assert numbers[f"full/{name}"] == pytest.approx(expected, rel=1e-6)

    def broken(draw: int, numbers: dict[str, float]) -> None:
        raise OSError("no such host")

    with pytest.raises(OSError, match="no such host") as caught:
        pf.sample(posterior, pf.SGLD(1e-3), on_draw=broken, **kept)
    assert "sample: on_draw failed" in caught.value.__notes__[0]
