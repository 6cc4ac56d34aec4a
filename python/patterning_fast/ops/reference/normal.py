"""Standard normals from random words by Box-Muller, in float64: what the float kernels are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from patterning_fast.ops.reference.philox import Stream, words


def normals_from_words(four: Tensor) -> Tensor:
    """Words `[..., 4]` to normals `[..., 4]` (float64): words 0 and 1 make the first two, 2 and 3 the others.

    The uniforms are the very floats the kernels see; only logarithm, root, sine and cosine are more exact here.
    """
    radius_word, angle_word = four[..., 0::2], four[..., 1::2]
    signed_angle = angle_word - ((angle_word >> 31) << 32)
    uniform = ((radius_word >> 1).float().double() * 2.0**-31 + 2.0**-32).float().double()
    radius = (-2.0 * uniform.log()).sqrt()
    angle = signed_angle.float().double() * 2.0**-31 * torch.pi
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1).flatten(-2)


def noise(seed: Tensor, chain: Tensor, step: Tensor, index: Tensor) -> Tensor:
    """The normal (float64) of each parameter `index` of each `chain` at `step`; shapes broadcast."""
    normals = normals_from_words(words(Stream.noise, seed, chain, step, index // 4))
    return normals.gather(-1, (index % 4).expand(normals.shape[:-1]).unsqueeze(-1)).squeeze(-1)


def normal_(out: Tensor, chain_ids: Tensor, seed: Tensor, step: Tensor) -> None:
    """The contract is that of `patterning_fast.ops.normal_`."""
    out.copy_(noise(seed, chain_ids[:, None], step, torch.arange(out.shape[1], device=out.device)))
