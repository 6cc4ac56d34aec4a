"""Runs that no memory would hold are refused before anything is allocated."""

from __future__ import annotations

import os
from collections.abc import Mapping


def check_fits(wanted: Mapping[str, int]) -> None:
    """Raise ValueError where bytes, by what they depend on, are more than this machine has."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if sum(wanted.values()) > memory:
        most = max(wanted, key=lambda name: wanted[name])
        raise ValueError(
            f"{most} must be small enough for the memory of {memory / 2**30:.0f} GiB, and would take "
            f"{wanted[most] / 2**30:.3g} GiB; lower {most}"
        )
