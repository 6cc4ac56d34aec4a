"""Real text as tokens: Python's standard library, which every machine holds."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from patterning_fast.tasks.found_text import domain_text, plain_windows


def code_tokens(tokenizer: Tokenizer, samples: int, length: int, seed: int) -> Tensor:
    """Windows int64 `[samples, length]` from random places of the standard library's code."""
    pieces = tokenizer.encode_batch(domain_text("code").splitlines(keepends=True), add_special_tokens=False)
    tokens = np.concatenate([np.array(piece.ids, dtype=np.int64) for piece in pieces])
    return torch.from_numpy(plain_windows(tokens, samples, length, np.random.default_rng(seed)))
