"""The induction recipe at toy size: complete results or none."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
import xarray as xr

import patterning_fast as pf
from patterning_fast.cli import main
from patterning_fast.recipes.controls import alike, dealt_out, non_negative
from patterning_fast.recipes.induction.estimates import scene_of, with_permutations
from patterning_fast.recipes.induction.findings import TEMPLATE, against_goals
from patterning_fast.recipes.induction.on_the_way import AGAIN, estimator, trained_on_the_way
from patterning_fast.recipes.induction.runs import initial_model, trained, without_best_heads
from patterning_fast.recipes.induction.settings import CONTROLS, SOURCES, Settings
from patterning_fast.recipes.induction.sources import (
    DAMPING,
    Scene,
    by_compression,
    by_gradient,
    by_influence,
    by_score,
    loss_said_again,
    responses_of,
    to_all,
)
from patterning_fast.recipes.induction.tables import crossing
from patterning_fast.recipes.recipe import DEMO, read_recipe, run
from patterning_fast.recipes.templates import said as said_by

pytestmark = pytest.mark.filterwarnings("ignore:χ of .* is geometry of a Gaussian ball")  # as of a toy run

COMMAND = [sys.executable, "-m", "patterning_fast.cli", "demo", "--quick", "--out"]
QUICK = read_recipe(DEMO, quick=True).settings
RECIPES = Path(__file__).parents[2] / "recipes"
PICTURES = {"ratios.png", "weights.png", "curves.png", "mode.png", "classes.png"}
FILES = {"results.json", "weights.parquet", "curves.parquet", "report.html"} | PICTURES


def test_quick_demo_writes_everything(tmp_path: Path) -> None:
    """On a terminal of ASCII, without a home to write to; into a log of few lines."""
    out = tmp_path / "new" / "demo"
    surroundings = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "HOME": "/proc/nobody"}
    done = subprocess.run([*COMMAND, str(out)], env=os.environ | surroundings, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"\r" not in done.stderr
    assert len(done.stderr) < 2000
    assert done.stderr.isascii()
    printed = done.stdout.decode("ascii")
    assert "rho of what induction predicts" in printed
    assert {path.name for path in out.iterdir()} - PICTURES == FILES - PICTURES
    assert list(out.parent.iterdir()) == [out]
    results = json.loads((out / "results.json").read_text())
    runs = [row["run"] for row in results["tables"]["Runs"]]
    assert runs == ["base", "amplified", "suppressed", "random", "loss-matched"]
    assert pyarrow.parquet.read_table(out / "curves.parquet").num_rows == 5 * 5
    weights = pyarrow.parquet.read_table(out / "weights.parquet").to_pydict()
    assert weights.keys() == {"context", "class", "amplified", "suppressed", "random", "loss-matched"}
    for name in ("amplified", "suppressed", "random", "loss-matched"):
        assert len(weights[name]) == 128
        assert np.mean(weights[name]) == pytest.approx(1.0, abs=1e-6)
        assert min(weights[name]) >= 0
    for name in ("random", "loss-matched"):
        assert sorted(weights[name]) == sorted(weights["amplified"])
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "ρ of what induction predicts" in page
    assert page.count("data:image/png;base64,") >= 4
    assert not re.search(r"<(script|link|iframe)|(src|href)=.?http", page)  # nothing beside the file itself
    assert "over base" in printed
    # A second run replaces the first; a folder of something else is left alone.
    assert main(["demo", "--quick", "--out", str(out), "--seed", "1"]) == 0
    assert json.loads((out / "results.json").read_text())["seeds"] == [1]


def test_folders_of_others_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 1
    assert "is not a folder of earlier results; choose another --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody can write to: /proc")
def test_a_read_only_place_is_refused_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    assert main(["demo", "--quick", "--out", "/proc/demo"]) == 1
    assert "cannot write 64 MiB of results to /proc/demo: " in capsys.readouterr().err
    assert time.monotonic() - started < 1.0


def test_a_full_disk_is_refused_before_any_work(tmp_path: Path) -> None:
    """A limit on file size stands for the full disk: the system refuses the space either way."""
    result = subprocess.run(
        [*COMMAND, str(tmp_path / "demo")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "cannot write 64 MiB of results to" in result.stderr
    assert "base runs" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("parts", "stage"), [(0, "training"), (1, "sampling"), (2, "retraining")])
def test_ctrl_c_leaves_parts_to_go_on_from(
    parts: int, stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = subprocess.Popen(
        [*COMMAND, str(tmp_path / "demo")],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        # Shells start what runs in the background deaf to Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "demo.parts" / "settings").exists() or len(list(tmp_path.glob("demo.parts/*.pt"))) < parts:
        assert process.poll() is None, f"ended before {stage}"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"interrupted: the same command goes on from the parts that are done" in said
    assert [path.name for path in tmp_path.iterdir()] == ["demo.parts"]
    if stage == "retraining":
        assert main(["demo", "--quick", "--out", str(tmp_path / "demo")]) == 0
        assert "base runs" not in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_control_deals_weights_out_within_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(30, 7, generator=generator)
    classes = torch.randint(4, (30, 7), generator=generator)
    found = dealt_out(weights, 1, classes)
    assert not torch.equal(found, weights)
    for number in range(4):
        own = classes == number
        assert torch.equal(found[own].sort().values, weights[own].sort().values)
        assert abs(float(torch.corrcoef(torch.stack((found[own], weights[own])))[0, 1])) < 0.5


def test_non_negative_weights_of_a_strength() -> None:
    direction = torch.randn(5000, generator=torch.Generator().manual_seed(0)).double()
    rho = non_negative(direction, 0.8)
    assert float(rho.mean()) == pytest.approx(1.0)
    assert float((rho - 1).square().mean().sqrt()) == pytest.approx(0.8, rel=1e-6)
    assert float(rho.min()) == 0.0


def test_classes_are_of_like_values() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    classes = alike(values, 4)
    assert classes.bincount().tolist() == [100, 100, 100, 100]
    order = [(float(values[classes == each].min()), float(values[classes == each].max())) for each in range(4)]
    assert all(before[1] < after[0] for before, after in pairwise(order))


def scene() -> Scene:
    """A seed's text and a model that has not been trained."""
    parameters = initial_model(QUICK, 96, 0).state_dict()
    return scene_of(QUICK, 0, {"parameters": parameters, "early": parameters})


