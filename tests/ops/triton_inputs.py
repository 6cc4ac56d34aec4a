"""Random arguments for every op, write-only outputs poisoned with NaN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

RULES: dict[str, list[float]] = {
    "sgld": [],
    "rmsprop": [0.99, 0.1],
    "rmsprop_bias_corrected": [0.99, 0.1],
    "sghmc": [0.1],
    "sgnht": [0.01],
}


def normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


def uniform(generator: Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def poison(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


def of_chains(chains: int, generator: Generator) -> dict[str, Tensor]:
    return {
        "lr": uniform(generator, 1e-3, 1e-1, chains),
        "n_beta": uniform(generator, 0, 100, chains),
        "localization": uniform(generator, 0, 300, chains),
        "noise_scale": uniform(generator, -1, 1, chains),
        "chain_ids": torch.randint(2**40, (chains,), generator=generator),
        "seed": torch.tensor(2**62 + 12345),
        "step": torch.tensor(37),
    }


def langevin_step(lengths: list[int], rule: str, extras: bool, generator: Generator) -> dict[str, Any]:
    """`extras`: bfloat16 gradients, a box, a shadow and statistics."""
    chains, total = len(lengths), sum(lengths)
    row_starts = torch.tensor([0, *lengths]).cumsum(0)
    grads, memory = normal(generator, total), normal(generator, total)
    return {
        "params": normal(generator, total),
        "grads": grads.bfloat16() if extras else grads,
        "center": normal(generator, total),
        "row_starts": row_starts,
        "center_starts": row_starts[:-1] * (torch.arange(chains) % 3 != 1),  # w* of one row in three is the first's
        **of_chains(chains, generator),
        "rule": rule,
        "constants": RULES[rule],
        "memory": None if rule == "sgld" else memory.square() if rule.startswith("rmsprop") else memory,
        "thermostat": uniform(generator, 0, 1, chains) if rule == "sgnht" else None,
        "box": uniform(generator, 0.1, 1, chains) if extras else None,
        "shadow": poison(total, dtype=torch.bfloat16) if extras else None,
        "statistics": poison(4, chains, dtype=torch.float64) if extras else None,
    }


def per_sample_langevin_step(
    chains: int, batch: int, params: int, extras: bool, generator: Generator
) -> dict[str, Any]:
    """`extras`: bfloat16 gradients, weights of samples and one center for all."""
    grads = 1 + normal(generator, chains, batch, params)
    numbers = of_chains(chains, generator)
    return {
        "params": normal(generator, chains, params),
        "grads": grads.bfloat16() if extras else grads,
        "sample_weights": uniform(generator, 0, 2, chains, batch) if extras else None,
        "center": normal(generator, 1 if extras else chains, params),
        **numbers | {"n_beta": numbers["n_beta"] / 10},
        "sampled_fraction": 0.25,
        "gradient_noise_scale": poison(chains, dtype=torch.float64),
    }


def comoments_update(chains: int, losses: int, observables: int, groups: int, generator: Generator) -> dict[str, Any]:
    return {
        "losses": 3 + normal(generator, chains, losses),
        "observables": normal(generator, chains, observables),
        "loss_shift": 3 + 0.1 * normal(generator, losses),
        "observable_shift": 0.1 * normal(generator, observables),
        "groups": torch.randint(groups, (chains,), generator=generator),
        "count": uniform(generator, 0, 1, groups).double(),
        "loss_sum": normal(generator, groups, losses).double(),
        "observable_sum": normal(generator, groups, observables).double(),
        "cross": normal(generator, groups, observables, losses).double(),
        "observable_square": normal(generator, groups, observables, observables).double(),
    }


def loss_comoments_update(chains: int, losses: int, groups: int, generator: Generator) -> dict[str, Any]:
    return {
        "losses": 3 + normal(generator, chains, losses),
        "loss_shift": 3 + 0.1 * normal(generator, losses),
        "groups": torch.randint(groups, (chains,), generator=generator),
        "count": uniform(generator, 0, 1, groups).double(),
        "loss_sum": normal(generator, groups, losses).double(),
        "loss_square": normal(generator, groups, losses, losses).double(),
    }


def labels(vocabulary: int, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Some of them -100, to be ignored."""
    drawn = torch.randint(vocabulary, shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < 0.2, -100, drawn)


def weighted_cross_entropy(tokens: int, vocabulary: int, extras: bool, generator: Generator) -> dict[str, Any]:
    """`extras`: weights and the gradient."""
    return {
        "logits": 4 * normal(generator, tokens, vocabulary),
        "labels": labels(vocabulary, (tokens,), generator),
        "weights": normal(generator, tokens) if extras else None,
        "ignore_index": -100,
        "losses": poison(tokens),
        "grad_logits": poison(tokens, vocabulary) if extras else None,
    }


def linear_cross_entropy(
    chains: int,
    tokens: int,
    width: int,
    vocabulary: int,
    unembeddings: int,
    offsets: int | None,
    extras: bool,
    generator: Generator,
) -> dict[str, Any]:
    """`offsets`: None for no known logits; `extras`: weights and all gradients."""
    known = offsets is not None
    return {
        "hidden": normal(generator, chains, tokens, width),
        "unembedding": normal(generator, unembeddings, vocabulary, width),
        "labels": labels(vocabulary, (chains, tokens), generator),
        "weights": normal(generator, chains, tokens) if extras else None,
        "offset": normal(generator, offsets or 0, tokens, vocabulary) if known else None,
        "offset_scale": normal(generator, chains, tokens) if known else None,
        "ignore_index": -100,
        "losses": poison(chains, tokens),
        "grad_hidden": poison(chains, tokens, width) if extras else None,
        "grad_unembedding": poison(unembeddings, vocabulary, width) if extras else None,
        "grad_offset_scale": poison(chains, tokens) if extras and known else None,
    }
