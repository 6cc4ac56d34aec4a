"""`linear_cross_entropy` in Triton: logits are made in tiles, three times over, and never held."""

import torch
import triton
import triton.language as tl

from patterning_fast.ops.triton.weighted_cross_entropy import LOWEST, gradient_of, loss_of, widen

TOKENS, VOCABULARY, WIDTH = 64, 64, 32
"""A tile of logits, and the depth of its products."""

WARPS = 8
"""With four, the operands of tl.dot do not fit in registers."""


@triton.jit
def tile(matrix, row, rows, column, columns):
    """matrix[row, column], 0 outside."""
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(matrix + row[:, None].to(tl.int64) * columns + column[None, :], inside, 0.0)


@triton.jit
def logits_tile(
    hidden, token, tokens, unembedding, word, vocabulary, offset, offset_scale, width: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Logits `[token, word]`, 0 outside."""
    logits = tl.zeros([token.shape[0], word.shape[0]], tl.float32)
    if offset is not None:
        scale = tl.load(offset_scale + token, token < tokens, 0.0)
        logits = scale[:, None] * tile(offset, token, tokens, word, vocabulary)
    for first in range(0, width, WIDTH):
        depth = first + tl.arange(0, WIDTH)
        h = tile(hidden, token, tokens, depth, width)
        u = tile(unembedding, word, vocabulary, depth, width)
        logits = tl.dot(h, tl.trans(u), logits, input_precision="ieee")
    return logits


@triton.jit
def gradient_tile(
    hidden, labels, weights, peaks, totals, token, tokens, unembedding, word, vocabulary, offset, offset_scale,
    width: tl.constexpr, ignore_index, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradient of the logits `[token, word]`, 0 outside."""
    inside = token < tokens
    label = tl.load(labels + token, inside, ignore_index)
    weight = tl.full(token.shape, 1.0, tl.float32)
    if weights is not None:
        weight = tl.load(weights + token, inside, 0.0)
    peak, total = tl.load(peaks + token, inside, 0.0), tl.load(totals + token, inside, 1.0)
    logits = logits_tile(
        hidden, token, tokens, unembedding, word, vocabulary, offset, offset_scale, width, WIDTH
    )  # fmt: skip
    p = tl.exp(tl.where((word < vocabulary)[None, :], logits, float("-inf")) - peak[:, None]) / total[:, None]
    hit = word[None, :] == label[:, None]
    return gradient_of(label[:, None], ignore_index, vocabulary, weight[:, None], p, hit)


@triton.jit
def add_product(a, b, row, rows, width: tl.constexpr, out, b_row, b_rows, WIDTH: tl.constexpr):
    """out[row] += a @ b[b_row]; `out` belongs to this program alone."""
    tl.debug_barrier()  # the last sum may have been stored by another thread
    for first in range(0, width, WIDTH):
        column = first + tl.arange(0, WIDTH)
        sums = tl.dot(a, tile(b, b_row, b_rows, column, width), tile(out, row, rows, column, width), "ieee")
        inside = (row < rows)[:, None] & (column < width)[None, :]
        tl.store(out + row[:, None].to(tl.int64) * width + column[None, :], sums, inside)


@triton.jit
def loss_kernel(
    hidden, unembedding, labels, offset, offset_scale, losses, peaks, totals, ignore_index, tokens, unembeddings,
    offsets, pieces, width: tl.constexpr, vocabulary: tl.constexpr, LOWEST: tl.constexpr, TOKENS: tl.constexpr,
    VOCABULARY: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    chain = (program // pieces).to(tl.int64)
    token = program % pieces * TOKENS + tl.arange(0, TOKENS)
    at = chain * tokens + token
    inside = token < tokens
    label = tl.load(labels + at, inside, ignore_index)
    peak = tl.full([TOKENS], LOWEST, tl.float32)
    total = tl.zeros([TOKENS], tl.float32)
    target = tl.zeros([TOKENS], tl.float32)
    hidden += chain * tokens * width
    unembedding += tl.where(unembeddings == 1, 0, chain) * vocabulary * width
    if offset is not None:
        offset += tl.where(offsets == 1, 0, chain) * tokens * vocabulary
        offset_scale += chain * tokens
    for first in range(0, vocabulary, VOCABULARY):
        word = first + tl.arange(0, VOCABULARY)
        logits = logits_tile(
            hidden, token, tokens, unembedding, word, vocabulary, offset, offset_scale, width, WIDTH
        )  # fmt: skip
        peak, total = widen(peak, total, tl.where((word < vocabulary)[None, :], logits, float("-inf")))
        target += tl.sum(tl.where(word[None, :] == label[:, None], logits, 0.0), 1)
    tl.store(losses + at, loss_of(label, ignore_index, vocabulary, peak, total, target), inside)
    tl.store(peaks + at, peak, inside)
    tl.store(totals + at, total, inside)


@triton.jit
def grad_tokens_kernel(
    hidden, unembedding, labels, weights, offset, offset_scale, peaks, totals, grad_hidden, grad_offset_scale,
    ignore_index, tokens, unembeddings, offsets, pieces, width: tl.constexpr, vocabulary: tl.constexpr,
    TOKENS: tl.constexpr, VOCABULARY: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    chain = (program // pieces).to(tl.int64)
    token = program % pieces * TOKENS + tl.arange(0, TOKENS)
    before = chain * tokens
    if weights is not None:
        weights += before
    unembedding += tl.where(unembeddings == 1, 0, chain) * vocabulary * width
    if offset is not None:
        offset += tl.where(offsets == 1, 0, chain) * tokens * vocabulary
        offset_scale += chain * tokens
    of_scale = tl.zeros([TOKENS], tl.float32)
    for first in range(0, vocabulary, VOCABULARY):
        word = first + tl.arange(0, VOCABULARY)
        gradient = gradient_tile(
            hidden + before * width, labels + before, weights, peaks + before, totals + before, token, tokens,
            unembedding, word, vocabulary, offset, offset_scale, width, ignore_index, WIDTH,
        )  # fmt: skip
        if grad_hidden is not None:
            add_product(
                gradient, unembedding, token, tokens, width, grad_hidden + before * width, word, vocabulary, WIDTH
            )  # fmt: skip
        if grad_offset_scale is not None:
            of_scale += tl.sum(gradient * tile(offset, token, tokens, word, vocabulary), 1)
    if grad_offset_scale is not None:
        tl.store(grad_offset_scale + before + token, of_scale, token < tokens)


@triton.jit
def grad_unembedding_kernel(
    hidden, unembedding, labels, weights, offset, offset_scale, peaks, totals, grad_unembedding, ignore_index, chains,
    tokens, offsets, pieces, width: tl.constexpr, vocabulary: tl.constexpr, TOKENS: tl.constexpr,
    VOCABULARY: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """`chains` of each unembedding, whose gradients are added up in their order."""
    program = tl.program_id(0)
    which = (program // pieces).to(tl.int64)
    word = program % pieces * VOCABULARY + tl.arange(0, VOCABULARY)
    unembedding += which * vocabulary * width
    grad_unembedding += which * vocabulary * width
    chain = which * chains
    while chain < (which + 1) * chains:
        before = chain * tokens
        own_weights = weights
        if weights is not None:
            own_weights = weights + before
        own_offset = offset
        own_scale = offset_scale
        if offset is not None:
            own_offset = offset + tl.where(offsets == 1, 0, chain) * tokens * vocabulary
            own_scale = offset_scale + before
        first = 0
        while first < tokens:
            token = first + tl.arange(0, TOKENS)
            gradient = gradient_tile(
                hidden + before * width, labels + before, own_weights, peaks + before, totals + before, token, tokens,
                unembedding, word, vocabulary, own_offset, own_scale, width, ignore_index, WIDTH,
            )  # fmt: skip
            add_product(
                tl.trans(gradient), hidden + before * width, word, vocabulary, width, grad_unembedding, token, tokens,
                WIDTH,
            )  # fmt: skip
            first += TOKENS
        chain += 1


def linear_cross_entropy(
    hidden: torch.Tensor,
    unembedding: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None,
    offset: torch.Tensor | None,
    offset_scale: torch.Tensor | None,
    ignore_index: int,
    losses: torch.Tensor,
    grad_hidden: torch.Tensor | None,
    grad_unembedding: torch.Tensor | None,
    grad_offset_scale: torch.Tensor | None,
) -> None:
    """The contract is that of csrc's LinearCrossEntropy; a label that does not exist gives NaN."""
    (chains, tokens, width), (unembeddings, vocabulary, _) = hidden.shape, unembedding.shape
    offsets = 0 if offset is None else offset.shape[0]
    token_pieces, word_pieces = triton.cdiv(tokens, TOKENS), triton.cdiv(vocabulary, VOCABULARY)
    peaks, totals = torch.empty_like(losses), torch.empty_like(losses)
    blocks = {"TOKENS": TOKENS, "VOCABULARY": VOCABULARY, "WIDTH": WIDTH}
    options = {"width": width, "vocabulary": vocabulary, **blocks, "num_warps": WARPS, "enable_fp_fusion": False}
    loss_kernel[(chains * token_pieces,)](
        hidden, unembedding, labels, offset, offset_scale, losses, peaks, totals, ignore_index, tokens, unembeddings,
        offsets, token_pieces, LOWEST=LOWEST, **options,
    )  # fmt: skip
    if grad_hidden is not None or grad_offset_scale is not None:
        if grad_hidden is not None:
            grad_hidden.zero_()
        grad_tokens_kernel[(chains * token_pieces,)](
            hidden, unembedding, labels, weights, offset, offset_scale, peaks, totals, grad_hidden, grad_offset_scale,
            ignore_index, tokens, unembeddings, offsets, token_pieces, **options,
        )  # fmt: skip
    if grad_unembedding is not None:
        grad_unembedding.zero_()
        grad_unembedding_kernel[(unembeddings * word_pieces,)](
            hidden, unembedding, labels, weights, offset, offset_scale, peaks, totals, grad_unembedding, ignore_index,
            chains // max(1, unembeddings), tokens, offsets, word_pieces, **options,
        )  # fmt: skip
