"""Whatever public functions are given, numbers come out, or an error of ours; `python -m bench.fuzz` goes on longer."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzzing import TARGETS, Case, cases, is_ours, run

HANG = 120


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A case that hangs ends the process, with what it was doing."""
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("name", TARGETS)
def test_the_call_that_cases_start_from_works(name: str) -> None:
    assert run(Case(name, {})) is None


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases())
def test_numbers_come_out_or_an_error_of_ours(case: Case) -> None:
    faulthandler.dump_traceback_later(HANG, exit=True)
    assert run(case) is None, case


def test_errors_of_others_are_told_from_ours() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        1 / 0  # noqa: B018
    assert not is_ours(caught.value)
