"""The kernels, as torch ops: contract, checks and dispatch. Each is defined by its namesake in `ops.reference`."""

from patterning_fast.ops.comoments_update import comoments_update
from patterning_fast.ops.langevin_step import langevin_step

__all__ = ["comoments_update", "langevin_step"]
