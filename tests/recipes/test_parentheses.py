"""Strings of parentheses against what is known of them, and the recipe at toy size."""

from __future__ import annotations

import json
from collections import Counter
from itertools import product
from math import comb
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from patterning_fast.cli import main
from patterning_fast.recipes.parentheses import kinds_of
from patterning_fast.tasks.parentheses import (
    CLOSE,
    END,
    OPEN,
    PAD,
    START,
    balanced_strings,
    equal_count_strings,
    is_balanced,
    parentheses,
    steps_of,
    tokens_of,
)


def nests(string: str) -> bool:
    """Whether taking out "()" again and again leaves nothing."""
    while "()" in string:
        string = string.replace("()", "")
    return not string


def texts(tokens: Tensor) -> list[str]:
    """Strings of tokens, by another way than the task's own."""
    letters = {PAD: "", START: "<", END: ">", OPEN: "(", CLOSE: ")"}
    return ["".join(letters[token] for token in row) for row in tokens.tolist()]


@pytest.mark.parametrize("half", [1, 3, 4])
def test_balanced_strings_are_uniform(half: int) -> None:
    """All strings of the length are tried: the balanced are Catalan many, and come equally often."""
    length, catalan = 2 * half, comb(2 * half, half) // (half + 1)
    every = ["".join(each) for each in product("()", repeat=length)]
    assert sum(map(nests, every)) == catalan
    drawn = balanced_strings(np.full(400 * catalan, length), length + 2, np.random.default_rng(half))
    counts = Counter(text[1:-1] for text in texts(tokens_of(drawn)))
    assert set(counts) == set(filter(nests, every))
    if catalan > 1:
        assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_equal_counts_are_uniform() -> None:
    drawn = equal_count_strings(np.full(400 * comb(6, 3), 6), 8, np.random.default_rng(0))
    counts = Counter(texts(tokens_of(drawn)))
    assert len(counts) == comb(6, 3)
    assert all(text.count("(") == text.count(")") == 3 for text in counts)
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_strings_are_classed_and_kept_apart() -> None:
    task = parentheses(training=120, test=40, longest=12, seed=1)
    (training, classes), (test, of_test) = task.training, task.test
    known, unknown, others = texts(training), texts(test), texts(task.equal_counts)
    every = known + unknown + others
    assert len(set(every)) == len(every) == 120 + 40 + 40
    assert all(text[0] == "<" and text[-1] == ">" and 4 <= len(text) <= 14 for text in every)
    for texts_of, labels in ((known, classes), (unknown, of_test)):
        by_class = [
            [text[1:-1] for text, label in zip(texts_of, labels.tolist(), strict=True) if label == at] for at in (0, 1)
        ]
        assert all(nests(text) for text in by_class[1])
        assert all(text.count("(") != text.count(")") for text in by_class[0])
        assert Counter(map(len, by_class[0])) == Counter(map(len, by_class[1]))
    assert all(text.count("(") == text.count(")") and not nests(text[1:-1]) for text in others)
    assert texts(tokens_of(steps_of(training))) == known
    assert torch.equal(parentheses(120, 40, 12, seed=1).training[0], training)
    assert not torch.equal(parentheses(120, 40, 12, seed=2).training[0], training)


def test_all_strings_there_are_and_no_more() -> None:
    """Up to length 6 there are 1 + 2 + 5 balanced strings."""
    task = parentheses(training=12, test=4, longest=6, seed=0)
    assert int(task.training[1].sum() + task.test[1].sum()) == 8
    with pytest.raises(ValueError, match="there are no 1 more such strings"):
        parentheses(training=14, test=4, longest=6, seed=0)
    with pytest.raises(ValueError, match="sizes must be even, and longest at least 4, got 12, 3 and 6"):
        parentheses(training=12, test=3, longest=6, seed=0)


class Rule(nn.Module):
    """A model that classes strings by a rule."""

    def __init__(self, nested: bool) -> None:
        super().__init__()
        self.nested = nested

    def forward(self, tokens: Tensor) -> Tensor:
        steps = steps_of(tokens)
        says = is_balanced(steps) if self.nested else steps.sum(1) == 0
        return nn.functional.one_hot(torch.from_numpy(says).long(), 2).float()


def test_two_rules_differ_out_of_distribution_alone() -> None:
    task = parentheses(training=120, test=40, longest=12, seed=3)
    assert task.accuracies(Rule(nested=True)) == {"test accuracy": 1.0, "OOD accuracy": 1.0}
    assert task.accuracies(Rule(nested=False)) == {"test accuracy": 1.0, "OOD accuracy": 0.0}


def test_kinds_of_strings() -> None:
    task = parentheses(training=300, test=20, longest=12, seed=0)
    for kind, text, label in zip(kinds_of(task), texts(task.training[0]), task.training[1].tolist(), strict=True):
        elevation = np.cumsum([1 if letter == "(" else -1 for letter in text[1:-1]])
        if label:
            assert kind == "balanced"
            continue
        assert kind.startswith("never below 0") == bool(elevation.min() >= 0)
        assert kind.startswith("ends below 0") == bool(elevation[-1] < 0)
        assert kind.endswith("by 2") == (abs(elevation[-1]) == 2)


def test_quick_recipe_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "parentheses"
    recipe = Path(__file__).parents[2] / "recipes" / "parentheses.toml"
    assert main(["run", str(recipe), "--quick", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert [row["weights"] for row in results["tables"]["Accuracy out of distribution"]] == [
        "base", "Nested", "Nested, shuffled", "Nested, labels alone",
        "Equal-Count", "Equal-Count, shuffled", "Equal-Count, labels alone",
    ]  # fmt: skip
    assert "The goal is" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {
        "results.json", "report.html", "outcomes.png", "contributions.png", "runs.parquet", "weights.parquet",
    }  # fmt: skip
