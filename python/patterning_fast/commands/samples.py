"""Samples cut from documents or from a file of tokens, and kept with the run: later steps need the source no more."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from patterning_fast.commands.dataset_file import load_dataset, save_dataset
from patterning_fast.commands.documents import Document
from patterning_fast.posterior.data import present_in, sample_count, take
from patterning_fast.posterior.losses import causal_lm

LONGEST_TOKEN = 16
"""Characters: of a document that much is read for each token that samples can take of it."""

TOGETHER = 8
"""Samples of which losses are taken at once."""


@dataclass(frozen=True)
class Samples:
    """Strings of tokens, each of one document."""

    table: xr.Dataset
    """`input_ids` int32 `[sample, place]`, 0 behind the end; `length`, `document` and `domain` of each sample.
    `text` of each token, once they are `decoded`."""

    def data(self) -> dict[str, Tensor]:
        """As `pf.losses.causal_lm` takes it."""
        tokens = torch.from_numpy(self.table["input_ids"].values.astype(np.int64))
        length = torch.from_numpy(self.table["length"].values.astype(np.int64))
        if bool((length == tokens.shape[1]).all()):
            return {"input_ids": tokens}
        return {"input_ids": tokens, "attention_mask": (torch.arange(tokens.shape[1]) < length[:, None]).long()}

    def __len__(self) -> int:
        return self.table.sizes["sample"]

    def said(self) -> str:
        """In a line."""
        tokens, documents = int(self.table["length"].sum()), len(set(self.table["document"].values))
        domains = sorted(set(self.table["domain"].values))
        named = ", ".join(domains[:6]) + (", ..." if len(domains) > 6 else "")
        return f"{len(self):,} samples of {documents:,} documents, {tokens:,} tokens; domains: {named}"

    def decoded(self, decode: Callable[[int], str]) -> Samples:
        """With the text of each token, which pages show."""
        known, at = np.unique(self.table["input_ids"].values, return_inverse=True)
        text = np.array([decode(int(each)) for each in known])[at.reshape(self.table["input_ids"].shape)]
        return Samples(self.table.assign(text=(("sample", "place"), text)))

    def save(self, path: Path) -> None:
        """Raises OSError."""
        save_dataset(path, self.table)

    @classmethod
    def load(cls, path: Path) -> Samples:
        """Raises FileNotFoundError where there are none, ValueError where they are damaged."""
        return cls(load_dataset(path, "estimate"))

    def labels(self, estimates: xr.Dataset) -> xr.Dataset:
        """Estimates by token with the document and the domain of each."""
        of = estimates["sample"].values
        dimension = estimates["sample"].dims[0]
        names = {name: (dimension, self.table[name].values[of]) for name in ("document", "domain")}
        return estimates.assign_coords(names)


def cut(documents: Iterable[Document], encode: Callable[[str], list[int]], count: int, length: int) -> Samples:
    """At most `count` samples of up to `length` tokens and the next: the first of each document, then the second, ...

    Raises ValueError where no document has two tokens.
    """
    most = count * (length + 1)
    found: list[tuple[str, list[np.ndarray]]] = []
    for document in documents:
        content = document.content
        ids = encode(content[: most * LONGEST_TOKEN]) if isinstance(content, str) else content
        pieces = [np.array(ids[at : at + length + 1]) for at in range(0, min(len(ids), most), length + 1)]
        if pieces := [piece for piece in pieces if len(piece) > 1]:
            found.append((document.domain, pieces))
        if len(found) == count:
            break
    if not found:
        raise ValueError("the data hold no document of two tokens or more: there is nothing to predict; give others")
    order = chain.from_iterable(
        [at for at, (_, pieces) in enumerate(found) if len(pieces) > turn] for turn in range(count)
    )
    taken = np.bincount(np.fromiter(islice(order, count), dtype=np.int64), minlength=len(found))
    rows = [piece for (_, pieces), each in zip(found, taken, strict=True) for piece in pieces[:each]]
    of = np.repeat(np.arange(len(found)), taken)
    return samples_of(rows, [f"{found[at][0]}/{at}" for at in of], [found[at][0] for at in of])


def of_token_file(path: Path, kind: str, count: int, length: int, vocabulary: int) -> Samples:
    """Samples evenly spread over a file of token ids without a header, uint16 or uint32.

    Raises ValueError for another kind, a file too short, and ids that the model does not know.
    """
    if kind not in ("uint16", "uint32"):
        raise ValueError(f"token_type must be uint16 or uint32, as {path} was written, got {kind!r}")
    size = np.dtype(kind).itemsize
    if path.stat().st_size % size or path.stat().st_size < size * (length + 1):
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes, no whole number of {kind} or fewer than one sample of "
            f"{length + 1}: name the other with --token-type, or shorter samples with --length"
        )
    tokens: Any = np.memmap(path, dtype=kind, mode="r")
    most = len(tokens) // (length + 1)
    starts = np.linspace(0, most - 1, min(count, most)).astype(np.int64) * (length + 1)
    rows = [np.asarray(tokens[at : at + length + 1]) for at in starts]
    if (highest := max(int(row.max()) for row in rows)) >= vocabulary:
        raise ValueError(
            f"{path}, read as {kind}, holds the token {highest:,}, and the model knows {vocabulary:,}: name the type "
            "that it was written in with --token-type, or the model that its tokenizer is of"
        )
    return samples_of(rows, [f"{path.stem}/{at}" for at in starts], [path.stem] * len(rows))


def samples_of(rows: list[np.ndarray], documents: list[str], domains: list[str]) -> Samples:
    longest = max(map(len, rows))
    table = np.zeros((len(rows), longest), dtype=np.int32)
    for at, row in enumerate(rows):
        table[at, : len(row)] = row
    return Samples(xr.Dataset({
        "input_ids": (("sample", "place"), table),
        "length": ("sample", np.array([len(row) for row in rows], dtype=np.int32)),
        "document": ("sample", np.array(documents)),
        "domain": ("sample", np.array(domains)),
    }))  # fmt: skip


def losses_on(model: nn.Module, samples: Samples) -> np.ndarray:
    """The loss of each next token `[samples, tokens]` in nats, NaN where there is none; the model in eval mode."""
    data = samples.data()
    with torch.no_grad():
        batches = (take(data, slice(at, at + TOGETHER)) for at in range(0, sample_count(data), TOGETHER))
        found = torch.cat([causal_lm(model, batch) for batch in batches])
    present = present_in(causal_lm, data, tuple(found.shape[1:]))
    return (found if present is None else torch.where(present, found, torch.nan)).numpy()