def test_compression_finds_what_comes_again() -> None:
    here = scene()
    found, classes = by_compression(here), here.text.classes
    assert float(found[classes == "repeats"].mean()) > float(found[classes == "boilerplate"].mean()) + 2


def test_gradient_prefers_the_loss_it_is_made_for() -> None:
    """Contexts that are the strings said again themselves, beside text: a step down their loss lowers theirs."""
    here = scene()
    strings = here.text.strings.tokens
    text = replace(here.text, tokens=torch.cat((strings, here.text.tokens[here.text.classes == "boilerplate"])))
    found = by_gradient(replace(here, text=text), early=False)
    assert float(found[: len(strings)].mean()) > float(found[len(strings) :].mean())


def test_influence_is_by_the_inverse_of_the_fisher_information() -> None:
    """Against the matrix itself, inverted; the tolerance is that of differences in float32."""
    here = scene()
    strings, model = here.text.strings, here.model
    scores = strings.head_scores(model)
    head = max(scores, key=lambda name: scores[name]["induction"])
    owned = model.attention_head_parameters()[head]

    def gradient(value: torch.Tensor) -> torch.Tensor:
        found = torch.autograd.grad(value, [model.get_parameter(name) for name in owned], materialize_grads=True)
        return torch.cat([each.flatten()[at] for each, at in zip(found, owned.values(), strict=True)]).double()

    every = torch.stack([gradient(pf.losses.next_token(model, each[None]).mean()) for each in here.text.tokens])
    known = every[: len(here.known)]
    fisher = known.T @ known / len(known)
    damped = fisher + DAMPING * fisher.diagonal().mean() * torch.eye(len(fisher), dtype=torch.float64)
    expected = -every @ torch.linalg.solve(damped, gradient(strings.observable("induction", head)(model)))
    assert float(torch.corrcoef(torch.stack((by_influence(here), expected)))[0, 1]) > 0.99


