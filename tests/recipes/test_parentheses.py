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

import patterning_fast as pf
from parentheses.estimates import averaged
from parentheses.findings import in_agreement
from parentheses.settings import BASE, LLC, Settings, named
from parentheses.strings import (
    CLOSE,
    END,
    OPEN,
    PAD,
    START,
    balanced_strings,
    equal_count_strings,
    is_balanced,
    kinds_of,
    parentheses,
    steps_of,
    tokens_of,
)
from parentheses.tables import expected_rows
from parentheses.weights import by_hand, early_plans, on_strings, response_of, response_plans, weights_at_random
from patterning_fast.cli import main


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
    kinds = kinds_of(task)
    for kind, text, label in zip(kinds, texts(task.training[0]), task.training[1].tolist(), strict=True):
        elevation = np.cumsum([1 if letter == "(" else -1 for letter in text[1:-1]])
        if label:
            assert kind == "balanced"
            continue
        assert kind.startswith("never below 0") == bool(elevation.min() >= 0)
        assert kind.startswith(("wrong at both ends", "begins wrong")) == (text[1] == ")")
        assert kind.startswith(("wrong at both ends", "ends wrong")) == (text[-2] == "(" and elevation.min() < 0)
        assert kind.endswith("by 2") == (abs(elevation[-1]) == 2)
    assert len(set(kinds)) == 11


def test_weights_by_hand_leave_the_balance_of_labels() -> None:
    task = parentheses(training=300, test=20, longest=12, seed=0)
    kinds, labels = kinds_of(task), task.training[1].numpy()
    weights = by_hand(kinds)
    assert weights.mean() == pytest.approx(1.0)
    assert set(weights[labels == 1]) == {1.0}
    assert weights[labels == 0].mean() == pytest.approx(1.0)


def test_means_over_models_have_their_spread_for_error() -> None:
    parts = [
        {"kind": ["a", "b"], "count": torch.tensor([3, 1]), "n_beta": 2.0, "chi": torch.tensor(values), "llc": llc}
        for llc, values in enumerate(([1.0, 20.0], [3.0, 20.0], [2.0, 20.0]))
    ]
    found = averaged(parts)
    assert found["chi"].values.tolist() == [[2.0, 20.0]]
    assert found["chi_error"].values == pytest.approx(np.array([[1 / np.sqrt(3), 0.0]]))
    assert found["chi_group"].dims == ("component", "group", "kind")
    assert found["llc"].values.tolist() == [0.0, 1.0, 2.0]
    assert "contribution" not in found
    weights = pf.invert(found, {"full": 1.0}, strength=0.1).weights.values
    assert weights[0] < 1 < weights[1]
    assert 3 * weights[0] + weights[1] == pytest.approx(4.0)


def test_contributions_of_the_median_model() -> None:
    parts = [
        {"kind": ["a", "b"], "count": torch.tensor([3, 1]), "n_beta": 2.0, "chi": torch.zeros(2),
         "contribution": torch.tensor(values), "contribution_error": torch.tensor(errors)}
        for values, errors in (([1.0, 5.0], [0.1, 0.5]), ([9.0, 4.0], [0.9, 0.4]), ([2.0, 90.0], [0.2, 9.0]))
    ]  # fmt: skip
    found = averaged(parts)
    assert found["contribution"].values.ravel() == pytest.approx([2.0, 5.0])
    assert found["contribution_error"].values.ravel() == pytest.approx([0.2, 0.5])


def test_plans_by_early_answers_move_unbalanced_strings_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    chi = torch.tensor([0.5, 3.0, 1.0, -1.0])
    counts = torch.tensor([10, 4, 4, 2])
    parts = [
        {"kind": ["balanced", "a", "b", "c"], "count": counts, "n_beta": 2.0,
         "chi": chi + 0.01 * torch.randn(4, generator=generator)}
        for _ in range(5)
    ]  # fmt: skip
    up, down = (plan.weights.values for plan in early_plans(averaged(parts), 0.3).values())
    assert up[0] == pytest.approx(1.0, abs=1e-9)
    assert up[1] > 1 > up[2] > up[3]  # the mean over unbalanced strings is 1.4
    assert up + down == pytest.approx(np.full(4, 2.0))
    assert (up - 1) @ counts.numpy() == pytest.approx(0.0, abs=1e-9)


