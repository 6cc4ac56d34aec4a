"""`comoments_update` and `loss_comoments_update` in Triton: a program owns a tile of one group's totals."""

import torch
import triton
import triton.language as tl

BLOCK_CHAINS = 16
"""Chains whose products are summed in float before they go to a double: the fewest that tl.dot takes at once."""

ROWS, COLUMNS = 16, 32
"""A tile of totals. Their doubles and the operands of tl.dot must stay in registers."""


@triton.jit
def shifted(values, shift, chain, own, column, count):
    """Values about their shift `[chains, columns]`, 0 for chains that are not the group's own."""
    inside = own[:, None] & (column < count)[None, :]
    value = tl.load(values + chain[:, None].to(tl.int64) * count + column[None, :], inside, 0.0)
    return tl.where(inside, value - tl.load(shift + column, column < count, 0.0)[None, :], 0.0)


@triton.jit
def add(totals, row, row_count, column, column_count, tile):
    """totals[row, column] += tile, where those exist."""
    place = totals + row[:, None].to(tl.int64) * column_count + column[None, :]
    inside = (row < row_count)[:, None] & (column < column_count)[None, :]
    tl.store(place, tl.load(place, inside, 0.0) + tile, inside)


@triton.jit
def add_moments(
    rows, row_shift, row, row_count, columns, column_shift, column, column_count, groups, group, chains, product_totals,
    sum_totals, with_sums, BLOCK_CHAINS: tl.constexpr,
):  # fmt: skip
    """Add a group's products of rows and columns and, `with_sums`, its sums of columns. Returns the products."""
    products = tl.zeros([row.shape[0], column.shape[0]], tl.float64)
    sums = tl.zeros([1, column.shape[0]], tl.float64)
    first = 0
    while first < chains:
        chain = first + tl.arange(0, BLOCK_CHAINS)
        own = tl.load(groups + chain, chain < chains, -1) == group
        if tl.sum(own.to(tl.int32)) > 0:
            a = shifted(rows, row_shift, chain, own, row, row_count)
            b = shifted(columns, column_shift, chain, own, column, column_count)
            products += tl.dot(tl.trans(a), b, input_precision="ieee").to(tl.float64)
            sums += tl.sum(b, 0, keep_dims=True).to(tl.float64)
        first += BLOCK_CHAINS
    add(product_totals + group * row_count * column_count, row, row_count, column, column_count, products)
    if with_sums:
        add(sum_totals + group * column_count, tl.arange(0, 1), 1, column, column_count, sums)
    return products


@triton.jit
def add_count(groups, group, chains, count, BLOCK_CHAINS: tl.constexpr):
    """Add how many chains a group has."""
    draws = 0
    first = 0
    while first < chains:
        chain = first + tl.arange(0, BLOCK_CHAINS)
        draws += tl.sum((tl.load(groups + chain, chain < chains, -1) == group).to(tl.int32))
        first += BLOCK_CHAINS
    tl.store(count + group, tl.load(count + group) + draws)


