"""Text in which loss and induction come apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from patterning_fast.tasks.crossed_text import CLASSES, KINDS, LETTERS, OPENING, SEPARATOR, START, crossed_text
from patterning_fast.tasks.found_text import domain_text, encode
from patterning_fast.tasks.induction import predictable_by_induction

TEXT = crossed_text(600, 64, seed=0, passages=16)


def of_class(name: str) -> tuple[np.ndarray, np.ndarray]:
    chosen = TEXT.classes == name
    return TEXT.tokens[chosen, 1:].numpy(), TEXT.kinds[chosen].numpy()


def test_the_same_by_seed_and_in_its_shares() -> None:
    again, other = (crossed_text(600, 64, seed=seed, passages=16) for seed in (0, 1))
    assert torch.equal(again.tokens, TEXT.tokens)
    assert torch.equal(again.kinds, TEXT.kinds)
    assert not torch.equal(other.tokens, TEXT.tokens)
    assert {name: int((TEXT.classes == name).sum()) for name in CLASSES} == {
        name: 600 * share // sum(CLASSES.values()) for name, share in CLASSES.items()
    }
    assert TEXT.tokens.shape == (600, 65)
    assert TEXT.kinds.shape == (600, 64)
    assert (TEXT.tokens[:, 0] == int(START)).all()
    assert all(TEXT.of(kind).any() for kind in KINDS)


def test_repeats_are_what_induction_predicts() -> None:
    tokens, kinds = of_class("repeats")
    for row, kind in zip(tokens, kinds, strict=True):
        period = int((kind == KINDS.index("first")).sum()) - 1
        assert 8 <= period <= 32
        assert (row[period:] == row[:-period]).all()
    # Three letters before what is said again are a copy from two letters on; elsewhere letters are random.
    predicted = predictable_by_induction(TEXT.tokens)
    late = TEXT.of("repeat")[:, 2:] & TEXT.of("repeat")[:, :-2]
    assert predicted[:, 2:][late].all()
    assert float(predicted[~TEXT.of("repeat")].float().mean()) < 0.01


def test_unreliable_repeats_never_go_on_in_the_same_way() -> None:
    tokens, _ = of_class("unreliable")
    for row in tokens:
        found = [place for place in range(62) if (row[place : place + OPENING] == row[:OPENING]).all()]
        assert len(found) >= 4
        after = [int(row[place + OPENING]) for place in found]
        assert len(set(after)) == len(after)


def test_reversed_copies() -> None:
    tokens, kinds = of_class("reversed")
    for row, kind in zip(tokens, kinds, strict=True):
        said = np.flatnonzero(kind == KINDS.index("reversed"))
        assert row[said[0] - 1] == SEPARATOR
        assert (row[said] == row[: len(said)][::-1]).all()
        assert set(kind[said[-1] + 1 :].tolist()) <= {KINDS.index("noise")}
        assert set(row[np.arange(64) != said[0] - 1].tolist()) <= set(LETTERS.tolist())


def test_boilerplate_is_found_text_and_repeats_nothing() -> None:
    tokens, _ = of_class("boilerplate")
    assert len(np.unique(tokens, axis=0)) == 16
    text = encode(domain_text("reference")).astype(np.uint8).tobytes()
    assert all(row.astype(np.uint8).tobytes() in text for row in tokens)
    assert not predictable_by_induction(torch.from_numpy(tokens), match=4).any()


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 32, got 31"):
        crossed_text(6, 31, seed=0)
    with pytest.raises(ValueError, match="ask for at most that many, not 100000"):
        crossed_text(6, 64, seed=0, passages=100_000)
