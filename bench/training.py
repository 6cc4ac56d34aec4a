"""What weights cost: training with them over training without, in turns on one machine (bar 1.02)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import patterning_fast as pf
from bench.ops.timing import interleaved
from bench.results import record
from patterning_fast.models.attention_only import AttentionOnlyLM

BAR = 1.02
SAMPLES, TOKENS = 2048, 64


def main() -> None:
    """The demo's model and data shapes, 20 steps a call, weights laid out anew each time."""
    torch.manual_seed(0)
    model = AttentionOnlyLM(96, TOKENS, width=64, heads=2, head_width=32)
    data = torch.randint(96, (SAMPLES, TOKENS + 1))
    of_tokens = 2 * torch.rand(SAMPLES, TOKENS)
    ways: dict[str, dict[str, Any]] = {
        "unweighted": {},
        "weights of tokens": {"weights": of_tokens},
        "weights of samples": {"weights": of_tokens[:, 0].clone()},
        "sampling by weights of tokens": {"weights": of_tokens, "weighting": "sampling"},
    }

    def train(way: dict[str, Any]) -> object:
        return pf.train(copy.deepcopy(model), data, pf.losses.next_token, steps=20, batch_size=64, lr=3e-3,
                        progress=False, **way)  # fmt: skip

    calls: dict[str, Callable[[], object]] = {name: partial(train, way) for name, way in ways.items()}
    seconds = interleaved(calls, repeats=31)
    plain = seconds.pop("unweighted")
    rows: list[dict[str, object]] = []
    for name, each in seconds.items():
        print(f"{name}: {each / plain:.3f} of the time without ({plain / 20 * 1e3:.1f} ms a step, bar {BAR})")
        rows.append({"figure": f"time with {name} over time without", "value": each / plain, "bar": BAR,
                     "holds": each / plain <= BAR, "peers": {}})  # fmt: skip
    record("training", rows)


if __name__ == "__main__":
    main()