@triton.jit
def update_tile(
    program, losses, observables, loss_shift, observable_shift, groups, count, loss_sum, observable_sum, cross,
    observable_square, chains, loss_count, observable_count, row_tiles, loss_tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_CHAINS: tl.constexpr,
):  # fmt: skip
    """Rows of a tile are observables; its columns losses, or observables again, in as many tiles as the rows."""
    column_tiles = loss_tiles + row_tiles
    column_tile = program % column_tiles
    row_tile = program // column_tiles % row_tiles
    group = (program // column_tiles // row_tiles).to(tl.int64)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    if column_tile < loss_tiles:
        add_moments(
            observables, observable_shift, row, observable_count,
            losses, loss_shift, column_tile * COLUMNS + tl.arange(0, COLUMNS), loss_count,
            groups, group, chains, cross, loss_sum, row_tile == 0, BLOCK_CHAINS,
        )  # fmt: skip
    else:
        add_moments(
            observables, observable_shift, row, observable_count,
            observables, observable_shift, (column_tile - loss_tiles) * ROWS + tl.arange(0, ROWS), observable_count,
            groups, group, chains, observable_square, observable_sum, row_tile == 0, BLOCK_CHAINS,
        )  # fmt: skip
    if (row_tile == 0) & (column_tile == 0):
        add_count(groups, group, chains, count, BLOCK_CHAINS)


@triton.jit
def update_kernel(
    losses, observables, loss_shift, observable_shift, groups, count, loss_sum, observable_sum, cross,
    observable_square, chains, loss_count, observable_count, row_tiles, loss_tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_CHAINS: tl.constexpr,
):  # fmt: skip
    update_tile(
        tl.program_id(0), losses, observables, loss_shift, observable_shift, groups, count, loss_sum, observable_sum,
        cross, observable_square, chains, loss_count, observable_count, row_tiles, loss_tiles,
        ROWS, COLUMNS, BLOCK_CHAINS,
    )  # fmt: skip


@triton.jit
def loss_update_kernel(
    losses, loss_shift, groups, count, loss_sum, loss_square, chains, loss_count, tiles,
    COLUMNS: tl.constexpr, BLOCK_CHAINS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row_tile, column_tile = program // tiles % tiles, program % tiles
    group = (program // tiles // tiles).to(tl.int64)
    if row_tile <= column_tile:  # the tile across the diagonal is this one turned
        row = row_tile * COLUMNS + tl.arange(0, COLUMNS)
        column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
        products = add_moments(
            losses, loss_shift, row, loss_count, losses, loss_shift, column, loss_count,
            groups, group, chains, loss_square, loss_sum, row_tile == 0, BLOCK_CHAINS,
        )  # fmt: skip
        if row_tile < column_tile:
            mirror = loss_square + group * loss_count * loss_count
            add(mirror, column, loss_count, row, loss_count, tl.trans(products))
    if (row_tile == 0) & (column_tile == 0):
        add_count(groups, group, chains, count, BLOCK_CHAINS)


def sizes(losses: torch.Tensor, observables: torch.Tensor) -> tuple[int, ...]:
    """Chains, losses, observables; tiles of observables, at least one for a group's count, and of losses."""
    (chains, n), k = losses.shape, observables.shape[1]
    return chains, n, k, max(1, triton.cdiv(k, ROWS)), triton.cdiv(n, COLUMNS)


def comoments_update(
    losses: torch.Tensor,
    observables: torch.Tensor,
    loss_shift: torch.Tensor,
    observable_shift: torch.Tensor,
    groups: torch.Tensor,
    count: torch.Tensor,
    loss_sum: torch.Tensor,
    observable_sum: torch.Tensor,
    cross: torch.Tensor,
    observable_square: torch.Tensor,
) -> None:
    """The contract is that of `patterning_fast.ops.comoments_update`."""
    *counts, row_tiles, loss_tiles = sizes(losses, observables)
    update_kernel[(count.numel() * row_tiles * (loss_tiles + row_tiles),)](
        losses, observables, loss_shift, observable_shift, groups, count, loss_sum, observable_sum, cross,
        observable_square, *counts, row_tiles, loss_tiles,
        ROWS=ROWS, COLUMNS=COLUMNS, BLOCK_CHAINS=BLOCK_CHAINS, enable_fp_fusion=False,
    )  # fmt: skip


def loss_comoments_update(
    losses: torch.Tensor,
    loss_shift: torch.Tensor,
    groups: torch.Tensor,
    count: torch.Tensor,
    loss_sum: torch.Tensor,
    loss_square: torch.Tensor,
) -> None:
    """The contract is that of `patterning_fast.ops.loss_comoments_update`."""
    chains, n = losses.shape
    tiles = max(1, triton.cdiv(n, COLUMNS))
    loss_update_kernel[(count.numel() * tiles * tiles,)](
        losses, loss_shift, groups, count, loss_sum, loss_square, chains, n, tiles,
        COLUMNS=COLUMNS, BLOCK_CHAINS=BLOCK_CHAINS, enable_fp_fusion=False,
    )  # fmt: skip
