"""How much more it takes until χ is known, and how soon chains forget, in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from patterning_fast.estimators.forgetting import ENOUGH, MISSING, forgetting
from patterning_fast.estimators.goal import MARGIN, Goal, Known, amount_to_add


def test_spearman_and_brown() -> None:
    """Twice the chains of reliability 1/2 have 2/3, four times 4/5."""
    goal = Goal(0.8, {})
    assert goal.needed("a", Known(8, 0.5, 1.0)) == pytest.approx(32)
    assert goal.needed("a", Known(16, 2 / 3, 1.0)) == pytest.approx(32)
    assert goal.reached("a", Known(32, 0.8 + 1e-12, 1.0))
    assert not goal.reached("a", Known(32, 0.79, 1.0))
    for unknown in (math.nan, -0.1, 0.0):
        assert goal.needed("a", Known(8, unknown, 1.0)) == math.inf


def test_errors_fall_with_the_root() -> None:
    goal = Goal(None, {"a": 0.5})
    assert goal.needed("a", Known(8, math.nan, 1.0)) == pytest.approx(32)
    assert goal.reached("b", Known(8, math.nan, 1.0))
    assert goal.said({"a": Known(8, 0.3, 1.0), "b": Known(8, 0.1, 9.0)}) == "a has error 1 of 0.5"


@pytest.mark.parametrize(
    ("needed", "there", "least", "most", "expected"),
    [
        (12.0, 10, 2, 1e9, math.floor(MARGIN * 12) - 10),
        (1000.0, 10, 2, 1e9, 10),  # no more than there is
        (math.inf, 10, 2, 7.9, 7),
        (10.5, 10, 2, 1.9, 0),
    ],
)
def test_what_is_added(needed: float, there: int, least: int, most: float, expected: int) -> None:
    assert amount_to_add(needed, there, least, most) == max(expected, least if expected else 0)


@pytest.mark.parametrize(("relaxation", "burn_in"), [(3.0, 12), (3.0, 6), (8.0, 8)])
def test_what_is_missing_of_an_exponential(relaxation: float, burn_in: int) -> None:
    """A response that falls off by e^(−1/relaxation) a draw: what came before the first is a geometric series."""
    fall, apart = math.exp(-1 / relaxation), 2
    part = torch.tensor([fall ** (burn_in - draw) for draw in range(burn_in)], dtype=torch.float64)
    after = torch.cat((part.flip(0).cumsum(0).flip(0)[1:], torch.zeros(1, dtype=torch.float64))) + 1.0
    shares = torch.stack((part * after, after.square()), 1)
    found = forgetting(shares, -burn_in / relaxation, apart)
    before = fall ** (burn_in + 1) / (1 - fall)
    missing = before / (1.0 + float(part.sum()) + before)
    assert found.missing == pytest.approx(missing, rel=1e-6)
    assert found.relaxation_steps == pytest.approx(relaxation * apart)
    assert found.settled == (missing <= MISSING)
    more = max(0.0, relaxation * apart * math.log(missing / ENOUGH))
    assert found.burn_in_steps == pytest.approx(burn_in * apart + more, rel=1e-6)


def test_what_says_nothing_and_what_grows() -> None:
    nothing = torch.zeros(0, 2, dtype=torch.float64)
    assert math.isnan(forgetting(nothing, -1.0, 1).missing)
    assert not forgetting(nothing, -1.0, 1).settled
    assert forgetting(torch.ones(4, 2, dtype=torch.float64), 0.5, 1).relaxation_steps == math.inf
