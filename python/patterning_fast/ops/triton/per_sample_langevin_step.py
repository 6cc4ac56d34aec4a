"""`per_sample_langevin_step` in Triton: a program takes a block of one chain's parameters, over its whole batch."""

import torch
import triton
import triton.language as tl

from patterning_fast.ops.triton.langevin_step import LANES, sum_between
from patterning_fast.ops.triton.noise import normals

BLOCK = 1024
"""Parameters of a program: 8 for each thread, whose loads of a sample are on their way together."""

SUMS = 2
"""Of a block: s^2, |mean g|^2."""


@triton.jit
def sample(grads, sample_weights, row, at, length):
    """One sample's weighted gradient; `row` counts the samples of all chains."""
    g = tl.load(grads + row * length + at, at < length, 0.0).to(tl.float32)
    if sample_weights is not None:
        g = tl.load(sample_weights + row) * g
    return g


@triton.jit
def step_block(
    program, parameters, grads, sample_weights, center, lr, n_beta, localization, noise_scale, chain_ids, seed, step,
    sums, pieces, length, center_rows, programs, batch: tl.constexpr, SAMPLED_FRACTION: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    chain = (program // pieces).to(tl.int64)
    begin = (program % pieces).to(tl.int64) * BLOCK
    at = begin + tl.arange(0, BLOCK)
    inside = at < length

    # Sums are of d = g - first, which keeps the variance of a large mean exact.
    first = sample(grads, sample_weights, chain * batch, at, length)
    total = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for j in range(1, batch):
        d = sample(grads, sample_weights, chain * batch + j, at, length) - first
        total += d
        squares = tl.fma(d, d, squares)
    samples = tl.full([BLOCK], batch, tl.float32)
    shift = tl.div_rn(total, samples)
    spread = tl.fma(-shift, total, squares)
    mean = first + shift
    variance = tl.div_rn(tl.where(spread < 0.0, 0.0, spread), samples - 1.0)

    w = tl.load(parameters + chain * length + at, inside, 0.0)
    w_star = tl.load(center + tl.where(center_rows == 1, 0, chain) * length + at, inside, 0.0)
    xi = normals(tl.load(seed), tl.load(chain_ids + chain), tl.load(step), begin, BLOCK)
    eps = tl.load(lr + chain)
    beta = tl.load(n_beta + chain)
    push = 0.5 * eps.to(tl.float64) * beta.to(tl.float64)
    own_noise = (push * push * (1.0 - SAMPLED_FRACTION) / batch).to(tl.float32)
    drift = tl.fma(beta, mean, tl.load(localization + chain) * (w - w_star))
    injected = tl.fma(-own_noise, variance, eps)
    spread_of_noise = tl.load(noise_scale + chain) * tl.sqrt_rn(tl.where(injected < 0.0, 0.0, injected))
    tl.store(parameters + chain * length + at, tl.fma(spread_of_noise, xi, tl.fma(-0.5 * eps, drift, w)), inside)

    wide = mean.to(tl.float64)
    tl.store(sums + program, tl.sum(variance.to(tl.float64)))
    tl.store(sums + programs + program, tl.sum(wide * wide))


@triton.jit
def step_kernel(
    parameters, grads, sample_weights, center, lr, n_beta, localization, noise_scale, chain_ids, seed, step, sums,
    pieces, length, center_rows, batch: tl.constexpr, SAMPLED_FRACTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    step_block(
        tl.program_id(0), parameters, grads, sample_weights, center, lr, n_beta, localization, noise_scale, chain_ids,
        seed, step, sums, pieces, length, center_rows, tl.num_programs(0), batch, SAMPLED_FRACTION, BLOCK,
    )  # fmt: skip


@triton.jit
def finish_kernel(sums, gradient_noise_scale, pieces, batch: tl.constexpr, LANES: tl.constexpr):
    chain = tl.program_id(0)
    first = chain * pieces
    variance = sum_between(sums, first, first + pieces, LANES)
    squared_mean = sum_between(sums + tl.num_programs(0) * pieces, first, first + pieces, LANES)
    signal = squared_mean - variance / batch
    above = signal > 0
    tl.store(gradient_noise_scale + chain, tl.where(above, variance / tl.where(above, signal, 1.0), float("inf")))


def workspace(params: torch.Tensor) -> tuple[int, torch.Tensor]:
    """How many programs take a chain, and room for what they sum."""
    chains, length = params.shape
    pieces = triton.cdiv(length, BLOCK)
    return pieces, torch.empty(SUMS, chains * pieces, dtype=torch.float64, device=params.device)


def per_sample_langevin_step(
    params: torch.Tensor,
    grads: torch.Tensor,
    sample_weights: torch.Tensor | None,
    center: torch.Tensor,
    lr: torch.Tensor,
    n_beta: torch.Tensor,
    localization: torch.Tensor,
    noise_scale: torch.Tensor,
    chain_ids: torch.Tensor,
    seed: torch.Tensor,
    step: torch.Tensor,
    sampled_fraction: float,
    gradient_noise_scale: torch.Tensor,
) -> None:
    """The contract is that of `patterning_fast.ops.per_sample_langevin_step`."""
    chains, batch, length = grads.shape
    pieces, sums = workspace(params)
    step_kernel[(chains * pieces,)](
        params, grads, sample_weights, center, lr, n_beta, localization, noise_scale, chain_ids, seed, step, sums,
        pieces, length, center.shape[0],
        batch=batch, SAMPLED_FRACTION=sampled_fraction, BLOCK=BLOCK, enable_fp_fusion=False,
    )  # fmt: skip
    finish_kernel[(chains,)](sums, gradient_noise_scale, pieces, batch=batch, LANES=LANES, enable_fp_fusion=False)
