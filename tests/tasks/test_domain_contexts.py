"""Contexts of tokens cut from domains of text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from patterning_fast.tasks.domain_contexts import tokenized

TEXT = {
    "code": [f"def f{number}(x):\n    return x + {number}\n" for number in range(400)],
    "verse": [f"Rose {number} is a röse, and no {number + 1}.\n" for number in range(120)],
}


def test_tokens_say_the_text(tmp_path: Path) -> None:
    pool = tokenized(TEXT, 300, 10**6, tmp_path)
    for name, documents in TEXT.items():
        assert pool.tokenizer.decode(pool.tokens[name].tolist()) == "".join(f"{each}\n" for each in documents)
        assert pool.tokens[name].dtype == np.uint16


def test_no_more_tokens_than_wanted(tmp_path: Path) -> None:
    read = 0

    class Counted(list[str]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            nonlocal read
            for each in super().__iter__():
                read += 1
                yield each

    pool = tokenized(TEXT | {"code": Counted(TEXT["code"])}, 300, 50, tmp_path)
    assert {name: len(each) for name, each in pool.tokens.items()} == {"code": 50, "verse": 50}
    assert read == 3 * 400 + 256  # hashing, twice, and learning go through all of it; encoding does not
    assert np.array_equal(pool.tokens["code"], tokenized(TEXT, 300, 10**6, tmp_path).tokens["code"][:50])


def test_contexts_are_windows_of_their_domain(tmp_path: Path) -> None:
    pool = tokenized(TEXT, 300, 10**6, tmp_path)
    training, held_out = pool.contexts(200, 16, seed=1), pool.contexts(50, 16, seed=1, held_out=True)
    for contexts, part in ((training, slice(None, -40)), (held_out, slice(-400, None))):
        assert contexts.tokens.dtype == torch.int64
        for row, name in zip(contexts.tokens.numpy(), contexts.domain, strict=True):
            tokens = pool.tokens[name]
            windows = np.lib.stride_tricks.sliding_window_view(tokens[part] if name == "code" else tokens, 16)
            assert (windows == row).all(1).any()
    roots = np.sqrt([len(pool.tokens[name]) for name in TEXT])
    shares = [float((training.domain == name).mean()) for name in TEXT]
    assert shares == pytest.approx((roots / roots.sum()).tolist(), abs=0.01)
    assert torch.equal(training.tokens, pool.contexts(200, 16, seed=1).tokens)
    assert not torch.equal(training.tokens, pool.contexts(200, 16, seed=2).tokens)


def test_what_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    pool = tokenized({"numbers": [" ".join(map(str, range(3000)))]}, 300, 10**6, tmp_path)
    known = {tuple(row.tolist()) for row in pool.contexts(5000, 12, seed=0).tokens}
    assert not known & {tuple(row.tolist()) for row in pool.contexts(200, 12, seed=0, held_out=True).tokens}


def test_tokens_are_kept(tmp_path: Path) -> None:
    tokenized(TEXT, 300, 1000, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert {path.stem for path in before} == set(TEXT)
    pool = tokenized(TEXT, 300, 1000, tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    changed = TEXT | {"verse": ["Another rose."] * 60}
    assert tokenized(changed, 300, 1000, tmp_path).text_sha256 != pool.text_sha256


def test_domains_that_are_too_short(tmp_path: Path) -> None:
    pool = tokenized(TEXT, 300, 1000, tmp_path)
    with pytest.raises(ValueError, match="code, verse: too few tokens for contexts of 2000; leave these domains out"):
        pool.contexts(4, 2000, seed=0)
