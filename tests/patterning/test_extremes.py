"""The text at a mode's ends: the right tokens, whatever form samples come in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import patterning_fast as pf
from patterning_fast.patterning.extremes import Texts

WORDS = ["a\nbcd", "efghi"]
IDS = torch.tensor([[ord(letter) for letter in word] for word in WORDS])


def mode_of(loadings: np.ndarray, **coords: tuple[str, np.ndarray]) -> pf.Mode:
    data = xr.DataArray(loadings, dims=next(iter(coords.values()))[0], coords=coords)
    return pf.Mode(xr.DataArray([1.0], dims="component"), data, 1.0, 0.1, True)


def token_mode(probes: tuple[str, str] = ("text", "text")) -> pf.Mode:
    """Loadings 0.0 ... 0.7 on the four tokens of two samples, in no order."""
    return mode_of(
        np.array([0.3, 0.7, 0.1, 0.4, 0.2, 0.6, 0.0, 0.5]),
        probe=("token", np.repeat(probes, 4)),
        sample=("token", np.repeat([0, 1] if probes[0] == probes[1] else [0, 0], 4)),
        position=("token", np.tile(np.arange(4), 2)),
    )


@pytest.mark.parametrize(
    ("texts", "decode"),
    [
        (WORDS, "".join),
        ([list(word) for word in WORDS], "".join),
        (IDS, lambda ids: "".join(map(chr, ids.tolist()))),
        (IDS.numpy(), lambda ids: "".join(map(chr, ids))),
    ],
)
def test_tokens_stand_behind_their_text(texts: Texts, decode: Callable[[Any], str]) -> None:
    rows = pf.extreme_data(token_mode(), texts, decode, count=2)
    assert [row["token"] for row in rows] == ["b", "g", "h", "c"]
    assert [row["text so far"] for row in rows] == ["a⏎", "ef", "efg", "a⏎b"]
    assert [row["position"] for row in rows] == [1, 1, 2, 2]
    assert rows[0]["loading"] == pytest.approx(0.7 * 8**0.5)
    short = pf.extreme_data(token_mode(), texts, decode, count=1, context=1)
    assert [row["text so far"] for row in short] == ["⏎", "g"]
    longer = pf.extreme_data(token_mode(), texts, decode, count=1, context=3)
    assert [row["text so far"] for row in longer] == ["a⏎", "efg"]


def test_probes_have_texts_of_their_own() -> None:
    rows = pf.extreme_data(token_mode(("one", "two")), {"one": WORDS[:1], "two": WORDS[1:]}, count=2)
    assert [row["probe"] for row in rows] == ["one", "two", "two", "one"]
    assert [row["token"] for row in rows] == ["b", "g", "h", "c"]


def test_samples_are_shown_whole() -> None:
    mode = mode_of(np.array([0.1, 0.9]), probe=("sample", np.array(["data"] * 2)), sample=("sample", np.arange(2)))
    assert [row["text"] for row in pf.extreme_data(mode, WORDS, count=1)] == ["efghi", "a⏎bcd"]


def test_texts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="about sample 1 of probe 'text', and there are 1 texts"):
        pf.extreme_data(token_mode(), WORDS[:1])
    with pytest.raises(ValueError, match=r"about probe 'text', and there are texts of \['other'\]"):
        pf.extreme_data(token_mode(), {"other": WORDS})
    with pytest.raises(ValueError, match="has 3 tokens, and the mode is about token"):
        pf.extreme_data(token_mode(), ["abc", "def"])
    with pytest.raises(ValueError, match="count must be a whole number >= 1, got 0"):
        pf.extreme_data(token_mode(), WORDS, count=0)
