"""The data at either end of a mode, with their text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from patterning_fast.arguments import Count, Whole, checked
from patterning_fast.callbacks import calling, returned
from patterning_fast.patterning.modes import Mode

Texts = Sequence[Any] | np.ndarray | Tensor
"""Samples by index: strings, or token ids, or strings of tokens."""


@checked
def extreme_data(
    mode: Mode,
    texts: Texts | Mapping[str, Texts],
    decode: Callable[[Any], str] = "".join,
    *,
    count: Count = 8,
    context: Whole = 64,
) -> list[dict[str, Any]]:
    """The `count` data a mode loads on most, and the `count` it loads on least, as rows of a table.

    Args:
        mode: of χ by token, whose position p is about the loss of token p + 1, or by sample.
        texts: the samples that χ is about, each a string or a sequence of token ids or of strings, by index; by name
            of probe where χ is about several.
        decode: makes text of a slice of a sample: a tokenizer's `decode`, or nothing for strings.
        context: most tokens shown before the one that the row is about.

    Each row has the `loading` (its root mean square over all data is 1), probe, sample, and either position, the text
    so far and the token, or the sample's text. Raises ValueError for a count that is not positive, and for texts that
    lack a probe, sample or token the mode is about.
    """
    loadings = mode.data.values
    order = loadings.argsort()
    chosen = [*order[::-1][:count], *order[:count]]
    rows = []
    for datum in mode.data.isel({mode.data.dims[0]: chosen}):
        probe, sample = str(datum["probe"].item()), int(datum["sample"])
        row = {"loading": float(datum) * len(loadings) ** 0.5, "probe": probe, "sample": sample}
        text = text_of(texts, probe, sample)
        if "position" in datum.coords:
            at = int(datum["position"]) + 1
            if at >= len(text):
                raise ValueError(
                    f"sample {sample} of probe {probe!r} has {len(text)} tokens, and the mode is about token {at}: "
                    "give the samples χ was estimated on"
                )
            row["position"] = at - 1
            row["text so far"] = visible(decoded(decode, text[max(0, at - context) : at]))
            row["token"] = visible(decoded(decode, text[at : at + 1]))
        else:
            row["text"] = visible(decoded(decode, text))
        rows.append(row)
    return rows


def text_of(texts: Texts | Mapping[str, Texts], probe: str, sample: int) -> Any:
    """One sample; raises ValueError where there is none."""
    if isinstance(texts, Mapping):
        if probe not in texts:
            raise ValueError(f"the mode is about probe {probe!r}, and there are texts of {sorted(texts)} only")
        texts = texts[probe]
    if isinstance(texts, np.ndarray | Tensor) and not texts.ndim:
        raise ValueError("texts must be samples along the first dimension, got a single number; pass a list of them")
    if sample >= len(texts):
        raise ValueError(
            f"the mode is about sample {sample} of probe {probe!r}, and there are {len(texts)} texts: "
            "give the samples χ was estimated on"
        )
    return texts[sample]


def decoded(decode: Callable[[Any], str], text: Any) -> str:
    """The text of a sample or of a part of it."""
    with calling("extreme_data: decode", "make a string of a sample, or of a slice of it"):
        return returned("extreme_data: decode", decode(text), str)


def visible(text: str) -> str:
    """Text on one line."""
    return text.replace("\n", "⏎")
