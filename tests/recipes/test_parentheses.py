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
import xarray as xr
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from parentheses.estimates import averaged, by_n_grams
from parentheses.runs import new_model, task_of
from parentheses.second_order import second_order
from parentheses.settings import ADJOINT, FIT, LOW_LOSS, OOD, Settings
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
from parentheses.weights import all_weights, by_hand, fit_of, on_strings, plans, weights_at_random
from parentheses.yardstick import yardstick
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


pytestmark = pytest.mark.filterwarnings("ignore:(χ of|finite differences are) .*:UserWarning")  # as of a toy run


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


SMALL = Settings(strings=400, test_strings=100, longest=16)


def test_scores_are_means_over_kinds_and_no_model_drowns_the_others() -> None:
    generator = np.random.default_rng(0)
    kinds = kinds_of(parentheses(400, 100, 16, seed=0))
    names, codes, counts = np.unique(kinds, return_inverse=True, return_counts=True)
    of_kinds = generator.normal(size=len(names))
    scores = of_kinds[codes] * np.array([1.0, 2.0, 3.0])[:, None]
    found = averaged(SMALL, scores, 10.0)
    groups = found["chi_group"].values[0]
    centred = of_kinds - of_kinds @ counts / counts.sum()
    # of sizes 1, 2 and 3 times the same, the last is scaled down to the median one
    assert np.allclose(groups, centred * np.array([1.0, 2.0, 2.0])[:, None])
    assert np.allclose(found["chi"].values[0], centred * 5 / 3)
    assert np.allclose(found["chi_error"].values[0], np.abs(centred) * np.std([1, 2, 2], ddof=1) / np.sqrt(3))
    assert found["count"].values.tolist() == counts.tolist()


def scored(chi: list[float], counts: list[int]) -> xr.Dataset:
    """A score of kinds, known to 1 % of its size."""
    generator = np.random.default_rng(0)
    groups = np.array(chi) + 0.01 * generator.normal(size=(6, len(chi)))
    kinds = ["balanced", *(f"kind {number}" for number in range(1, len(chi)))]
    return xr.Dataset(
        {
            "chi": (("component", "kind"), groups.mean(0)[None]),
            "chi_error": (("component", "kind"), groups.std(0, ddof=1)[None] / np.sqrt(6)),
            "chi_group": (("component", "group", "kind"), groups[None]),
        },
        coords={"component": [OOD], "kind": kinds, "count": ("kind", counts)},
        attrs={"n_beta": 1.0},
    )


def test_plans_move_unbalanced_strings_alone() -> None:
    score = scored([0.5, 3.0, 1.0, -1.0], [10, 4, 4, 2])
    up, down = (plan.weights.values for plan in plans(score, 0.3).values())
    assert up[0] == pytest.approx(1.0, abs=1e-9)
    assert up[1] > 1 > up[2] > up[3]  # the mean over unbalanced strings is 1.4
    assert up + down == pytest.approx(np.full(4, 2.0))
    assert (up - 1) @ score["count"].values == pytest.approx(0.0, abs=1e-9)


def test_weights_are_named_by_way_solution_and_strength_and_some_have_controls() -> None:
    task = parentheses(400, 100, 16, seed=0)
    kinds, labels = kinds_of(task), task.training[1].numpy()
    names, counts = np.unique(kinds, return_counts=True)
    score = scored(np.linspace(-1, 1, len(names)).tolist(), counts.tolist()).assign_coords(kind=names)
    weights, refused = all_weights(SMALL, {ADJOINT: score, FIT: score}, kinds, labels)
    assert not refused
    assert len(weights) == 4 + 4 + 2 + 1  # two strengths, their controls, one strength, by hand
    for name, each in weights.items():
        assert each.mean() == pytest.approx(1.0, abs=1e-6), name
        assert each.min() >= SMALL.least_weight - 1e-9
    plan = weights["Nested, by the adjoint of training, 1"]
    shuffled = weights["Nested, by the adjoint of training, 1, shuffled"]
    assert np.array_equal(np.sort(plan), np.sort(shuffled))
    assert not np.array_equal(plan, shuffled)
    balance = weights["Nested, by the adjoint of training, 1, labels alone"]
    assert len(np.unique(balance)) == 2


def test_n_grams_are_compared_by_their_cosine() -> None:
    task = parentheses(400, 100, 16, seed=0)

    def unit(tokens: list[int]) -> Counter[tuple[int, ...]]:
        counts = Counter(window for window in zip(tokens, tokens[1:], tokens[2:], strict=False) if any(window))
        length = np.sqrt(sum(count**2 for count in counts.values()))
        return Counter({window: count / length for window, count in counts.items()})

    others = [unit(row) for row in task.equal_counts.tolist()]
    for at in (0, 17, 333):
        own = unit(task.training[0][at].tolist())
        expected = np.mean([sum(own[window] * other[window] for window in own) for other in others])
        assert by_n_grams(SMALL)[at] == pytest.approx(expected)


