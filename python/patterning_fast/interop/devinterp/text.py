"""`default_nbeta` and `tokenize_and_concatenate`: what scripts of devinterp begin with."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from torch.utils.data import DataLoader

from patterning_fast.arguments import Count, checked
from patterning_fast.categories import SubstitutionWarning
from patterning_fast.domains import Anything

PIECES = 20
"""Pieces that text is cut into before it is tokenized, at any character."""


@checked
def default_nbeta(
    dataloader: Annotated[Any, Anything("a loader or a batch size, told apart here")],
    gradient_accumulation_steps: Count = 1,
) -> float:
    """n/log n, n being the samples of a gradient: a loader's batch size, or that itself, times the accumulation.

    For n = 1, where that is infinite, 1 with a warning. Raises TypeError for what is neither.
    """
    size = dataloader.batch_size if isinstance(dataloader, DataLoader) else dataloader
    if isinstance(size, bool) or not isinstance(size, int | np.integer):
        raise TypeError(
            f"dataloader must be a DataLoader with a batch size, or a batch size, got {type(size).__name__}"
        )
    samples = int(size) * gradient_accumulation_steps
    if samples <= 1:
        warnings.warn(
            "n/log n is infinite for gradients of one sample: n_beta is 1 instead", SubstitutionWarning, stacklevel=3
        )
        return 1.0
    return samples / math.log(samples)


@checked
def tokenize_and_concatenate(
    dataset: Annotated[Any, Anything("a datasets.Dataset of an optional package")],
    tokenizer: Annotated[Any, Anything("a tokenizer of an optional package")],
    streaming: bool = False,
    max_length: Count = 1024,
    column_name: str = "text",
    add_bos_token: bool = True,
    num_proc: Count | None = 10,
) -> Any:
    """A dataset of sequences of `max_length` token ids, cut from all texts one after the other.

    Texts are joined by the tokenizer's end-of-sequence token; a rest that fills no sequence is dropped, but where there
    is nothing else, which is padded. With `add_bos_token` each sequence begins with that token. Returns a dataset of
    the class of `dataset` with one column, "input_ids", of torch tensors.

    Raises ValueError for a tokenizer without a needed token, sequences too short for one, and texts that are empty.
    """
    own = max_length - add_bos_token
    if own < 1:
        raise ValueError(f"max_length={max_length} leaves no room beside the first token: give 2 or more")
    first = [tokenizer.bos_token_id] if add_bos_token else []
    if None in first:
        raise ValueError(f"{type(tokenizer).__name__} has no bos_token_id: pass add_bos_token=False")
    if tokenizer.eos_token is None:
        raise ValueError(f"{type(tokenizer).__name__} has no eos_token, which texts are joined by: set one")
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    padding = tokenizer.pad_token_id

    def cut(texts: Mapping[str, list[str]]) -> dict[str, np.ndarray]:
        text = tokenizer.eos_token.join(texts[column_name])
        if not text.strip():
            return {"input_ids": np.empty(0, np.int64)}
        size = math.ceil(len(text) / PIECES)
        pieces = [text[start * size : (start + 1) * size] for start in range(PIECES)]
        ids = np.concatenate([np.asarray(each, np.int64) for each in tokenizer(pieces)["input_ids"]])
        ids = ids[ids != padding]
        if len(ids) < own:
            ids = np.concatenate((ids, np.full(own - len(ids), padding)))
        rows = ids[: len(ids) // own * own].reshape(-1, own)
        return {"input_ids": np.concatenate((np.tile(np.array(first, np.int64), (len(rows), 1)), rows), 1)}

    chosen = dataset.select_columns(column_name)
    options = {} if streaming else {"num_proc": num_proc}
    made = chosen.map(cut, batched=True, remove_columns=[column_name], **options)
    if len(made) == 0 or "input_ids" not in made.column_names:
        raise ValueError(f"the column {column_name!r} has no text: there are no sequences")
    made.set_format(type="torch", columns=["input_ids"])
    return made
