"""Compile every kernel for an H100 without one, and look at the instructions: `python -m tests.ops.compile_triton`.

Triton's interpreter accepts much that its compiler refuses.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from patterning_fast.ops.triton import comoments_update as comoments
from patterning_fast.ops.triton.fused_draw import fused_draw
from patterning_fast.ops.triton.langevin_step import langevin_step
from patterning_fast.ops.triton.linear_cross_entropy import linear_cross_entropy
from patterning_fast.ops.triton.normal import normal_
from patterning_fast.ops.triton.per_sample_langevin_step import per_sample_langevin_step
from patterning_fast.ops.triton.weighted_cross_entropy import weighted_cross_entropy
from tests.ops import triton_inputs as inputs


class AbsentGPU:
    """All that Triton asks of a driver before a launch."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_instead(kernel: Any, grid: tuple[int]) -> Any:
    def launch(*arguments: Any, **options: Any) -> None:
        ptx = kernel.warmup(*arguments, grid=grid, **options).asm["ptx"]
        print(f"{kernel.fn.__module__}.{kernel.fn.__name__}")
        if "cross_entropy" not in kernel.fn.__module__:
            # What the C++ rounds correctly is so here, and nothing is fused that it does not fuse.
            assert "approx" not in ptx, kernel
            assert ".full" not in ptx, kernel
            assert ".ftz" not in ptx, kernel
        assert options["enable_fp_fusion"] is False, kernel

    return launch


def main() -> None:
    triton.runtime.driver.set_active(AbsentGPU())
    triton.runtime.jit.JITFunction.__getitem__ = compile_instead
    generator = torch.Generator().manual_seed(0)
    normal_(torch.empty(2, 9), torch.arange(2), torch.tensor(0), torch.tensor(0))
    for rule in inputs.RULES:
        langevin_step(*inputs.langevin_step([9, 8], rule, True, generator).values())
    langevin_step(*inputs.langevin_step([9], "sgld", False, generator).values())
    step = inputs.per_sample_langevin_step(3, 4, 9, True, generator)
    totals = inputs.comoments_update(5, 9, 3, 2, generator)
    per_sample_langevin_step(*step.values())
    comoments.comoments_update(*totals.values())
    comoments.loss_comoments_update(*inputs.loss_comoments_update(5, 9, 2, generator).values())
    fused_draw(*step.values(), *totals.values())
    weighted_cross_entropy(*inputs.weighted_cross_entropy(5, 9, True, generator).values())
    for offsets in (None, 1, 2):
        linear_cross_entropy(*inputs.linear_cross_entropy(2, 5, 9, 17, 1, offsets, True, generator).values())
    for ones in (None, 1):  # Triton folds them in
        linear_cross_entropy(*inputs.linear_cross_entropy(1, 1, 1, 1, 1, ones, True, generator).values())


if __name__ == "__main__":
    main()
