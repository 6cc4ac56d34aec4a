"""What the logits of decoder language models are a product of.

A model may say it itself, as AttentionOnlyLM does. Those of Hugging Face are told by `model.config.model_type`; their
library is never imported.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn


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


PRODUCTS = frozenset({
    "llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "granite", "gpt2", "gpt_neox",
})  # fmt: skip
"""Families whose logits are the last hidden state times the unembedding, but for what NOT_A_PRODUCT names."""

NOT_A_PRODUCT = ("final_logit_softcapping", "logits_scaling")
"""Entries of a config that do something to logits after the unembedding; None or 1 where they do nothing."""


def logit_factors(model: nn.Module, tokens: Tensor) -> LogitFactors | None:
    """What the logits of `tokens` `[batch, T]` are made of; None where the model does not say, or does more to them.

    The class is asked, not the model: a wrapper that passes attributes on (torch.compile's, adapters) must be called
    as a whole.
    """
    decoder: Any = model
    if hasattr(type(model), "logit_factors"):
        return decoder.logit_factors(tokens)
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    if model_type not in PRODUCTS or not hasattr(type(model), "get_output_embeddings"):
        return None
    head = decoder.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return None
    if any(getattr(decoder.config, name, None) not in (None, 1) for name in NOT_A_PRODUCT):
        return None
    return LogitFactors(decoder.base_model(input_ids=tokens, use_cache=False).last_hidden_state, head.weight)