def test_a_run_plans_on_the_way() -> None:
    """Weights are 1 until the first plan; χ of contexts that are all known is that of the response itself."""
    settings = replace(QUICK, score_contexts=QUICK.contexts, replanned=(20,))
    base, found = trained(settings, 0, None)["history"], trained_on_the_way(settings, 0)
    assert found["history"][:3] == base[:3]
    assert found["history"][3:] != base[3:]
    (row,) = found["decisions"]
    assert row["step"] == 20
    assert 0.5 < row["strength"] <= settings.strength
    assert row["measured"] == pytest.approx(base[2]["loss_on_repeats"])
    assert row["predicted"] < 0
    here = scene()
    here = replace(here, settings=settings)
    value, chi = estimator(settings, 0)(here.model)
    response = responses_of(here, True, **{AGAIN: loss_said_again(here.text.strings)})
    by_context = pf.aggregate(response, np.arange(settings.contexts), name="context")
    assert np.allclose(chi["chi"], by_context["chi"], rtol=1e-3, atol=1e-3 * float(by_context["chi"].std()))
    assert np.allclose(chi["chi_error"], by_context["chi_error"], rtol=0.05)
    assert float(value[AGAIN][0]) == pytest.approx(here.text.strings.loss_on_repeats(here.model))


def test_sources_that_are_not_known_are_refused() -> None:
    with pytest.raises(ValueError, match=r"judged must be among .*, labels, .*; got on the way"):
        Settings(judged=("on the way",))
    with pytest.raises(ValueError, match=r"retrained must be among .*; got charm"):
        Settings(retrained=("charm", "random"))


def test_values_of_all_known_contexts_are_their_own() -> None:
    """And those of others are what is fitted to them."""
    here = replace(scene(), settings=replace(QUICK, chi_contexts=128))
    generator = np.random.default_rng(0)
    chi = xr.Dataset({"chi": (("component", "token"), generator.normal(size=(3, 128 * 32)))})
    wanted = chi["chi"].values.reshape(3, 128, -1).mean(2).T @ np.array([1.0, -2.0, 0.5])
    found = to_all(here, here.model, chi, wanted).numpy()
    assert np.allclose(found - found.mean(), wanted - wanted.mean(), atol=1e-6)
    few = chi.isel(token=slice(64 * 32))
    assert len(to_all(here, here.model, few, wanted[:64])) == 128


def test_scores_of_a_seed_go_into_weights() -> None:
    """χ of a score is a response: its contexts differ, and early is of the early model."""
    here = scene()
    found = by_score(here, "induction", early=False)
    assert torch.equal(found, by_score(here, "induction", early=True))  # the same model here
    assert float(found.std()) > 0


def test_a_model_without_its_heads_is_told() -> None:
    here = scene()
    loss = here.text.strings.loss_on_repeats(without_best_heads(here.model, here.text.strings))
    assert loss != here.text.strings.loss_on_repeats(here.model)


def test_permutations_tell_a_correlation_from_chance() -> None:
    generator = np.random.default_rng(0)
    one, noise = generator.normal(size=30), generator.normal(size=30)
    assert with_permutations(one, one + 0.1 * noise, 0)["p"] == 1e-4
    assert with_permutations(one, noise, 0)["p"] > 0.05


