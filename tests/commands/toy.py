"""A language model of one layer with a tokenizer of its own, and documents of two kinds, as users have them on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

DOCUMENTS = [f"the cat {at} sat on the mat and the dog ran" for at in range(4)] + [
    f"def f{at}(x): return x * {at} + {at}" for at in range(4)
]
ESTIMATE = ["--samples", "8", "--length", "8", "--batch-size", "4", "--max-chains", "8"]
"""Settings of toy size."""


def make(folder: Path) -> None:
    """`my-model` and `documents.jsonl` in a folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(DOCUMENTS, trainer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder / "my-model")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder / "my-model")
    rows = [{"text": text, "domain": "code" if "def" in text else "prose"} for text in DOCUMENTS]
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
