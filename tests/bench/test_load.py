"""The bench of load: a toy run leaves nothing behind, and its verdict tells growth from noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bench.load import COUNTS, Reading, Rounds, Size, run, verdict

import patterning_fast as pf

TOY = Size(components=6, chains=2, draws=1)


def series(growth: float, noise: float, minutes: int = 60, **changes: int) -> list[Reading]:
    """A reading a minute of a process of 500 MiB that grows by that share an hour, after a warm-up of 30 MiB."""
    generator = np.random.default_rng(0)
    readings = []
    for minute in range(minutes):
        memory = 500 * (1 + growth * minute / 60 + noise * generator.standard_normal()) + 30 * (1 - 0.5**minute)
        readings.append(Reading(60.0 * minute, memory, files=9, threads=12, left_behind=0, posteriors=0))
    readings[-1] = replace(readings[-1], **changes)
    return readings


@pytest.mark.parametrize(
    ("growth", "noise", "minutes", "expected"),
    [
        (0, 1e-3, 60, "flat"),
        (0.05, 1e-3, 60, "grows"),
        (0, 0.05, 60, "too short to tell"),
        (0, 1e-3, 4, "too short to tell"),
    ],
)
def test_verdict_on_memory(growth: float, noise: float, minutes: int, expected: str) -> None:
    found = verdict(series(growth, noise, minutes))
    assert found["memory"] == expected
    assert found["holds"] == (expected == "flat")


@pytest.mark.parametrize("name", COUNTS)
def test_verdict_on_what_is_counted(name: str) -> None:
    found = verdict(series(0, 1e-3, **{name: 13}))
    assert (found[name], found["holds"]) == ("grows", False)


def test_a_toy_run_leaves_nothing_behind() -> None:
    readings = run(TOY, minutes=0)
    assert len(readings) == 4
    found = verdict(readings)
    assert {name: found[name] for name in COUNTS} == dict.fromkeys(COUNTS, "flat")
    assert all(each.memory_mib > 10 and each.files > 2 and each.threads > 0 for each in readings)
    assert readings[-1].posteriors == readings[0].posteriors


def test_a_leak_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []

    def leaking(self: Rounds, seed: int) -> None:
        kept.append(pf.LocalPosterior(self.dense, pf.losses.squared_error, self.pairs, n_beta=1.0, localization=1.0))
        kept.append((self.folder / f"left {seed}").open("w"))

    monkeypatch.setattr(Rounds, "one", leaking)
    found = verdict(run(TOY, minutes=0))
    for each in kept[1::2]:
        each.close()
    assert (found["posteriors"], found["files"], found["left_behind"]) == ("grows", "grows", "grows")
