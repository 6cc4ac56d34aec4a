"""A small language model of Hugging Face, trained a little, and its data."""

from __future__ import annotations

import functools

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import patterning_fast as pf

VOCABULARY, LENGTH = 20, 13


def copied(samples: int, seed: int) -> Tensor:
    """Sequences in which every second token is that before it."""
    tokens = torch.randint(VOCABULARY, (samples, LENGTH), generator=torch.Generator().manual_seed(seed))
    tokens[:, 1::2] = tokens[:, :-1:2]
    return tokens


def dataset(samples: int = 40, seed: int = 0) -> Dataset:
    return Dataset.from_dict({"input_ids": copied(samples, seed).numpy()}).with_format("torch")


def noise(samples: int = 30) -> Dataset:
    """Sequences without any order."""
    tokens = torch.randint(VOCABULARY, (samples, LENGTH), generator=torch.Generator().manual_seed(9))
    return Dataset.from_dict({"input_ids": tokens.numpy()}).with_format("torch")


@functools.cache
def llama() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=16,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        pf.train(model, copied(200, 1), pf.losses.next_token, steps=200, batch_size=16, lr=5e-3, progress=False)
    return model.eval()
