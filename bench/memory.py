"""Does memory grow with draws? Peak resident memory of the same run at 50 and at 500 draws, each in its own process."""

from __future__ import annotations

import resource
import subprocess
import sys

BAR = 1.02
"""Largest ratio of the two peaks: what an allocator's mood may differ by."""


def measure(draws: int) -> float:
    """Peak resident memory [MiB] of a process that samples that many draws."""
    command = [sys.executable, "-m", "bench.memory", str(draws)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def sample(draws: int) -> float:
    """Sample a small language model: 5 components of 4 chains, 4,096 tracked tokens. Peak resident memory [MiB]."""
    import torch

    import patterning_fast as pf
    from patterning_fast.models.attention_only import AttentionOnlyLM

    torch.manual_seed(0)
    model = AttentionOnlyLM(96, 64, width=64, heads=2, head_width=32)
    tokens = torch.randint(96, (64, 65))
    posterior = pf.LocalPosterior(model, pf.losses.next_token, tokens, n_beta=30.0, localization=300.0)
    statistics = pf.sample(
        posterior, pf.SGLD(1e-3), components=pf.attention_heads(model), chains=4, draws=draws, progress=False
    )
    statistics.susceptibilities()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    from bench.results import record

    few, many = measure(50), measure(500)
    ratio = many / few
    print(
        f"peak resident memory: {few:.0f} MiB at 50 draws, {many:.0f} MiB at 500 draws, ratio {ratio:.3f} (bar {BAR})"
    )
    record(
        "memory",
        [
            {
                "figure": "peak memory at 500 draws over that at 50",
                "value": ratio,
                "bar": BAR,
                "holds": ratio <= BAR,
                "peers": {},
                "MiB at 50 draws": few,
                "MiB at 500 draws": many,
            }
        ],
    )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(sample(int(sys.argv[1])))
    else:
        main()
