"""Where heads lie in the parameters of the models of Hugging Face, by family, and of torch's own attention.

A model may say it itself, as AttentionOnlyLM does. Those of Hugging Face are told by `model.config.model_type`; their
library is never imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

HeadParameters = dict[str, dict[str, Tensor]]
"""Head name ("l0h1") to the flat indices it owns in each parameter, int64, sorted."""

Features = dict[str, Tensor]
"""Name of a projection to some of its outputs or inputs, int64, sorted."""

Head = Callable[[Any, int], tuple[Features, Features]]
"""From config and head: which outputs of projections are its queries, keys and values, and which inputs of the
projection after attention it feeds."""


@dataclass(frozen=True)
class Family:
    """How the attention of a family of models is laid out."""

    attention: str
    """What the name of the attention module of each layer ends in."""
    head: Head
    output_axis: int = 0
    """Axis of a weight along which its outputs lie: 0 in nn.Linear."""


def apart(queries: str = "q_proj", keys: str = "k_proj", values: str = "v_proj", output: str = "o_proj") -> Head:
    """Queries, keys and values apart; neighbouring heads may share keys and values (arXiv:2305.13245)."""

    def head(config: Any, head: int) -> tuple[Features, Features]:
        shared = span(config, head * groups_of(config) // config.num_attention_heads)
        return {queries: span(config, head), keys: shared, values: shared}, {output: span(config, head)}

    return head


def kind_after_kind(fused: str, output: str) -> Head:
    """One projection: queries of all heads, then all keys, then all values, which neighbouring heads may share."""

    def head(config: Any, head: int) -> tuple[Features, Features]:
        heads, groups = config.num_attention_heads, groups_of(config)
        group = head * groups // heads
        parts = [span(config, at) for at in (head, heads + group, heads + groups + group)]
        return {fused: torch.cat(parts)}, {output: span(config, head)}

    return head


def head_after_head(fused: str, output: str) -> Head:
    """One projection: head after head, each with its query, key and value."""

    def head(config: Any, head: int) -> tuple[Features, Features]:
        return {fused: torch.cat([span(config, 3 * head + part) for part in range(3)])}, {output: span(config, head)}

    return head


def falcon_head(config: Any, head: int) -> tuple[Features, Features]:
    """Group after group, each with the queries of its heads, a key and a value; or head after head."""
    if not config.new_decoder_architecture and not config.multi_query:
        return head_after_head("query_key_value", "dense")(config, head)
    heads = config.num_attention_heads
    groups = config.num_kv_heads if config.new_decoder_architecture else 1
    each = heads // groups
    group, within = divmod(head, each)
    first = group * (each + 2)
    parts = [span(config, first + at) for at in (within, each, each + 1)]
    return {"query_key_value": torch.cat(parts)}, {"dense": span(config, head)}


def gpt_bigcode_head(config: Any, head: int) -> tuple[Features, Features]:
    """Queries of all heads, then the one key and value of all; or head after head."""
    if not config.multi_query:
        return head_after_head("c_attn", "c_proj")(config, head)
    heads = config.num_attention_heads
    return {"c_attn": torch.cat([span(config, at) for at in (head, heads, heads + 1)])}, {"c_proj": span(config, head)}


def codegen_head(config: Any, head: int) -> tuple[Features, Features]:
    """Four shares of the heads, one after another, each with its queries, values and keys."""
    each = config.num_attention_heads // 4
    share, within = divmod(head, each)
    parts = [span(config, (3 * share + kind) * each + within) for kind in range(3)]
    return {"qkv_proj": torch.cat(parts)}, {"out_proj": span(config, head)}


def groups_of(config: Any) -> int:
    """How many keys and values a layer has."""
    return getattr(config, "num_key_value_heads", None) or int(config.num_attention_heads)


def span(config: Any, at: int) -> Tensor:
    """Features of the vector at place `at`, where vectors of a head's width lie one after another."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return torch.arange(at * width, (at + 1) * width)


LLAMA = Family("self_attn", apart())
OPT = Family("self_attn", apart(output="out_proj"))
BERT = Family("attention", apart("self.query", "self.key", "self.value", "output.dense"))
VIT = Family("attention", apart())

