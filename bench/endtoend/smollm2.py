"""Figure E: what a suffix saves of a draw's evaluation, for late heads of SmolLM2-135M. Prints seconds as JSON.

The multiply-adds are those of the products of the forward pass; a suffix leaves out all before its layer.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

import patterning_fast as pf
from bench.ops.timing import interleaved
from bench.text import code_tokens
from patterning_fast.engine.suffix import Modules, WholeModel, layers_of, suffixes_for
from patterning_fast.models.smollm2 import smollm2

HEADS = ("l17h3", "l18h6", "l28h0")
SAMPLES, LENGTH, REPEATS = 8, 200, 7


def multiply_adds(model: Any, layers: int) -> float:
    """Of the last so many layers and the unembedding, for one token: one each for an element of a matrix."""
    config = model.config
    head = config.hidden_size // config.num_attention_heads
    projections = 2 * config.hidden_size * head * (config.num_attention_heads + config.num_key_value_heads)
    attention = config.hidden_size * (LENGTH + 1)  # scores and sums over half the positions, on average
    layer = projections + attention + 3 * config.hidden_size * config.intermediate_size
    return layers * layer + config.hidden_size * config.vocab_size


def compared(model: Any, head: str, tokens: Tensor) -> dict[str, object]:
    """Seconds of the losses of `tokens` with a head moved, by its suffix and by the whole model."""
    component, modules = pf.attention_heads(model)[head], Modules(model)
    parameters = dict(model.named_parameters())
    moved = {name: 1.01 * (parameters[name] if index is None else parameters[name].flatten()[index])
             for name, index in component.coordinates.items()}  # fmt: skip

    def loss(module: nn.Module) -> Tensor:
        return pf.losses.next_token(module, tokens)

    layers = layers_of(modules.whole(), loss, len(tokens))
    suffix, whole = suffixes_for(model, component, layers)[0], WholeModel(component)
    on, off = suffix.runner(modules), whole.runner(modules)
    with torch.no_grad():
        recorded = on.record(loss)
        difference = (on.run(loss, moved, recorded) - off.run(loss, moved, {})).abs().max()
        seconds = interleaved(
            {"on": lambda: on.run(loss, moved, recorded), "off": lambda: off.run(loss, moved, {})}, REPEATS
        )
    layer, number = int(head[1:].split("h")[0]), model.config.num_hidden_layers
    ratio = multiply_adds(model, number) / multiply_adds(model, number - layer)
    return seconds | {"suffix": suffix.name, "multiply-adds": ratio, "largest difference [nats]": float(difference)}


def main() -> None:
    model, tokenizer = smollm2()
    tokens = code_tokens(tokenizer, SAMPLES, LENGTH + 1, seed=0)
    print(json.dumps({head: compared(model.requires_grad_(False), head, tokens) for head in HEADS}))


if __name__ == "__main__":
    main()