def test_text_of_domains_with_chi_on_some_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU recipe's way through, at toy size: tokens of domains, and weights for contexts that χ is not of."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = tmp_path / "text"
    text.mkdir()
    for name, phrase in (
        ("prose", "the quick brown fox jumps over the lazy dog, said {}. "),
        ("sums", "{} + 1 > {}\n"),
    ):
        (text / f"{name}.txt").write_text("".join(phrase.format(number, number) for number in range(2000)))
    file = tmp_path / "small.toml"
    quick = (RECIPES / "induction-gpu.toml").read_text().partition("[quick]")[2]
    quick = quick.replace('"found"', json.dumps(str(text)))
    file.write_text(f'recipe = "patterning_fast.recipes.induction"\n[settings]{quick}')
    made = read_recipe(file, quick=False)
    run(made, tmp_path / "out", "by hand")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    for row in results["tables"]["Sources of weights"]:
        assert row["strength"] == pytest.approx(made.settings.strength, rel=1e-3)
        assert {"ρ: prose", "ρ: sums"} <= row.keys()
    weights = pyarrow.parquet.read_table(tmp_path / "out" / "weights.parquet")
    assert weights.num_rows == made.settings.contexts
    assert read_recipe(RECIPES / "induction-gpu.toml", quick=False).settings.source == "mini-pile"


def test_the_early_model_is_the_base_run_s() -> None:
    settings = replace(QUICK, train_steps=12, early_step=10)
    found = trained(settings, 0, None)
    shorter = trained(replace(settings, train_steps=10), 0, None)
    assert all(torch.equal(found["early"][name], each) for name, each in shorter["parameters"].items())
    assert not all(torch.equal(found["early"][name], each) for name, each in found["parameters"].items())


def history(scores: list[float]) -> list[dict[str, float]]:
    return [{"step": 10.0 * index, "induction_score": score} for index, score in enumerate(scores)]


def test_crossing_is_interpolated() -> None:
    assert crossing(history([0.0, 0.2, 0.6, 0.4]), 0.3) == pytest.approx(12.5)
    assert crossing(history([0.0, 0.1]), 0.3) != crossing(history([0.0, 0.1]), 0.3)  # NaN


def test_words_say_what_the_table_says() -> None:
    nan = float("nan")
    settings = Settings(seeds=(0, 1))
    formed = {
        "base": [100.0, 200.0],
        "amplified": [50.0, 160.0],
        "suppressed": [nan, 300.0],
        "random": [105.0, 250.0],
        "loss-matched": [nan, nan],
    }

    def said(**changes: list[float]) -> str:
        source = {"ρ of what induction predicts": 1.5}
        values = against_goals(settings, formed | changes) | {
            "settings": settings, "sources": dict.fromkeys(("amplified", *SOURCES, *CONTROLS), source),
            "control_words": CONTROLS, "source_words": {}, "found": {}, "radii": {}, "agreeing": [], "compared": 0,
            "rows": {"base": dict.fromkeys(("the same without its best heads", "final loss on repeats"), "1")},
            "settled": True, "reliability": {}, "blind": [0.9, 1.0],
        }  # fmt: skip
        return " ".join(said_by(TEMPLATE, values)["verdict"])

    text = said()
    assert "The base runs formed it at step 100, 200 of 2000" in text
    assert "amplified runs formed the circuit 1.25 to 2.00 times as early (goal 1.4: 1 of 2 seeds)" in text
    assert "1.50 times as late at least, 1 of 2 never within the run (goal 2: 1 of 2)" in text
    assert (
        "Control random, the weights by the mode dealt out at random: 1.05 to 1.25 times the base run's step;" in text
    )
    assert "within 15% in 1 of 2 seeds" in text
    assert "among contexts of like loss: never within the run; within 15% in 0 of 2 seeds" in text
    assert "never within the run (goal 2: 2 of 2)" in said(suppressed=[nan, nan])
    assert "nothing can be said" in said(base=[100.0, nan])