def test_weights_at_random_come_in_pairs_and_have_mean_1() -> None:
    kinds = np.array(["a"] * 5 + ["b"] * 3 + ["c"] * 2)
    weights = weights_at_random(Settings(response_runs=40, response_spread=0.5), kinds)
    assert weights.shape == (40, 3)
    assert np.allclose(weights[:20] * weights[20:], 1.0)
    # 60 independent logarithms know their deviation to 9 %.
    assert np.log(weights).std() == pytest.approx(0.5, rel=0.3)
    rho = on_strings(weights, kinds)
    assert np.allclose(rho.mean(1), 1.0)
    assert np.allclose(rho[:, 5] / rho[:, 0], weights[:, 1] / weights[:, 0])


def test_the_response_of_runs_is_planned_with_and_told_of_other_weights() -> None:
    """Runs whose accuracy goes up with strings of one kind and down with another's, and not with the third's."""
    kinds = np.repeat(["a", "b", "c"], [50, 30, 20])
    settings = Settings(response_runs=72, test_strings=100)
    weights = weights_at_random(settings, kinds)
    generator = np.random.default_rng(0)

    def accuracy(rho: np.ndarray) -> np.ndarray:
        share = np.stack([rho[:, kinds == kind].sum(1) for kind in "abc"], 1) / rho.sum(1, keepdims=True)
        return 0.5 + 0.4 * share[:, 0] - 0.4 * share[:, 1] + 0.02 * generator.standard_normal(len(rho))

    ends = torch.from_numpy(accuracy(on_strings(weights, kinds))).float()
    wrong = torch.from_numpy(0.2 * weights[:, 2] / weights.sum(1)).float()  # the task fails with strings of the third
    runs = [
        {"OOD accuracy": some[:, None].expand(-1, 4), "test accuracy": 1 - fails[:, None].expand(-1, 4)}
        for some, fails in zip(ends.split(24), wrong.split(24), strict=True)
    ]
    response = response_of(settings, weights, runs, kinds)
    assert response["weights"].shape == (72, 3)
    up, down = (plan.weights.values for plan in response_plans(response.sel(component=["OOD accuracy"]), 0.3).values())
    assert up[0] > up[2] > up[1]
    assert down[0] < down[2] < down[1]
    held = response_plans(response, 0.3)["Nested"]
    assert held.predicted["dmu"].sel(component="OOD accuracy") > 0.05
    assert abs(held.predicted["dmu"].sel(component="log test error")) < 0.02
    assert held.weights[0] > 1 > held.weights[1]
    others = {
        named(LLC, "Nested", strength): np.where(kinds == "a", 1 + strength, 1 - strength)
        for strength in (-0.4, -0.2, 0.2, 0.4)
    }
    ended = {
        name: {
            "OOD accuracy": torch.from_numpy(accuracy(np.tile(rho, (24, 1))))[:, None],
            "test accuracy": torch.ones(24, 1),
        }
        for name, rho in (others | {BASE: np.ones(100)}).items()
    }
    rows = expected_rows(response, kinds, others, ended)
    for row in rows:
        # Noise of 0.02 in 24 runs, twice, and of the fit.
        assert row["realised"] == pytest.approx(
            row["predicted"], abs=4 * (row["realised error"] + row["predicted error"])
        )
        assert abs(row["predicted"]) > 0.05
    assert in_agreement(rows)["rank"] == pytest.approx(1.0)


def test_quick_recipe_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "parentheses"
    recipe = Path(__file__).parents[2] / "recipes" / "parentheses.toml"
    assert main(["run", str(recipe), "--quick", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    said = " ".join(results["verdict"] + results["details"])
    every = ("λ̂", "χ at step 20", "response of training", "response of training, task held")
    ways = [way for way in every if f"Weights by {way} were not made" not in said]
    assert [row["weights"] for row in results["tables"]["Accuracy out of distribution"]] == [
        "base",
        *(
            f"{name}, by {way}, 1{control}"
            for way in ways
            for controls in (("",), *([(", shuffled", ", labels alone")] if way != "response of training" else []))
            for name in ("Nested", "Equal-Count")
            for control in controls
        ),
        "Equal-Count, by hand",
    ]  # fmt: skip
    assert "(goal " in capsys.readouterr().out
    files = {
        "results.json",
        "report.html",
        "outcomes.png",
        "contributions.png",
        "response.png",
        "response_runs.parquet",
        "runs.parquet",
        "weights.parquet",
    }
    assert {path.name for path in out.iterdir() if "verification" not in path.name} == files
