"""`langevin_step` in Triton: a program takes a block of one chain's row; a second kernel adds up what they summed."""

import torch
import triton
import triton.language as tl

from patterning_fast.ops.triton.noise import normals

BLOCK = 512
"""Parameters of a program: the four of one counter for each thread, so few registers that programs fill an SM."""

LANES = 128
"""Blocks whose sums are added side by side: one for each thread of four warps."""

SUMS = 5
"""Of a block: |g|^2, |w - w*|^2, <g, w - w*>, how many new w are not finite, |p|^2."""


@triton.jit
def first_program(row_starts, chain, BLOCK: tl.constexpr):
    """Which program takes the first block of a chain's row.

    A row gets one program more than the whole blocks between its ends: enough wherever it starts, and known without
    a sum over the rows before it.
    """
    return tl.load(row_starts + chain) // BLOCK + chain


@triton.jit
def chain_of(program, row_starts, chains, BLOCK: tl.constexpr):
    """The last chain whose first program is not after this one, by bisection."""
    low = program * 0
    high = low + chains
    while high - low > 1:
        middle = (low + high) // 2
        if first_program(row_starts, middle, BLOCK) <= program:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def power(base, exponent):
    """By squaring, as the C++ does it."""
    result = base * 0.0 + 1.0
    while exponent > 0:
        result = tl.where(exponent & 1 == 1, result * base, result)
        base = base * base
        exponent = exponent >> 1
    return result


