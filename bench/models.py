"""What a forward pass of SmolLM2-135M costs in time and memory."""

from __future__ import annotations

import torch


def cost_of_a_forward(samples: int = 8, length: int = 200) -> None:
    """Print seconds and peak memory of losses on text, `length` tokens to predict in each sample."""
    import resource
    import time

    import patterning_fast as pf
    from bench.text import code_tokens
    from patterning_fast.models.smollm2 import smollm2

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    started = time.perf_counter()
    model, tokenizer = smollm2()
    tokens = code_tokens(tokenizer, samples, length + 1, seed=0)
    print(f"loaded in {time.perf_counter() - started:.1f} s, peak {peak():.0f} MiB")
    for _ in range(3):
        started = time.perf_counter()
        with torch.no_grad():
            loss = pf.losses.next_token(model, tokens).mean()
        print(f"losses of {samples} × {length} tokens: {time.perf_counter() - started:.2f} s, mean {loss:.3f} nats")
    print(f"peak {peak():.0f} MiB")


if __name__ == "__main__":
    cost_of_a_forward()
