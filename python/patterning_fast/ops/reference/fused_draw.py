"""`fused_draw` in plain torch: its two parts, one after the other."""

from __future__ import annotations

from typing import Any

from patterning_fast.ops.reference.comoments_update import comoments_update
from patterning_fast.ops.reference.per_sample_langevin_step import per_sample_langevin_step

STEP_ARGUMENTS = 13
"""How many of the op's arguments are those of `per_sample_langevin_step`."""


def fused_draw(*arguments: Any) -> None:
    """The contract is that of `patterning_fast.ops.fused_draw`."""
    comoments_update(*arguments[STEP_ARGUMENTS:])
    per_sample_langevin_step(*arguments[:STEP_ARGUMENTS])
