"""Tiny models of Hugging Face, random, of every family whose heads are known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from tests import decoders
from tests.models import CONTEXT, VOCABULARY, tokens

HEADS = 4

GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 4}
EXPERTS: dict[str, Any] = {"num_local_experts": 3, "num_experts": 3, "n_routed_experts": 3, "num_experts_per_tok": 2}
ALONE: dict[str, Any] = {}
PATCHES: dict[str, Any] = {"image_size": 8, "patch_size": 4}

CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": GROUPED | EXPERTS,
    "qwen2_moe": GROUPED | EXPERTS | {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
    "qwen3_moe": GROUPED | EXPERTS | {"moe_intermediate_size": 8},
    "gemma3_text": GROUPED,
    "granitemoe": GROUPED | EXPERTS,
    "granitemoeshared": GROUPED | EXPERTS | {"shared_intermediate_size": 8},
    "olmo": GROUPED,
    "stablelm": GROUPED | {"use_qkv_bias": True},
    "stablelm with norms": GROUPED | {"qk_layernorm": True},
    "starcoder2": GROUPED,
    "cohere": GROUPED,
    "cohere2": GROUPED,
    "nemotron": GROUPED,
    "glm": GROUPED,
    "glm4": GROUPED,
    "glm4_moe": GROUPED | EXPERTS | {"moe_intermediate_size": 8},
    "ernie4_5": GROUPED,
    "ernie4_5_moe": GROUPED | EXPERTS | {"moe_num_experts": 3, "moe_k": 2, "moe_intermediate_size": 8},
    "exaone4": GROUPED,
    "arcee": GROUPED,
    "seed_oss": GROUPED,
    "cwm": GROUPED,
    "ministral": GROUPED,
    "ministral3": GROUPED,
    "apertus": GROUPED,
    "phimoe": GROUPED | EXPERTS,
    "hunyuan_v1_dense": GROUPED,
    "opt": {"ffn_dim": 8, "word_embed_proj_dim": 16},
    "xglm": {"ffn_dim": 8},
    "biogpt": ALONE,
    "bert": ALONE,
    "roberta": ALONE,
    "xlm-roberta": ALONE,
    "camembert": ALONE,
    "electra": {"embedding_size": 16},
    "data2vec-text": ALONE,
    "roformer": ALONE,
    "vit": PATCHES,
    "deit": PATCHES,
    "phi": GROUPED,
    "phi3": GROUPED,
    "openai-gpt": {"n_positions": CONTEXT},
    "gpt_bigcode": ALONE,
    "gpt_bigcode, heads apart": {"multi_query": False},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "gptj": {"rotary_dim": 2},
    "codegen": {"rotary_dim": 2},
    "gpt_neox_japanese": ALONE,
    "bloom": ALONE,
    "persimmon": ALONE,
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True},
    "falcon, one key": {"multi_query": True, "new_decoder_architecture": False},
    "falcon, heads apart": {"multi_query": False, "new_decoder_architecture": False, "bias": True},
    "mpt": {"max_seq_len": CONTEXT},
    "distilbert": {"hidden_dim": 8},
}
"""Beside those of `tests.decoders`."""

NAMES = (*decoders.CONFIGS, *CONFIGS)

OUTPUT = {
    "opt": "out_proj", "xglm": "out_proj", "biogpt": "out_proj", "phi": "dense", "gpt2": "c_proj",
    "openai-gpt": "c_proj", "gpt_bigcode": "c_proj", "gpt_neo": "out_proj", "gptj": "out_proj", "codegen": "out_proj",
    "gpt_neox": "dense", "gpt_neox_japanese": "dense", "bloom": "dense", "persimmon": "dense", "falcon": "dense",
    "mpt": "out_proj", "distilbert": "out_lin",
} | dict.fromkeys(
    ("bert", "roberta", "xlm-roberta", "camembert", "electra", "data2vec-text", "roformer"), "attention.output.dense"
)  # fmt: skip
"""The projection after attention, where it is not `o_proj`."""


def random_model(name: str) -> Any:
    """Two layers of four heads; weights large enough for attention to matter, biases that are not 0."""
    if name in decoders.CONFIGS:
        return decoders.decoder(name)
    model_type = name.partition(",")[0].split()[0]
    given = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": HEADS}
    given |= {"intermediate_size": 8, "max_position_embeddings": CONTEXT + 2}
    given |= {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0} | CONFIGS[name]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **given)
        made: Any = AutoModelForCausalLM if type(config) in AutoModelForCausalLM._model_mapping else AutoModel
        model: nn.Module = made.from_config(config, attn_implementation="eager").eval()
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def output(model: Any) -> Tensor:
    """What the model makes of some tokens, or of some images."""
    if model.config.model_type in ("vit", "deit"):
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        return model(pixel_values=images)[0]
    return model(tokens()[:, :-1])[0]
