"""Deep linear networks, whose learning coefficients are known exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from torch import nn

from patterning_fast.arguments import Count, Seed, Whole, checked
from patterning_fast.domains import Holds


class LearningCoefficient(NamedTuple):
    """λ and the multiplicity m of the free energy's n L + λ log n − (m − 1) log log n."""

    value: float
    multiplicity: int


@checked
def learning_coefficient(widths: Annotated[Sequence[Count], Holds(2)], rank: Whole) -> LearningCoefficient:
    """λ of a deep linear network of these layer widths, where the product of its matrices has this rank.

    At the most singular of such parameters, those whose matrices all have that rank. Source: Aoyagi & Watanabe 2005 for
    one hidden layer, Aoyagi 2023 (Theorem 1) for any number; as used by arXiv:2308.12108. Raises ValueError for fewer
    than two widths, or a rank that no such product has.
    """
    if len(widths) < 2 or not 0 <= rank <= min(widths):
        raise ValueError(f"a product of matrices between widths {list(widths)} has no rank {rank}")
    spare = sorted(width - rank for width in widths)  # M_s; the set Σ holds the smallest of them
    for size in range(2, len(spare) + 1):
        within, beyond, layers = spare[:size], spare[size:], size - 1
        if sum(within) >= layers * within[-1] and (not beyond or sum(within) < layers * beyond[0]):
            break
    else:
        raise AssertionError(f"no set of layers fits {spare}")
    total = sum(within)
    remainder = total - (math.ceil(total / layers) - 1) * layers
    pairs = (total**2 - sum(each**2 for each in within)) / 2
    value = (
        (rank * (widths[0] + widths[-1]) - rank**2) / 2
        + remainder * (layers - remainder) / (4 * layers)
        - (layers - 1) * total**2 / (4 * layers)
        + pairs / 2
    )
    return LearningCoefficient(value, remainder * (layers - remainder) + 1)


@checked
def deep_linear_network(widths: Annotated[Sequence[Count], Holds(2)], rank: Whole, seed: Seed = 0) -> nn.Sequential:
    """A network at a parameter whose learning coefficient `learning_coefficient` gives: all matrices of that rank.

    Each layer maps the same `rank` directions of one width onto those of the next, by singular values between 0.8 and
    1.2, and the rest to 0. Raises ValueError as `learning_coefficient` does.
    """
    learning_coefficient(widths, rank)
    generator = torch.Generator().manual_seed(seed)
    normals = [torch.randn(width, width, generator=generator, dtype=torch.float64) for width in widths]
    bases = [torch.linalg.qr(each)[0] for each in normals]
    layers = []
    for below, above in pairwise(bases):
        layer = nn.Linear(len(below), len(above), bias=False)
        values = 0.8 + 0.4 * torch.rand(rank, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(above[:, :rank] * values @ below[:, :rank].T)
        layers.append(layer)
    return nn.Sequential(*layers)