FAMILIES = {
    **dict.fromkeys((
        "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "gemma", "gemma2",
        "gemma3_text", "granite", "granitemoe", "granitemoeshared", "olmo", "stablelm", "starcoder2", "cohere",
        "cohere2", "nemotron", "glm", "glm4", "glm4_moe", "ernie4_5", "ernie4_5_moe", "exaone4", "arcee", "seed_oss",
        "cwm", "ministral", "ministral3", "apertus", "phimoe", "hunyuan_v1_dense",
    ), LLAMA),
    **dict.fromkeys(("opt", "xglm", "biogpt"), OPT),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra", "data2vec-text", "roformer"), BERT),
    **dict.fromkeys(("vit", "deit"), VIT),
    "phi": Family("self_attn", apart(output="dense")),
    "phi3": Family("self_attn", kind_after_kind("qkv_proj", "o_proj")),
    "gpt2": Family("attn", kind_after_kind("c_attn", "c_proj"), output_axis=1),
    "openai-gpt": Family("attn", kind_after_kind("c_attn", "c_proj"), output_axis=1),
    "gpt_bigcode": Family("attn", gpt_bigcode_head),
    "gpt_neo": Family("attn.attention", apart(output="out_proj")),
    "gptj": Family("attn", apart(output="out_proj")),
    "codegen": Family("attn", codegen_head),
    "gpt_neox": Family("attention", head_after_head("query_key_value", "dense")),
    "gpt_neox_japanese": Family("attention", head_after_head("query_key_value", "dense")),
    "bloom": Family("self_attention", head_after_head("query_key_value", "dense")),
    "persimmon": Family("self_attn", head_after_head("query_key_value", "dense")),
    "falcon": Family("self_attention", falcon_head),
    "mpt": Family("attn", kind_after_kind("Wqkv", "out_proj")),
    "distilbert": Family("attention", apart("q_lin", "k_lin", "v_lin", "out_lin")),
}  # fmt: skip
"""By `model.config.model_type`. Likeness of names is not enough: olmo2 normalises queries across heads."""


def family_of(model: nn.Module) -> Family | None:
    return FAMILIES.get(getattr(getattr(model, "config", None), "model_type", ""))


def attentions(model: nn.Module) -> dict[int, str]:
    """The names of the attention modules of a known family, or of torch's own, by layer; empty where there are none.

    The layer is the last number in the name where there is one in each, else the place among them.
    """
    family = family_of(model)
    modules = dict(model.named_modules())
    if family is None:
        names = [name for name, module in modules.items() if isinstance(module, nn.MultiheadAttention)]
    else:
        names = [name for name in modules if f".{name}".endswith(f".{family.attention}")]
    numbers = [re.findall(r"\d+", name)[-1:] for name in names]
    layers = [int(number[0]) for number in numbers if number]
    return dict(zip(layers if len(set(layers)) == len(names) else range(len(names)), names, strict=True))


def attention_head_parameters(model: nn.Module) -> HeadParameters | None:
    """What each head owns: its rows of the query, key and value weights, their biases, its columns of the output.

    With grouped queries, keys and values belong to each of the heads that share them. What all heads share (the output
    bias, norms of queries and keys) belongs to none. Layers are alike, so their heads share index tensors.
    None for a model that is not known; raises ValueError where parameters are not what the family's should be.
    """
    family, layers = family_of(model), attentions(model)
    if family is not None:
        return heads_of(layers, heads_of_family(model, family, next(iter(layers.values()), family.attention)))
    if not layers:
        return None
    found: HeadParameters = {}
    for layer, name in layers.items():
        attention: Any = model.get_submodule(name)
        found |= heads_of({layer: name}, heads_of_torch(attention))
    return found


def heads_of(layers: Mapping[int, str], heads: list[dict[str, Tensor]]) -> HeadParameters:
    """The heads of layers that are alike; `heads` are flat indices by parameter of the attention module."""
    return {
        f"l{layer}h{head}": {f"{attention}.{parameter}": index for parameter, index in indices.items()}
        for layer, attention in layers.items()
        for head, indices in enumerate(heads)
    }


def heads_of_family(model: nn.Module, family: Family, first: str) -> list[dict[str, Tensor]]:
    """Flat indices of each head in the parameters of the first attention module, which are checked."""
    config: Any = model.config
    parameters = dict(model.named_parameters())
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
    return heads


def heads_of_torch(attention: nn.MultiheadAttention) -> list[dict[str, Tensor]]:
    """Flat indices of each head of an nn.MultiheadAttention; raises ValueError where keys have a width of their own."""
    if attention.in_proj_weight is None:
        raise ValueError(
            "an nn.MultiheadAttention with kdim or vdim keeps queries, keys and values apart; build its heads with "
            "pf.component(model, name, masks)"
        )
    width, own = attention.embed_dim, attention.head_dim
    heads = []
    for head in range(attention.num_heads):
        features = torch.arange(head * own, (head + 1) * own)
        rows = torch.cat([part * width + features for part in range(3)])
        indices = {
            "in_proj_weight": flat_indices(attention.in_proj_weight.shape, 0, rows),
            "out_proj.weight": flat_indices(attention.out_proj.weight.shape, 1, features),
        }
        if attention.in_proj_bias is not None:
            indices["in_proj_bias"] = rows
        heads.append(indices)
    return heads


def laid_out_otherwise(model_type: str) -> str:
    return (
        f"a model that calls itself {model_type!r}: it is laid out otherwise (another implementation? adapters?); "
        "build its heads with pf.component(model, name, masks)"
    )


def flat_indices(shape: torch.Size, axis: int, features: Tensor) -> Tensor:
    """Flat indices of some features along one axis of a matrix."""
    rows, columns = (features, torch.arange(shape[1])) if axis == 0 else (torch.arange(shape[0]), features)
    return (rows[:, None] * shape[1] + columns).flatten()
