"""`weighted_cross_entropy` in Triton: a program takes a token, over its whole vocabulary twice."""

import torch
import triton
import triton.language as tl

BLOCK = 2048
"""Logits at a time: 16 for each thread of four warps, so that loads are wide and long."""

LOWEST = -3.4028234663852886e38
"""A maximum to start from: with minus infinity, a first block of that alone would give NaN."""


@triton.jit
def widen(peak, total, logits):
    """The running maximum and sum of exponentials below it, with the last axis of `logits` taken in."""
    higher = tl.maximum(peak, tl.max(logits, -1))
    return higher, total * tl.exp(peak - higher) + tl.sum(tl.exp(logits - tl.expand_dims(higher, -1)), -1)


@triton.jit
def loss_of(label, ignore_index, vocabulary, peak, total, target):
    """A token's loss; 0 where it is ignored, NaN where its label does not exist."""
    valid = (label >= 0) & (label < vocabulary)
    loss = tl.where(valid, (peak - target) + tl.log(total), float("nan"))
    return tl.where(label == ignore_index, 0.0, loss)


@triton.jit
def gradient_of(label, ignore_index, vocabulary, weight, p, hit):
    """A token's gradient; 0 where it is ignored, whatever its logits, NaN where its label does not exist."""
    valid = (label >= 0) & (label < vocabulary)
    gradient = tl.where(valid, weight, float("nan")) * (p - hit.to(tl.float32))
    return tl.where(label == ignore_index, 0.0, gradient)


@triton.jit
def kernel(
    logits, labels, weights, losses, grad_logits, ignore_index,
    vocabulary: tl.constexpr, BLOCK: tl.constexpr, LOWEST: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + token)
    logits += token * vocabulary
    peak, total, target = LOWEST + 0.0, 0.0, 0.0
    for first in range(0, vocabulary, BLOCK):
        column = first + tl.arange(0, BLOCK)
        block = tl.load(logits + column, column < vocabulary, float("-inf"))
        peak, total = widen(peak, total, block)
        target += tl.sum(tl.where(column == label, block, 0.0))
    tl.store(losses + token, loss_of(label, ignore_index, vocabulary, peak, total, target))
    if grad_logits is not None:
        weight = 1.0
        if weights is not None:
            weight = tl.load(weights + token)
        for first in range(0, vocabulary, BLOCK):
            column = first + tl.arange(0, BLOCK)
            block = tl.load(logits + column, column < vocabulary, float("-inf"))
            p = tl.exp(block - peak) / total
            gradient = gradient_of(label, ignore_index, vocabulary, weight, p, column == label)
            tl.store(grad_logits + token * vocabulary + column, gradient, column < vocabulary)


def weighted_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None,
    ignore_index: int,
    losses: torch.Tensor,
    grad_logits: torch.Tensor | None,
) -> None:
    """The contract is that of csrc's WeightedCrossEntropy; a label that does not exist gives NaN."""
    tokens, vocabulary = logits.shape
    kernel[(tokens,)](
        logits, labels, weights, losses, grad_logits, ignore_index,
        vocabulary=vocabulary, BLOCK=BLOCK, LOWEST=LOWEST, enable_fp_fusion=False,
    )  # fmt: skip
