"""Decoder language models as they come: where heads lie in their parameters, and what their logits are a product of.

A model may say both itself, as AttentionOnlyLM does. Those of Hugging Face are told by `model.config.model_type`; their
library is never imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

HeadParameters = dict[str, dict[str, Tensor]]
"""Head name ("l0h1") to the flat indices it owns in each parameter, int64, sorted."""

Features = dict[str, Tensor]
"""Name of a projection to some of its outputs or inputs, int64, sorted."""


class LogitFactors(NamedTuple):
    """What logits `[batch, T, vocabulary]` are made of: hidden @ unembeddingᵀ, plus offset_scale·offset where known."""

    hidden: Tensor
    """`[batch, T, width]`, after the last norm."""
    unembedding: Tensor
    """`[vocabulary, width]`"""
    offset: Tensor | None = None
    """`[batch, T, vocabulary]`"""
    offset_scale: Tensor | None = None
    """`[batch, T]`"""


@dataclass(frozen=True)
class Family:
    """How the attention of a family of models is laid out."""

    attention: str
    """Name of the attention module of each layer."""
    output_axis: int
    """Axis of a weight along which its outputs lie: 0 in nn.Linear."""
    head: Callable[[Any, int], tuple[Features, Features]]
    """From config and head: which outputs of projections are its queries, keys and values, and which inputs of the
    projection after attention it feeds."""


def llama_head(config: Any, head: int) -> tuple[Features, Features]:
    """Queries, keys and values apart; neighbouring heads share keys and values (arXiv:2305.13245)."""
    shared = span(config, head * config.num_key_value_heads // config.num_attention_heads)
    return {"q_proj": span(config, head), "k_proj": shared, "v_proj": shared}, {"o_proj": span(config, head)}


def gpt2_head(config: Any, head: int) -> tuple[Features, Features]:
    """Queries of all heads, then all keys, then all values."""
    parts = [span(config, part * config.num_attention_heads + head) for part in range(3)]
    return {"c_attn": torch.cat(parts)}, {"c_proj": span(config, head)}


def gpt_neox_head(config: Any, head: int) -> tuple[Features, Features]:
    """Head after head, each with its query, key and value."""
    parts = [span(config, 3 * head + part) for part in range(3)]
    return {"query_key_value": torch.cat(parts)}, {"dense": span(config, head)}


def span(config: Any, at: int) -> Tensor:
    """Features of the vector at place `at`, where vectors of a head's width lie one after another."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return torch.arange(at * width, (at + 1) * width)


LLAMA = Family("self_attn", 0, llama_head)
FAMILIES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "granite"), LLAMA),
    "gpt2": Family("attn", 1, gpt2_head),
    "gpt_neox": Family("attention", 0, gpt_neox_head),
}
"""By `model.config.model_type`. Likeness of names is not enough: olmo2 normalises queries across heads."""

NOT_A_PRODUCT = ("final_logit_softcapping", "logits_scaling")
"""Entries of a config that do something to logits after the unembedding; None or 1 where they do nothing."""


def family_of(model: nn.Module) -> Family | None:
    return FAMILIES.get(getattr(getattr(model, "config", None), "model_type", ""))


def attention_head_parameters(model: nn.Module) -> HeadParameters | None:
    """What each head owns: its rows of the query, key and value weights, their biases, its columns of the output.

    With grouped queries, keys and values belong to each of the heads that share them. What all heads share (the output
    bias, norms of queries and keys) belongs to none. Layers are alike, so their heads share index tensors.
    None for a family that is not known; raises ValueError where parameters are not what the family's should be.
    """
    family = family_of(model)
    if family is None:
        return None
    config: Any = model.config
    parameters = dict(model.named_parameters())
    layers = [name for name, _ in model.named_modules() if name.rpartition(".")[2] == family.attention]
    first = next(iter(layers), family.attention)
    heads: list[dict[str, Tensor]] = []
    for head in range(config.num_attention_heads):
        outputs, inputs = family.head(config, head)
        indices = {}
        for axis, projections in ((family.output_axis, outputs), (1 - family.output_axis, inputs)):
            for projection, features in projections.items():
                name = f"{projection}.weight"
                if f"{first}.{name}" not in parameters:
                    raise ValueError(f"{first}.{name} is missing in {laid_out_otherwise(config.model_type)}")
                indices[name] = flat_indices(parameters[f"{first}.{name}"].shape, axis, features)
        for projection, features in outputs.items():
            if f"{first}.{projection}.bias" in parameters:
                indices[f"{projection}.bias"] = features
        heads.append(indices)
    for parameter, index in heads[-1].items():
        shape = parameters[f"{first}.{parameter}"].shape
        if int(index[-1]) != shape.numel() - 1:
            raise ValueError(
                f"{first}.{parameter} has shape {list(shape)}, which its heads do not fill, in "
                f"{laid_out_otherwise(config.model_type)}"
            )
    return {
        f"l{layer}h{head}": {f"{attention}.{parameter}": index for parameter, index in indices.items()}
        for layer, attention in enumerate(layers)
        for head, indices in enumerate(heads)
    }


def laid_out_otherwise(model_type: str) -> str:
    return (
        f"a model that calls itself {model_type!r}: it is laid out otherwise (another implementation? adapters?); "
        "build its heads with pf.component(model, name, masks)"
    )


def flat_indices(shape: torch.Size, axis: int, features: Tensor) -> Tensor:
    """Flat indices of some features along one axis of a matrix."""
    rows, columns = (features, torch.arange(shape[1])) if axis == 0 else (torch.arange(shape[0]), features)
    return (rows[:, None] * shape[1] + columns).flatten()


def logit_factors(model: nn.Module, tokens: Tensor) -> LogitFactors | None:
    """What the logits of `tokens` `[batch, T]` are made of; None where the model does not say, or does more to them.

    The class is asked, not the model: a wrapper that passes attributes on (torch.compile's, adapters) must be called
    as a whole.
    """
    decoder: Any = model
    if hasattr(type(model), "logit_factors"):
        return decoder.logit_factors(tokens)
    if family_of(model) is None or not hasattr(type(model), "get_output_embeddings"):
        return None
    head = decoder.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return None
    if any(getattr(decoder.config, name, None) not in (None, 1) for name in NOT_A_PRODUCT):
        return None
    return LogitFactors(decoder.base_model(input_ids=tokens, use_cache=False).last_hidden_state, head.weight)
