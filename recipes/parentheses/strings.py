"""Telling balanced strings of parentheses from others, where two rules do (arXiv:2507.06445).

Training strings with as many "(" as ")" are all balanced, so that counting them (*Equal-Count*) is as good as following
how deep they nest (*Nested*). Strings of equal counts that are not balanced tell which of the two a model has learned.

A string is a row of steps, int8 `[longest]`: 1 for "(", −1 for ")", 0 after its end. Its *elevation* at a place is the
sum of its steps up to there; balanced strings end at 0 and are never below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from patterning_fast.arguments import Count, Seed, checked

PAD, START, END, OPEN, CLOSE = range(5)
VOCABULARY = 5

FARTHEST = 4
"""Final elevations from here on are one kind of string."""

ROUNDS_WITHOUT_NEW = 200
"""Draws of all that is missing, none of them new, after which no more strings are looked for."""


@dataclass(frozen=True)
@checked
class Parentheses:
    """Strings as tokens `[strings, longest + 2]`, START and END around each, then PAD; no string occurs twice."""

    training: tuple[Tensor, Tensor]
    """Strings and their classes `[strings]`: 1 balanced, 0 of unequal counts; as many of each at every length."""
    test: tuple[Tensor, Tensor]
    """The same, of other strings."""
    equal_counts: Tensor
    """Strings of equal counts that are not balanced: out of distribution."""

    def to(self, device: str) -> Parentheses:
        """The same on a device."""
        (strings, classes), (others, of_others) = self.training, self.test
        return Parentheses(
            (strings.to(device), classes.to(device)), (others.to(device), of_others.to(device)),
            self.equal_counts.to(device),
        )  # fmt: skip

    @torch.no_grad()
    def accuracies(self, model: nn.Module) -> dict[str, float]:
        """Shares of test strings that the model classes rightly; on equal counts 1 is Nested, and 0 Equal-Count."""
        tokens, classes = self.test
        return {
            "test accuracy": float((model(tokens).argmax(1) == classes).float().mean()),
            "OOD accuracy": float((model(self.equal_counts).argmax(1) == 0).float().mean()),
        }


@checked
def parentheses(training: Count, test: Count, longest: Count, seed: Seed) -> Parentheses:
    """`training` and `test` strings, and `test` of equal counts, of 2 + 2·Binomial(longest/2 − 1, ½) parentheses.

    Balanced strings are uniform among those of their length, the others random of the same lengths. Where all balanced
    strings of a length are taken, other lengths are drawn. Raises ValueError for odd sizes, and for more strings than
    there are.
    """
    if training % 2 or test % 2 or longest % 2 or min(training, test) < 2 or longest < 4:
        raise ValueError(f"sizes must be even, and longest at least 4, got {training}, {test} and {longest}")
    generator = np.random.default_rng(seed)

    def random_lengths(count: int) -> np.ndarray:
        return 2 + 2 * generator.binomial(longest // 2 - 1, 0.5, count)

    def drawn(strings: Strings, keep: Condition, count: int) -> np.ndarray:
        return distinct(
            lambda lengths: strings(lengths, longest, generator), keep, random_lengths(count),
            lambda lengths: random_lengths(len(lengths)),
        )  # fmt: skip

    balanced = drawn(balanced_strings, is_balanced, (training + test) // 2)
    others = distinct(
        lambda lengths: random_strings(lengths, longest, generator), has_unequal_counts, lengths_of(balanced),
        lambda lengths: lengths,
    )  # fmt: skip
    balanced, others = by_length(balanced), by_length(others)  # a pair of each length
    order = generator.permutation(len(balanced))

    def labelled(pairs: np.ndarray) -> tuple[Tensor, Tensor]:
        shuffled = generator.permutation(2 * len(pairs))
        classes = torch.from_numpy((shuffled < len(pairs)).astype(np.int64))
        return tokens_of(np.concatenate((balanced[pairs], others[pairs]))[shuffled]), classes

    return Parentheses(
        labelled(order[test // 2 :]),
        labelled(order[: test // 2]),
        tokens_of(drawn(equal_count_strings, is_not_balanced, test)),
    )


Strings = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
Condition = Callable[[np.ndarray], np.ndarray]


def distinct(
    draw: Callable[[np.ndarray], np.ndarray],
    keep: Condition,
    lengths: np.ndarray,
    lengths_again: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """A string for each length `[strings, longest]`, none twice; lengths whose draw fails are drawn again."""
    found: dict[bytes, np.ndarray] = {}
    idle = 0
    while len(lengths):
        strings = draw(lengths)
        failed = ~keep(strings)
        before = len(found)
        for at, string in enumerate(strings):
            failed[at] |= string.tobytes() in found
            if not failed[at]:
                found[string.tobytes()] = string
        idle = 0 if len(found) > before else idle + 1
        if idle == ROUNDS_WITHOUT_NEW:
            raise ValueError(f"there are no {len(lengths)} more such strings: ask for fewer, or for longer ones")
        lengths = lengths_again(lengths[failed])
    return np.array(list(found.values()))


def balanced_strings(lengths: np.ndarray, longest: int, generator: np.random.Generator) -> np.ndarray:
    """Balanced strings, uniform among those of each length (Arnold & Sleep 1980).

    Of the strings that lead from elevation h to 0 in r steps, h(r + h + 2) / (2r(h + 1)) begin by closing.
    """
    steps = np.zeros((len(lengths), longest), np.int8)
    elevation = np.zeros(len(lengths))
    for place in range(longest):
        left = lengths - place
        closing = elevation * (left + elevation + 2) / (2 * np.maximum(left, 1) * (elevation + 1))
        steps[:, place] = np.where(left > 0, np.where(generator.random(len(lengths)) < closing, -1, 1), 0)
        elevation += steps[:, place]
    return steps


def random_strings(lengths: np.ndarray, longest: int, generator: np.random.Generator) -> np.ndarray:
    """Strings of random parentheses."""
    steps = generator.choice(np.array([-1, 1], np.int8), (len(lengths), longest))
    return np.where(np.arange(longest) < lengths[:, None], steps, 0).astype(np.int8)


def equal_count_strings(lengths: np.ndarray, longest: int, generator: np.random.Generator) -> np.ndarray:
    """As many "(" as ")", in random order."""
    within = np.arange(longest) < lengths[:, None]
    rank = np.where(within, generator.random(within.shape), 2.0).argsort(1).argsort(1)
    return np.where(within, np.where(rank < lengths[:, None] // 2, 1, -1), 0).astype(np.int8)


def lengths_of(steps: np.ndarray) -> np.ndarray:
    """How many parentheses each string has."""
    return np.abs(steps).sum(1, dtype=np.int64)


def by_length(steps: np.ndarray) -> np.ndarray:
    """The strings, shorter ones first."""
    return steps[np.argsort(lengths_of(steps), kind="stable")]


@checked
def elevations(steps: np.ndarray) -> np.ndarray:
    """Sums of steps up to each place, `[strings, longest]`; after the end they stay as they are."""
    return steps.cumsum(1, dtype=np.int64)


def has_unequal_counts(steps: np.ndarray) -> np.ndarray:
    """Which strings do not end at elevation 0."""
    return elevations(steps)[:, -1] != 0


def is_balanced(steps: np.ndarray) -> np.ndarray:
    """Which strings end at elevation 0 and are never below."""
    return ~has_unequal_counts(steps) & (elevations(steps).min(1) >= 0)


def is_not_balanced(steps: np.ndarray) -> np.ndarray:
    """The other strings."""
    return ~is_balanced(steps)


def tokens_of(steps: np.ndarray) -> Tensor:
    """Steps `[strings, longest]` as tokens `[strings, longest + 2]`."""
    tokens = np.zeros((len(steps), steps.shape[1] + 2), np.int64)
    tokens[:, 0] = START
    tokens[:, 1:-1] = np.choose(steps + 1, (CLOSE, PAD, OPEN))
    np.put_along_axis(tokens, 1 + lengths_of(steps)[:, None], END, 1)
    return torch.from_numpy(tokens)


@checked
def steps_of(tokens: Tensor) -> np.ndarray:
    """The strings that tokens are of."""
    inner = tokens[:, 1:-1].numpy()
    return ((inner == OPEN).astype(np.int8) - (inner == CLOSE)).astype(np.int8)


def kinds_of(task: Parentheses) -> np.ndarray:
    """What a training string is to the rules: where it shows that it is wrong, and how far from 0 it ends."""
    steps = steps_of(task.training[0])
    heights = elevations(steps)
    last = np.take_along_axis(steps, (steps != 0).sum(1, keepdims=True) - 1, 1)[:, 0]
    begins, ends, dips = steps[:, 0] < 0, last > 0, heights.min(1) < 0
    where = np.select(
        [begins & ends, begins, ends & dips, dips],
        ["wrong at both ends", "begins wrong", "ends wrong and dips", "dips within"],
        "never below 0",
    )
    far = np.minimum(np.abs(heights[:, -1]), FARTHEST)
    names = np.array([f"{each}, by {by}{'+' if by == FARTHEST else ''}" for each, by in zip(where, far, strict=True)])
    return np.where(task.training[1].numpy() == 1, "balanced", names)
