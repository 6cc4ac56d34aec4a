"""Tiny decoders of Hugging Face, random, of every family whose logits are known to be a product."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.models import CONTEXT, VOCABULARY

LLAMA_SHAPED: dict[str, Any] = {
    "intermediate_size": 8,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 24, "head_dim": 4, "tie_word_embeddings": True},
    "llama with biases, no sharing": {"attention_bias": True, "num_key_value_heads": 4},
    "mistral": {"head_dim": 8},
    "qwen2": {},
    "qwen3": {"hidden_size": 24, "head_dim": 8, "attention_bias": True},
    "smollm3": {"num_key_value_heads": 1},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8},
    "granite": {"logits_scaling": 4.0},
    "gpt2": {},
    "gpt_neox": {"intermediate_size": 8, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
}
WITHOUT_GROUPS = ("gpt2", "gpt_neox")
"""Whose heads never share keys and values."""
SCALED = ("gemma2", "granite")
"""Whose logits are more than a product with the unembedding."""


def decoder(name: str, **changes: Any) -> Any:
    """Two layers of four heads; weights large enough for attention to matter, biases that are not 0."""
    model_type = name.split()[0]
    given = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "hidden_size": 16}
    given |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    given |= {} if model_type in WITHOUT_GROUPS else LLAMA_SHAPED
    given |= {"bos_token_id": 0, "eos_token_id": 0} | CONFIGS[name] | changes
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **given)).eval()
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model
