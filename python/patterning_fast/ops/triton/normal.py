"""`normal_` in Triton."""

import torch
import triton
import triton.language as tl

from patterning_fast.ops.triton.noise import normals

BLOCK = 1024
"""Numbers of a program: 8 for each thread, two counters whose sums hide each other's latency."""


@triton.jit
def kernel(out, chain_ids, seed, step, length, pieces, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    chain = program // pieces
    first = (program % pieces).to(tl.int64) * BLOCK
    xi = normals(tl.load(seed), tl.load(chain_ids + chain), tl.load(step), first, BLOCK)
    at = first + tl.arange(0, BLOCK)
    tl.store(out + chain.to(tl.int64) * length + at, xi, at < length)


def normal_(out: torch.Tensor, chain_ids: torch.Tensor, seed: torch.Tensor, step: torch.Tensor) -> None:
    """The contract is that of `patterning_fast.ops.normal_`."""
    chains, length = out.shape
    pieces = triton.cdiv(length, BLOCK)
    kernel[(chains * pieces,)](out, chain_ids, seed, step, length, pieces, BLOCK=BLOCK, enable_fp_fusion=False)
