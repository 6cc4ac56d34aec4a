"""A tokenizer of its own for a mixture of domains: pairs of bytes, merged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from patterning_fast.arguments import Count, checked
from patterning_fast.durable import make_folder, put, writing

ENOUGH_TEXT = 4_000_000
"""Characters of each domain to learn from, so that large domains do not own the vocabulary."""


@checked
def train_tokenizer(domains: Mapping[str, Iterable[str]], vocabulary: Count, cache: Path | None = None) -> Any:
    """A byte-level BPE tokenizer (of the package `tokenizers`) with `vocabulary` tokens, learnt from all domains alike.

    With a folder `cache` it is kept there, under a hash of the text it learns from, and read the next time.

    Raises ValueError for a vocabulary under 257 (the bytes, and one merge) or more than the text has merges for,
    ImportError without `tokenizers`, OSError where the cache cannot be written.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise ImportError("needs the package tokenizers: pip install 'patterning_fast[text]'") from error
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocabulary <= len(alphabet):
        raise ValueError(f"vocabulary must be more than the {len(alphabet)} bytes it begins with, got {vocabulary}")
    if cache is not None:
        kept = cache / f"tokenizer-{vocabulary}-{hash_of(domains)}.json"
        if kept.exists():
            return Tokenizer.from_file(str(kept))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(training_text(domains), trainer)
    if tokenizer.get_vocab_size() < vocabulary:
        raise ValueError(f"the text has pairs for a vocabulary of {tokenizer.get_vocab_size()}, not {vocabulary}")
    if cache is not None:
        with writing("a tokenizer", kept):
            make_folder(cache)
            put(kept, lambda partial: partial.write_text(tokenizer.to_str(pretty=True), encoding="utf-8"))
    return tokenizer


def training_text(domains: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """Lines of each domain's first documents."""
    for documents in domains.values():
        left = ENOUGH_TEXT
        for document in documents:
            yield from document[:left].splitlines(keepends=True)
            left -= len(document)
            if left <= 0:
                break


@checked
def hash_of(domains: Mapping[str, Iterable[str]]) -> str:
    """Of the text that a tokenizer of these domains learns from."""
    digest = hashlib.sha256()
    for line in training_text(domains):
        digest.update(line.encode("utf-8", "replace"))
    return digest.hexdigest()[:16]
