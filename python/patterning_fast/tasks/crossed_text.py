"""Text in which loss and induction come apart: strings that come again, that seem to, that come backwards, or do not.

What comes again has a low loss once a model copies, and found text has one once a model remembers; there are as many
contexts of one as of the other. Pairs of letters come again with another continuation, which punishes copying, and
strings come backwards, which asks for copying in the other direction (the control of Bi-Induct, arXiv:2509.22947).
"""

from __future__ import annotations

import string
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patterning_fast.arguments import Count, Seed, checked
from patterning_fast.tasks.found_text import domain_text, encode
from patterning_fast.tasks.induction import predictable_by_induction

CLASSES = {"repeats": 2, "unreliable": 1, "reversed": 1, "boilerplate": 2}
"""Of contexts, with their shares."""

KINDS = ("noise", "first", "repeat", "unreliable", "reversed", "boilerplate")
"""Of tokens: letters that nothing predicts; a string said for the first time, before it comes again or backwards; what
is said again; a text of pairs that come again before other letters; a string said backwards; found text."""

LETTERS = encode(string.ascii_letters + string.digits + "-_")
START, SEPARATOR = encode("\n|")

OPENING = 2
"""Letters that come again in unreliable repeats."""

SHORTEST = 32
"""A context in which unreliable repeats come again at least twice."""

Made = tuple[np.ndarray, np.ndarray]
"""Tokens and their kinds, each `[T]`."""


@dataclass(frozen=True)
@checked
class CrossedText:
    """Contexts of four classes, each token with its kind: labels judge weights, and never make them."""

    tokens: Tensor
    """int64 `[contexts, T + 1]`, of the vocabulary of `tasks.found_text`; the first is a newline."""
    kinds: Tensor
    """Of each next token, int64 `[contexts, T]`: places in `KINDS`."""
    classes: np.ndarray
    """Of each context, `[contexts]`: names of `CLASSES`."""

    def of(self, kind: str) -> Tensor:
        """Which next tokens `[contexts, T]` are of a kind."""
        return self.kinds == KINDS.index(kind)


@checked
def crossed_text(contexts: Count, length: Count, seed: Seed, passages: Count = 1024) -> CrossedText:
    """`contexts` of a newline and `length` characters, of four classes in their shares and random order.

    Letters are drawn at random, so that nothing but a copy in the context predicts them. Boilerplate is one of
    `passages` passages of Python's language reference: the fewer, the lower its loss.
    Raises ValueError for contexts that are too short, and for more passages than the text holds.
    """
    if length < SHORTEST:
        raise ValueError(f"length must be at least {SHORTEST}, got {length}: unreliable repeats would not come again")
    generator = np.random.default_rng(seed)
    fixed = boilerplate(length, passages)
    each = [name for name, share in CLASSES.items() for _ in range(share)]
    classes = generator.permutation(np.resize(each, contexts))
    made = [
        (fixed[generator.integers(passages)], all_of("boilerplate", length))
        if name == "boilerplate"
        else MAKERS[name](length, generator)
        for name in classes
    ]
    tokens, kinds = (torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True))
    return CrossedText(torch.cat([torch.full((contexts, 1), int(START), dtype=torch.int64), tokens], 1), kinds, classes)


def boilerplate(length: int, passages: int) -> np.ndarray:
    """The first `passages` passages `[passages, length]` of the language reference that do not repeat themselves."""
    text = encode(domain_text("reference"))
    pieces = text[: len(text) // length * length].reshape(-1, length)[: 4 * passages]
    found = pieces[~predictable_by_induction(torch.from_numpy(pieces), match=4).any(1).numpy()]
    if len(found) < passages:
        raise ValueError(
            f"the text on this machine holds only {len(found)} passages of {length} characters that do not repeat "
            f"themselves; ask for at most that many, not {passages}"
        )
    return found[:passages]


def repeats(length: int, generator: np.random.Generator) -> Made:
    """A string of an eighth to a half of the context, said until that is full."""
    period = generator.integers(length // 8, length // 2 + 1)
    places = np.arange(length)  # what follows the first letter of a copy is the first that a copy can tell
    kinds = np.where(places > period, KINDS.index("repeat"), KINDS.index("first"))
    return generator.choice(LETTERS, period)[places % period], kinds


def unreliable(length: int, generator: np.random.Generator) -> Made:
    """The same pair of letters again and again, each time before another letter."""
    letters = generator.permutation(LETTERS)
    opening, following = letters[:OPENING], letters[OPENING:]
    parts = [
        np.concatenate([opening, following[place : place + 1], generator.choice(following, generator.integers(3, 10))])
        for place in range(length // (OPENING + 4) + 1)
    ]
    return np.concatenate(parts)[:length], all_of("unreliable", length)


def backwards(length: int, generator: np.random.Generator) -> Made:
    """A string, a separator, the string backwards, and other letters."""
    half = int(generator.integers(length // 4, (length + 1) // 2))
    letters = generator.choice(LETTERS, length - half - 1)
    lengths = {"first": half + 1, "reversed": half, "noise": length - 2 * half - 1}
    tokens = np.concatenate([letters[:half], [SEPARATOR], letters[:half][::-1], letters[half:]])
    return tokens, np.concatenate([all_of(kind, count) for kind, count in lengths.items()])


def all_of(kind: str, length: int) -> np.ndarray:
    return np.full(length, KINDS.index(kind))


MAKERS = {"repeats": repeats, "unreliable": unreliable, "reversed": backwards}