@triton.jit
def to_bfloat16(value):
    """To the nearest, ties to even; in integers, as Triton's interpreter would cut the last bits off."""
    bits = value.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return tl.where(value == value, rounded, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def step_kernel(
    parameters, grads, center, row_starts, center_starts, lr, n_beta, localization, noise_scale, chain_ids, seed,
    step, memory, thermostat, box, shadow, sums, chains, total, center_count,
    RULE: tl.constexpr, CONSTANT: tl.constexpr, STABILITY: tl.constexpr, STATISTICS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    chain = chain_of(program, row_starts, chains, BLOCK)
    start = tl.load(row_starts + chain)
    first = (program - first_program(row_starts, chain, BLOCK)) * BLOCK
    at = first + tl.arange(0, BLOCK)
    place = start + at
    # Whatever row_starts says, nothing outside the tensors is touched.
    inside = (place < tl.load(row_starts + chain + 1)) & (place >= 0) & (place < total)
    center_place = tl.load(center_starts + chain) + at
    centered = inside & (center_place >= 0) & (center_place < center_count)

    w = tl.load(parameters + place, inside, 0.0)
    g = tl.load(grads + place, inside, 0.0).to(tl.float32)
    w_star = tl.load(center + center_place, centered, 0.0)
    xi = normals(tl.load(seed), tl.load(chain_ids + chain), tl.load(step), first, BLOCK)
    eps = tl.load(lr + chain)
    noise = tl.load(noise_scale + chain)
    distance = w - w_star
    drift = tl.fma(g, tl.load(n_beta + chain), tl.load(localization + chain) * distance)

    if STATISTICS:
        wide_g, wide_distance = g.to(tl.float64), distance.to(tl.float64)
        tl.store(sums + program, tl.sum(wide_g * wide_g))
        tl.store(sums + tl.num_programs(0) + program, tl.sum(wide_distance * wide_distance))
        tl.store(sums + 2 * tl.num_programs(0) + program, tl.sum(wide_g * wide_distance))

    if RULE == "sgld":
        w = tl.fma(xi, noise * tl.sqrt_rn(eps), tl.fma(drift, -0.5 * eps, w))
    elif RULE == "rmsprop" or RULE == "rmsprop_bias_corrected":
        v = tl.load(memory + place, inside, 0.0)
        v = tl.fma((1.0 - CONSTANT) * g, g, CONSTANT * v)
        tl.store(memory + place, v, inside)
        if RULE == "rmsprop_bias_corrected":
            decayed = power(tl.full((), CONSTANT, tl.float64), tl.load(step) + 1)
            v = v * (1.0 / (1.0 - decayed)).to(tl.float32)
        own = tl.div_rn(eps, tl.sqrt_rn(v) + STABILITY)
        w = tl.fma(noise * tl.sqrt_rn(own), xi, tl.fma(-0.5 * own, drift, w))
    else:
        keep = 1.0 - CONSTANT if RULE == "sghmc" else tl.fma(-tl.load(thermostat + chain), eps, 1.0)
        p = tl.load(memory + place, inside, 0.0)
        p = tl.fma(xi, noise * tl.sqrt_rn(2.0 * CONSTANT * eps), tl.fma(drift, -eps, keep * p))
        tl.store(memory + place, p, inside)
        if RULE == "sghmc":
            w = w + p
        else:
            w = tl.fma(p, eps, w)
            tl.store(sums + 4 * tl.num_programs(0) + program, tl.sum(tl.where(inside, p, 0.0).to(tl.float64) * p))

    if box is not None:
        width = tl.load(box + chain)
        low, high = w_star - width, w_star + width
        w = tl.where(w < low, low, w)  # unlike tl.maximum, keeps NaN
        w = tl.where(w > high, high, w)
    if STATISTICS:
        broken = inside & ((w.to(tl.int32, bitcast=True) & 0x7F800000) == 0x7F800000)
        tl.store(sums + 3 * tl.num_programs(0) + program, tl.sum(broken.to(tl.float64)))
    tl.store(parameters + place, w, inside)
    tl.store(grads + place, tl.zeros([BLOCK], grads.dtype.element_ty), inside)
    if shadow is not None:
        tl.store(shadow + place, to_bfloat16(w), inside)


@triton.jit
def sum_between(numbers, first, last, LANES: tl.constexpr):
    """Their sum, always in the same order."""
    lanes = tl.zeros([LANES], tl.float64)
    while first < last:
        at = first + tl.arange(0, LANES)
        lanes += tl.load(numbers + at, at < last, 0.0)
        first += LANES
    return tl.sum(lanes)


@triton.jit
def finish_kernel(
    sums, row_starts, lr, thermostat, statistics, programs,
    STATISTICS: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    chain = tl.program_id(0)
    chains = tl.num_programs(0)
    first = tl.maximum(first_program(row_starts, chain, BLOCK), 0)
    last = tl.minimum(first_program(row_starts, chain + 1, BLOCK), programs)
    if STATISTICS:
        for row in tl.static_range(3):
            tl.store(statistics + row * chains + chain, sum_between(sums + row * programs, first, last, LANES))
        broken = sum_between(sums + 3 * programs, first, last, LANES)
        tl.store(statistics + 3 * chains + chain, (broken == 0).to(tl.float64))
    if thermostat is not None:
        length = tl.load(row_starts + chain + 1) - tl.load(row_starts + chain)
        if length > 0:
            kinetic = sum_between(sums + 4 * programs, first, last, LANES) / length.to(tl.float64)
            before = tl.load(thermostat + chain).to(tl.float64)
            tl.store(thermostat + chain, (before + tl.load(lr + chain).to(tl.float64) * (kinetic - 1.0)).to(tl.float32))


def langevin_step(
    params: torch.Tensor,
    grads: torch.Tensor,
    center: torch.Tensor,
    row_starts: torch.Tensor,
    center_starts: torch.Tensor,
    lr: torch.Tensor,
    n_beta: torch.Tensor,
    localization: torch.Tensor,
    noise_scale: torch.Tensor,
    chain_ids: torch.Tensor,
    seed: torch.Tensor,
    step: torch.Tensor,
    rule: str,
    constants: list[float],
    memory: torch.Tensor | None,
    thermostat: torch.Tensor | None,
    box: torch.Tensor | None,
    shadow: torch.Tensor | None,
    statistics: torch.Tensor | None,
) -> None:
    """The contract is that of `patterning_fast.ops.langevin_step`, on flat rows."""
    chains, total = center_starts.numel(), params.numel()
    programs = total // BLOCK + chains
    constant, stability = (*constants, 0.0, 0.0)[:2]
    summed = statistics is not None or thermostat is not None
    sums = torch.empty(SUMS, programs, dtype=torch.float64, device=params.device) if summed else None
    options = {"STATISTICS": statistics is not None, "BLOCK": BLOCK, "enable_fp_fusion": False}
    step_kernel[(programs if chains else 0,)](
        params, grads, center, row_starts, center_starts, lr, n_beta, localization, noise_scale, chain_ids, seed, step,
        memory, thermostat, box, shadow, sums, chains, total, center.numel(),
        RULE=rule, CONSTANT=constant, STABILITY=stability, **options,
    )  # fmt: skip
    if summed:
        finish_kernel[(chains,)](sums, row_starts, lr, thermostat, statistics, programs, LANES=LANES, **options)
