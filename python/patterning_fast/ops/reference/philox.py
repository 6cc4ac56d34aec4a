"""Philox4x32-10 (Salmon et al., SC11) in plain torch: the definition of every random number in the library."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
INDEX_BITS = 40
"""Bits of a parameter block's index, a step and a chain id that a counter can hold, each."""


class Stream(IntEnum):
    """What a random number is used for: two uses never share a counter."""

    noise = 0
    minibatch = 1
    observable = 2
    data = 3


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    """Ten rounds on `counter` `[..., 4]` under `key` `[..., 2]`, 32-bit words held in int64; returns `[..., 4]`."""
    x, y, z, w = counter.unbind(-1)
    key_lo, key_hi = key.unbind(-1)
    for _ in range(10):
        a, b = x * 0xD2511F53, z * 0xCD9E8D57  # wraps past 2^63, which leaves the bits right
        x, y, z, w = (b >> 32 & WORD) ^ y ^ key_lo, b & WORD, (a >> 32 & WORD) ^ w ^ key_hi, a & WORD
        key_lo, key_hi = key_lo + 0x9E3779B9 & WORD, key_hi + 0xBB67AE85 & WORD
    return torch.stack((x, y, z, w), -1)


def counter(stream: Stream, chain: Tensor, step: Tensor, index: Tensor) -> Tensor:
    """Counter words `[..., 4]` of the place (stream, chain, step, index): injective below 2^40 each."""
    chain, step, index = torch.broadcast_tensors(chain, step, index)
    high = int(stream) | (index >> 32 & 0xFF) << 8 | (step >> 32 & 0xFF) << 16 | (chain >> 32 & 0xFF) << 24
    return torch.stack((index & WORD, step & WORD, chain & WORD, high), -1)


def words(stream: Stream, seed: Tensor, chain: Tensor, step: Tensor, index: Tensor) -> Tensor:
    """The four random words `[..., 4]` of a place; `seed` is a 0-d int64."""
    return philox4x32(counter(stream, chain, step, index), torch.stack((seed & WORD, seed >> 32 & WORD)))
