"""A direction over tokens, continued to tokens that χ was not estimated on, by what a model makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from patterning_fast.models.attention_only import AttentionOnlyLM

FITTED = 0.75
"""Share of the known contexts that the fit is made on; the others say how good it is."""

RIDGE = 1e-4
"""Of each feature's mean square."""

TOKENS = 2**16
"""At once."""


@dataclass(frozen=True)
class Continued:
    """Values of all tokens, and how well they agree with those known."""

    values: Tensor
    """float32 `[contexts, T]`."""
    correlation: float
    """Between fitted and known values of contexts that are known and were not fitted to."""


@torch.no_grad()
def continued(model: AttentionOnlyLM, tokens: Tensor, known: Tensor) -> Continued:
    """Ridge regression on `token_features` of values `[known contexts, T]`, of the first of `tokens`
    `[contexts, T + 1]`.
    """
    at_once = max(1, TOKENS // tokens.shape[1])
    fitted = int(FITTED * len(known))
    squares, products = None, None
    for some, values in zip(tokens[:fitted].split(at_once), known[:fitted].split(at_once), strict=True):
        features = token_features(model, some).flatten(0, 1).double()
        square, product = features.T @ features, features.T @ values.flatten().to(features)
        squares, products = (square, product) if squares is None else (squares + square, products + product)
    assert squares is not None
    squares.diagonal().mul_(1 + RIDGE)
    coefficients = torch.linalg.solve(squares, products).float()
    values = torch.cat([token_features(model, some) @ coefficients for some in tokens.split(at_once)])
    pairs = torch.stack((values[fitted : len(known)].flatten().double().cpu(), known[fitted:].flatten().double().cpu()))
    return Continued(values, float(torch.corrcoef(pairs)[0, 1]))


def token_features(model: AttentionOnlyLM, tokens: Tensor) -> Tensor:
    """What a model makes of every next token of `[contexts, T + 1]`: `[contexts, T, features]`.

    Its loss and that squared, the entropy of what was expected; the embedding and what each layer adds to it, in units
    of their sum, the token's unembedding, and the products of both: what each coordinate adds to the token's logit.
    """
    streams, following = model.streams(tokens[:, :-1]), tokens[:, 1:]
    log_p = (model.final_norm(streams[-1]) @ model.unembedding.T).log_softmax(-1)
    loss = -log_p.gather(-1, following[..., None])
    entropy = -(log_p.exp() * log_p).sum(-1, keepdim=True)
    target = model.unembedding[following]
    scale = streams[-1].std(-1, correction=0, keepdim=True)
    parts = [(after - before) / scale for before, after in pairwise(streams)]
    parts.insert(0, streams[0] / scale)
    beyond_expected = target - log_p.exp() @ model.unembedding
    products = [part * beyond_expected for part in parts]
    return torch.cat([torch.ones_like(loss), loss, loss.square(), entropy, target, *parts, *products], -1)
