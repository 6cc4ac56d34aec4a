"""Real text as tokens: Python's standard library, which every machine holds, in byte-level pairs."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from patterning_fast.tasks.found_text import domain_text, plain_windows


def byte_pair_tokenizer(vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer of `vocabulary` words, trained on the text it will encode."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(domain_text("code").splitlines(keepends=True), trainer)
    return tokenizer


def code_tokens(tokenizer: Tokenizer, samples: int, length: int, seed: int) -> Tensor:
    """Windows int64 `[samples, length]` from random places of the standard library's code."""
    pieces = tokenizer.encode_batch(domain_text("code").splitlines(keepends=True), add_special_tokens=False)
    tokens = np.concatenate([np.array(piece.ids, dtype=np.int64) for piece in pieces])
    return torch.from_numpy(plain_windows(tokens, samples, length, np.random.default_rng(seed)))