def test_weights_at_random_come_in_pairs_and_have_mean_1() -> None:
    kinds = np.array(["a"] * 5 + ["b"] * 3 + ["c"] * 2)
    weights = weights_at_random(Settings(fit_runs=40, fit_spread=0.5), kinds)
    assert weights.shape == (40, 3)
    assert np.allclose(weights[:20] * weights[20:], 1.0)
    # 60 independent logarithms know their deviation to 9 %.
    assert np.log(weights).std() == pytest.approx(0.5, rel=0.3)
    rho = on_strings(weights, kinds)
    assert np.allclose(rho.mean(1), 1.0)
    assert np.allclose(rho[:, 5] / rho[:, 0], weights[:, 1] / weights[:, 0])


def test_the_yardstick_finds_what_runs_were_made_of() -> None:
    """Runs whose accuracy goes up with strings of one kind and down with another's."""
    kinds = np.repeat(["a", "b", "balanced", "c"], [50, 30, 100, 20])
    settings = Settings(fit_runs=96)
    weights = weights_at_random(settings, kinds)
    rho = on_strings(weights, kinds)
    generator = np.random.default_rng(0)
    share = np.stack([rho[:, kinds == kind].sum(1) for kind in "ab"], 1) / rho[:, kinds != "balanced"].sum(1)[:, None]
    ood = torch.from_numpy(0.5 + 0.4 * share[:, 0] - 0.4 * share[:, 1] + 0.02 * generator.standard_normal(96))
    fit = fit_of(weights, [{OOD: some[:, None].expand(-1, 4)} for some in ood.split(24)], kinds)
    assert fit["weights"].shape == (96, 4)
    counts = fit["count"].values.tolist()

    def score(*values: float) -> xr.Dataset:
        order = [2, 0, 1, 3]  # `scored` has balanced first
        made = scored([values[at] for at in order], [counts[at] for at in order])
        return made.assign_coords(kind=np.array(["a", "b", "balanced", "c"])[order]).sel(kind=fit["kind"])

    right, none = score(1.0, -1.0, 0.0, 0.0), score(-0.5, -0.5, 0.0, 2.0)
    rows = {row["scored"]: row for row in yardstick(fit, {FIT: fit, "right": right, LOW_LOSS: none})}
    for name in ("right", FIT, f"{FIT}, cross-validated"):
        assert rows[name]["rank correlation over runs"] > 0.9, name
    assert rows["right"]["r, low loss taken out"] > 0.8
    assert abs(rows[LOW_LOSS]["rank correlation over runs"]) < 0.5
    assert rows["right"]["± error"] < 0.05
    assert rows["at random"]["± error"] > 0.2


def test_lambda_of_second_order_is_that_of_the_hessian() -> None:
    """Margins: against the Hessian of half their mean squared change, by autograd. The loss: its Fisher information is
    the mean over strings and answers of squared gradients, each by its chance."""
    settings = Settings(strings=60, test_strings=20, longest=14, width=8, heads=2)
    model = new_model(settings, 0)
    vector = parameters_to_vector(model.parameters()).detach()
    inputs, labels = task_of(settings).training
    shapes = {name: each.shape for name, each in model.named_parameters()}

    def logits(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return functional_call(model, named, (inputs,))

    def squares(flat: Tensor) -> Tensor:
        margins = logits(flat) @ torch.tensor([1.0, -1.0])
        return (margins - margins.detach()).square().mean() / 2

    fisher = torch.zeros(len(vector), len(vector), dtype=torch.float64)
    chances = logits(vector).softmax(1).detach().double()
    slopes = torch.autograd.functional.jacobian(lambda flat: logits(flat).log_softmax(1), vector).double()
    for answer in (0, 1):
        fisher += slopes[:, answer].T @ (chances[:, answer, None] * slopes[:, answer]) / len(labels)
    found = second_order(settings, vector)
    for name, hessian in (
        ("λ of the loss", fisher), ("λ of margins", torch.autograd.functional.hessian(squares, vector).double()),
    ):  # fmt: skip
        eigenvalues = torch.linalg.eigvalsh(hessian).clamp(min=0)
        for when, n_beta in (("", settings.llc_n_beta), (", 4 × nβ", 4 * settings.llc_n_beta)):
            scaled = n_beta * eigenvalues
            expected = float((scaled / (scaled + settings.llc_localization)).sum() / 2)
            assert found[name + when] == pytest.approx(expected, rel=1e-3), name  # the Hessian is of float32


def test_quick_recipe_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "parentheses"
    recipe = Path(__file__).parents[2] / "recipes" / "parentheses.toml"
    assert main(["run", str(recipe), "--quick", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    said = " ".join(results["verdict"])
    names = [row["weights"] for row in results["tables"]["Accuracy out of distribution"]]
    for way in ("by the adjoint of training", "by χ of test loss", "by low loss", "by whole runs", "by λ̂"):
        assert (f"Nested, {way}, 1" in names) != (f"Weights {way} were not made" in said)
    assert "(goal " in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {
        "results.json", "report.html", "outcomes.png", "yardstick.png", "scores.png", "llc.png", "random_runs.parquet",
        "runs.parquet", "weights.parquet",
    }  # fmt: skip
