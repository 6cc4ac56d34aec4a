"""`weighted_cross_entropy` on held logits against torch's cross entropy and its autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from bench.ops.timing import interleaved
from patterning_fast import _C
from patterning_fast.ops.reference.cross_entropy import weighted_cross_entropy as reference
from patterning_fast.ops.weighted_cross_entropy import weighted_cross_entropy

TOKENS, VOCABULARY, THREADS, REPEATS = 4096, 5000, 2, 11


def gradient_here(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    return torch.autograd.grad(weighted_cross_entropy(logits, labels, weights)[0], logits)[0]


def gradient_of_torch(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    losses = functional.cross_entropy(logits, labels, reduction="none")
    return torch.autograd.grad((losses * weights).sum(), logits)[0]


def verified(logits: Tensor, labels: Tensor, weights: Tensor) -> bool:
    """Whether losses and gradient are within 1e-5 of the reference's, relative to its largest."""
    losses, gradient = (torch.empty_like(tensor, dtype=torch.float64) for tensor in (weights, logits))
    reference(logits.detach(), labels, weights, -100, losses, gradient)
    actual = weighted_cross_entropy(logits, labels, weights)[1], gradient_here(logits, labels, weights)
    pairs = zip(actual, (losses, gradient), strict=True)
    return all(float((a - e).abs().max() / e.abs().max()) < 1e-5 for a, e in pairs)


def rows() -> list[dict[str, object]]:
    """The figures, each with its bar and with those of its peers."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(TOKENS, VOCABULARY, generator=generator)).requires_grad_()
    labels = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    weights, held = torch.rand(TOKENS, generator=generator), logits.detach()
    is_verified = verified(logits, labels, weights)
    seconds = interleaved(
        {
            "losses here": lambda: weighted_cross_entropy(held, labels, weights),
            "losses of torch": lambda: functional.cross_entropy(held, labels, reduction="none"),
            "gradient here": lambda: gradient_here(logits, labels, weights),
            "gradient of torch": lambda: gradient_of_torch(logits, labels, weights),
        },
        REPEATS,
    )
    torch.set_num_threads(threads_before)
    shared = {
        "op": "weighted_cross_entropy",
        "form": f"cpp@{_C.build_info()['isa']}",
        "size": f"{TOKENS} tokens, vocabulary {VOCABULARY}, {THREADS} threads",
        "unit": "times",
        "bar": 1.0,
        "verified": is_verified,
    }
    figures = {
        "losses": "losses: faster than F.cross_entropy",
        "gradient": "losses and gradient: faster than torch autograd",
    }
    return [
        shared | {
            "figure": figure,
            "value": seconds[f"{what} of torch"] / seconds[f"{what} here"],
            "holds": seconds[f"{what} here"] <= seconds[f"{what} of torch"],
            "peers": {
                "torch [ms]": 1e3 * seconds[f"{what} of torch"],
                "here [ms]": 1e3 * seconds[f"{what} here"],
            },
        }
        for what, figure in figures.items()
    ]  # fmt: skip


if __name__ == "__main__":
    for row in rows():
        print(row)
