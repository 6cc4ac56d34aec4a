"""`fused_draw` in Triton: the first programs of a launch take tiles of the totals, the others blocks of the chains."""

import torch
import triton
import triton.language as tl

from patterning_fast.ops.reference.fused_draw import STEP_ARGUMENTS
from patterning_fast.ops.triton.comoments_update import BLOCK_CHAINS, COLUMNS, ROWS, sizes, update_tile
from patterning_fast.ops.triton.langevin_step import LANES
from patterning_fast.ops.triton.per_sample_langevin_step import BLOCK, finish_kernel, step_block, workspace


@triton.jit
def kernel(
    parameters, grads, sample_weights, center, lr, n_beta, localization, noise_scale, chain_ids, seed, step, sums,
    pieces, length, center_rows, losses, observables, loss_shift, observable_shift, groups, count, loss_sum,
    observable_sum, cross, observable_square, chains, loss_count, observable_count, row_tiles, loss_tiles,
    tiles, batch: tl.constexpr, SAMPLED_FRACTION: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK_CHAINS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if program < tiles:
        update_tile(
            program, losses, observables, loss_shift, observable_shift, groups, count, loss_sum, observable_sum, cross,
            observable_square, chains, loss_count, observable_count, row_tiles, loss_tiles, ROWS, COLUMNS,
            BLOCK_CHAINS,
        )  # fmt: skip
    else:
        step_block(
            program - tiles, parameters, grads, sample_weights, center, lr, n_beta, localization, noise_scale,
            chain_ids, seed, step, sums, pieces, length, center_rows, tl.num_programs(0) - tiles, batch,
            SAMPLED_FRACTION, BLOCK,
        )  # fmt: skip


def fused_draw(*arguments: torch.Tensor) -> None:
    """The contract is that of `patterning_fast.ops.fused_draw`."""
    *step_tensors, sampled_fraction, gradient_noise_scale = arguments[:STEP_ARGUMENTS]
    totals = arguments[STEP_ARGUMENTS:]
    params, grads, _, center, *_ = step_tensors
    chains, batch, length = grads.shape
    losses, observables, _, _, _, count, *_ = totals
    pieces, sums = workspace(params)
    *counts, row_tiles, loss_tiles = sizes(losses, observables)
    tiles = count.numel() * row_tiles * (loss_tiles + row_tiles)
    kernel[(tiles + chains * pieces,)](
        *step_tensors, sums, pieces, length, center.shape[0], *totals, *counts, row_tiles, loss_tiles, tiles,
        batch=batch, SAMPLED_FRACTION=sampled_fraction, BLOCK=BLOCK, ROWS=ROWS, COLUMNS=COLUMNS,
        BLOCK_CHAINS=BLOCK_CHAINS, enable_fp_fusion=False,
    )  # fmt: skip
    finish_kernel[(chains,)](sums, gradient_noise_scale, pieces, batch=batch, LANES=LANES, enable_fp_fusion=False)
