"""Contexts of tokens cut from domains of text; tokenizer and tokens are kept on disk for the next time."""

from __future__ import annotations

import fcntl
import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from patterning_fast.arguments import Count, checked
from patterning_fast.domains import Anything
from patterning_fast.durable import make_folder, put, writing
from patterning_fast.tasks.found_text import Contexts, plain_windows
from patterning_fast.tasks.tokenizer import hash_of, train_tokenizer

HELD_OUT_SHARE = 1 / 32
"""Of each domain's tokens, its last: contexts that are held out come from these."""

DOCUMENTS = 256
"""Encoded at once."""


@dataclass(frozen=True)
@checked
class TokenizedDomains:
    """Domains as rows of tokens, one document after another."""

    tokenizer: Annotated[Any, Anything("a tokenizer of an optional package")]
    """Of the package `tokenizers`."""
    tokens: dict[str, np.ndarray]
    """Domain name to its token ids, unsigned `[tokens]`, on disk."""
    text_sha256: str
    """Beginning of the hash of the text that the tokenizer has learnt from."""

    def contexts(self, count: int, length: int, seed: int, held_out: bool = False) -> Contexts:
        """`count` windows of `length` tokens from random places, shuffled; held out from training or not.

        A domain's share is in proportion to the root of its size, so that the largest do not own the mixture. Raises
        ValueError where a domain is too short for a window.
        """
        parts = {name: self.part(each, held_out) for name, each in self.tokens.items()}
        short = [name for name, each in parts.items() if len(each) <= length]
        if short:
            raise ValueError(f"{', '.join(short)}: too few tokens for contexts of {length}; leave these domains out")
        generator = np.random.default_rng(seed)
        shares = np.sqrt([len(each) for each in parts.values()])
        edges = np.round(np.cumsum([0.0, *shares / shares.sum()]) * count).astype(int)
        windows = [
            plain_windows(each, int(many), length, generator)
            for each, many in zip(parts.values(), np.diff(edges), strict=True)
        ]
        order = generator.permutation(count)
        return Contexts(
            torch.from_numpy(np.concatenate(windows).astype(np.int64)[order]),
            np.repeat(list(parts), np.diff(edges))[order],
            self.text_sha256,
        )

    @staticmethod
    def part(tokens: np.ndarray, held_out: bool) -> np.ndarray:
        edge = len(tokens) - int(len(tokens) * HELD_OUT_SHARE)
        return tokens[edge:] if held_out else tokens[:edge]


@checked
def tokenized(domains: Mapping[str, Iterable[str]], vocabulary: Count, most: Count, cache: Path) -> TokenizedDomains:
    """The first `most` tokens of each domain, by a tokenizer of `vocabulary` tokens that learns from them.

    Both are kept in the folder `cache`, by the hash of what the tokenizer learns from.

    Raises what `train_tokenizer` raises, OSError where the cache cannot be written.
    """
    text_sha256 = hash_of(domains)
    folder = cache / f"tokens-{vocabulary}-{most}-{text_sha256}"
    files = {name: folder / f"{name}.npy" for name in domains}
    with nullcontext() if all(each.exists() for each in files.values()) else filling(cache):
        tokenizer = train_tokenizer(domains, vocabulary, cache)
        for name, documents in domains.items():
            if not files[name].exists():
                write(files[name], encoded(documents, tokenizer, most))
    return TokenizedDomains(
        tokenizer, {name: np.load(each, mmap_mode="r") for name, each in files.items()}, text_sha256
    )


@contextmanager
def filling(cache: Path) -> Iterator[None]:
    """Make the folder if missing; wait for other processes that fill it, such as the parts of a recipe."""
    with writing("tokens", cache):
        make_folder(cache)
        lock = (cache / "tokens.lock").open("a")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def encoded(documents: Iterable[str], tokenizer: Any, most: int) -> np.ndarray:
    """Up to `most` token ids of documents, a newline after each, in the smallest type that holds the vocabulary."""
    kind = np.min_scalar_type(tokenizer.get_vocab_size() - 1)
    rest, found, size = iter(documents), [np.empty(0, kind)], 0
    while size < most and (some := [f"{each}\n" for each in islice(rest, DOCUMENTS)]):
        found += [np.array(each.ids, kind) for each in tokenizer.encode_batch(some)]
        size += sum(map(len, found[-len(some) :]))
    return np.concatenate(found)[:most]


def write(path: Path, tokens: np.ndarray) -> None:
    content = io.BytesIO()  # into a file np.save writes by C's stdio, and does not hear of a full disk
    np.save(content, tokens)
    with writing("tokens", path):
        make_folder(path.parent)
        put(path, lambda partial: partial.write_bytes(content.getbuffer()))
