"""Weights go where they belong, or nowhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import patterning_fast as pf
from patterning_fast.posterior.weights import weights_for

SAMPLES, TOKENS = 5, 3


def of_tokens() -> xr.DataArray:
    """Weights 0, 1, 2, ... in the order of the data, as a plan has them."""
    sample, position = (each.ravel() for each in np.indices((SAMPLES, TOKENS)))
    coordinates = {"probe": ("token", ["data"] * 15), "sample": ("token", sample), "position": ("token", position)}
    return xr.DataArray(np.arange(15.0), dims="token", coords=coordinates)


def in_place() -> torch.Tensor:
    return torch.arange(15.0).view(SAMPLES, TOKENS)


def test_weights_of_a_plan_are_shaped_as_the_losses() -> None:
    assert torch.equal(weights_for(of_tokens(), SAMPLES, (TOKENS,)), in_place())


@given(order=st.permutations(range(15)))
@settings(max_examples=20, deadline=None)
def test_coordinates_tell_where_weights_go(order: list[int]) -> None:
    assert torch.equal(weights_for(of_tokens()[order], SAMPLES, (TOKENS,)), in_place())


def test_two_dimensions_go_by_their_coordinates_too() -> None:
    coordinates = {"position": np.arange(TOKENS)[::-1], "sample": np.arange(SAMPLES)}
    table = xr.DataArray(in_place().numpy().T[::-1], dims=("position", "sample"), coords=coordinates)
    assert torch.equal(weights_for(table, SAMPLES, (TOKENS,)), in_place())


@pytest.mark.parametrize(
    "weights",
    [
        torch.arange(5.0),
        xr.DataArray(np.arange(5.0)[::-1], dims="sample", coords={"sample": np.arange(5)[::-1]}),
        xr.DataArray(np.arange(5.0), dims="sample"),
        xr.DataArray(np.arange(5.0), dims="datum", coords={"datum": np.arange(5), "strength": 0.5}),
    ],
)
def test_weights_of_samples_hold_for_their_tokens(weights: torch.Tensor | xr.DataArray) -> None:
    assert torch.equal(weights_for(weights, SAMPLES, (TOKENS,)), torch.arange(5.0)[:, None].expand(5, TOKENS))
    assert torch.equal(weights_for(weights, SAMPLES, ()), torch.arange(5.0))


def datum(names: npt.ArrayLike) -> xr.DataArray:
    return xr.DataArray(np.arange(5.0), dims="datum", coords={"datum": names})


@pytest.mark.parametrize(
    ("weights", "loss_shape", "message"),
    [
        (of_tokens()[1:], (TOKENS,), "miss 1 of the data's 15 tokens, the first at sample 0, position 0"),
        (of_tokens()[[*range(14), 3]], (TOKENS,), "miss 1 of the data's 15 tokens, the first at sample 4, position 2"),
        (of_tokens()[[*range(15), 4]], (TOKENS,), "give more than once 1 .* at sample 1, position 1"),
        (of_tokens(), (TOKENS - 1,), "position must be numbers of the data, 0 to 1, got 2: they must come from"),
        (of_tokens(), (), r"weights of tokens do not fit the data, whose losses have shape \[5\], one a sample"),
        (of_tokens().assign_coords(sample=("token", ["a"] * 15)), (TOKENS,), "sample must be numbers of .*, got a:"),
        (
            datum(np.arange(5)[::-1]),
            (),
            "coordinate 'datum' and none that says which sample each belongs to",
        ),
        (datum(np.arange(1, 6)), (), "'datum' and none that says"),
        (datum(list("abcde")), (), "'datum' and none that says"),
        (datum(range(5)).assign_coords(domain=("datum", list("aabab"))), (), "'domain' and none that says"),
        (torch.ones(TOKENS, SAMPLES), (TOKENS,), r"shape \[3, 5\] do not fit the data, whose losses have shape \[5, 3"),
        (torch.ones(SAMPLES + 1), (TOKENS,), r"shape \[6\] do not fit"),
        (torch.tensor([1.0, 2.0, torch.nan, torch.inf, 0.0]), (), "2 weights are not finite"),
        (torch.zeros(SAMPLES), (), "the weights are all zero: that leaves no data"),
        (torch.tensor([1.0, -2.0, 0.0, 0.0, 0.0]), (), "must have a positive sum, got -1"),
    ],
)
def test_what_does_not_fit_is_refused(
    weights: torch.Tensor | xr.DataArray, loss_shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        weights_for(weights, SAMPLES, loss_shape)


def of_domains(*names: str) -> xr.DataArray:
    return xr.DataArray(np.arange(1.0, len(names) + 1), dims="domain", coords={"domain": list(names)}, attrs={"a": 1})


def test_weights_of_domains_are_those_of_their_samples() -> None:
    spread = pf.spread_weights(of_domains("code", "prose"), ["prose", "code", "prose", "prose", "code"])
    assert spread.dims == ("sample",)
    assert spread.attrs == {"a": 1}
    assert spread["domain"].values.tolist() == ["prose", "code", "prose", "prose", "code"]
    assert weights_for(spread, 5, ()).tolist() == [2, 1, 2, 2, 1]


def test_weights_of_documents_are_those_of_their_tokens() -> None:
    documents = xr.DataArray([0.5, 1.5, 7.0], dims="document", coords={"document": [30, 10, 20]})
    of = np.random.default_rng(0).choice([10, 20, 30], (SAMPLES, TOKENS))
    spread = pf.spread_weights(documents, of)
    assert spread.dims == ("token",)
    expected = torch.tensor([[{30: 0.5, 10: 1.5, 20: 7.0}[int(each)] for each in row] for row in of])
    assert torch.equal(weights_for(spread[::-1], SAMPLES, (TOKENS,)), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (of_domains("a", "b"), ["a", "c", "b"]), "these groups have data and no weight: c; weights and"),
        (lambda: (of_domains("a", "b"), ["a", "a"]), "these groups have a weight and no data: b;"),
        (lambda: (of_domains("a", "b", "a"), ["a", "b"]), "these groups are weighted twice: a;"),
        (lambda: (of_domains(*"abcdefgh"), ["x"]), "no weight: x;"),
        (lambda: (of_domains(*"abcdefgh"), ["a"]), "no data: b, c, d, e, f and 2 more;"),
        (lambda: (of_domains("a").drop_vars("domain"), ["a"]), "one dimension with a coordinate that names its groups"),
        (lambda: (of_tokens(), np.zeros((1, 1, 1))), r"groups of shape \[1, 1, 1\]"),
    ],
)  # fmt: skip
def test_groups_that_do_not_match_are_refused(make: Callable[[], tuple[xr.DataArray, list[str]]], message: str) -> None:
    weights, groups = make()
    with pytest.raises(ValueError, match=message):
        pf.spread_weights(weights, groups)
