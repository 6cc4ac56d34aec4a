"""What cannot work is refused before the first step, in one sentence that says how to mend it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patterning_fast.cli import main
from patterning_fast.commands import folder
from tests.commands.toy import make

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    there = tmp_path_factory.mktemp("toy")
    make(there)
    return there


@pytest.fixture
def refused(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """The error of `estimate`, of the toy model and data but for some options; one line, and no folder."""
    monkeypatch.chdir(tmp_path)

    def error(**options: Any) -> str:
        given = {"model": toy / "my-model", "data": toy / "documents.jsonl", "out": "run"} | options
        assert main(["estimate", *(word for name, value in given.items()
                                   for word in (f"--{name.replace('_', '-')}", str(value)))]) == 1  # fmt: skip
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert not Path("run").exists()
        return said.removeprefix("error: ")

    return error


def test_a_tokenizer_of_another_model(toy: Path, refused: Callable[..., str]) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(toy / "my-model")
    size = len(tokenizer)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained("other")
    assert f"it has {size + 2} tokens, and the model takes {size}; name the one that" in refused(tokenizer="other")
    assert " holds no tokenizer (tokenizer.json): copy the model's own there, or name" in refused(tokenizer="other/..")
    Path("other/tokenizer.json").write_text("{}")
    assert "cannot read the tokenizer of " in refused(tokenizer="other")


@pytest.mark.parametrize(
    ("name", "content", "options", "said"),
    [
        ("a.jsonl", b'{"body": "a b c"}\n', {}, "a.jsonl has no column 'text'; it has body: name one with --column"),
        ("a.jsonl", b'{"text": "a b"}\nno\n', {}, "a.jsonl, line 2, is not JSON (Expecting value): mend or remove it"),
        ("a.jsonl", b"[1]\n", {}, "a.jsonl, line 1, is no object but list: give {...} a line"),
        ("a.jsonl", b'{"text": 5}\n', {}, "'text' of row 0 is neither text nor a list of token ids, but int"),
        ("a.jsonl", b'{"text": [1, 2, 9999]}\n', {}, "outside the model's vocabulary"),
        ("a.jsonl", b'{"text": ""}\n', {}, "no document of two tokens or more: there is nothing to predict"),
        ("a.parquet", b"PAR1", {}, "a.parquet is no Parquet file that can be read"),
        ("a.csv", b"text\n", {}, "a.csv holds no data that can be read: --data takes a file .jsonl, .parquet"),
        ("a.bin", bytes(41), {"length": 4}, "no whole number of uint16 or fewer than one sample of 5"),
        ("a.bin", bytes([1, 200] * 50), {"length": 4}, "read as uint16, holds the token 51,201, and the model knows"),
        ("a.bin", bytes(40), {"token_type": "int8"}, "token_type must be uint16 or uint32"),
        ("a.txt", b"a b c d", {"components": "l5h0"}, "LlamaForCausalLM has no head 'l5h0'; it has l0h0 to l0h1"),
        ("a.txt", b"a b " * 200, {"length": 99}, "longer than the model's context of 64"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_read(
    name: str, content: bytes, options: dict[str, Any], said: str, refused: Callable[..., str]
) -> None:
    pytest.importorskip("pyarrow")
    Path(name).write_bytes(content)
    assert said in refused(data=name, **options)


def test_settings_that_sampling_refuses_do_not_bind(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are written down, and give way to others as long as no chain has run."""
    monkeypatch.chdir(tmp_path)
    words = ["estimate", "--model", str(toy / "my-model"), "--data", str(toy / "documents.jsonl"), "--out", "run",
             "--reliability", "0", "--samples", "4", "--length", "4", "--draws", "1"]  # fmt: skip
    assert main([*words, "--chains", "1"]) == 1
    assert "chains" in capsys.readouterr().err
    assert main([*words, "--chains", "2", "--burn-in", "1"]) == 0


def test_files_that_are_not_there(refused: Callable[..., str]) -> None:
    assert "there is no nowhere.jsonl: --data takes a file .jsonl" in refused(data="nowhere.jsonl")
    assert "there is no folder ./nowhere: --model takes one with a model's config.json" in refused(model="./nowhere")
    assert "there is no file a.gguf" in refused(model="a.gguf")
    Path("empty").mkdir()
    assert "empty is no model's folder, it has no config.json" in refused(model="empty")
    Path("empty/config.json").write_text("{}")
    assert "empty holds no weights (*.safetensors)" in refused(model="empty")
    Path("empty/model.safetensors").write_bytes(b"no")
    assert "cannot read the model" in refused(model="empty")


def test_what_is_not_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--out", "run"]) == 1
    assert "--model is missing: give a folder, a file.gguf, smollm2" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["modes"])
    assert stopped.value.code == 2
    assert "Missing argument 'RUN'" in capsys.readouterr().err


def test_a_gguf_file_that_cannot_be_read(refused: Callable[..., str]) -> None:
    gguf = pytest.importorskip("gguf")
    Path("junk.gguf").write_bytes(b"GGUF" + b"x" * 100)
    assert "junk.gguf is no GGUF file that can be read, or is damaged" in refused(model="junk.gguf")
    kind = gguf.GGMLQuantizationType.Q8_K  # which nobody but llama.cpp itself computes with
    writer = gguf.GGUFWriter("q8k.gguf", "llama")
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((2, 292), np.uint8), raw_shape=(2, 292), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    said = refused(model="q8k.gguf")
    assert "q8k.gguf cannot be read: its blk.0.attn_q.weight is quantised as Q8_K; give a file of F16, BF16" in said


def test_a_package_that_is_missing_names_its_extra(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "find_spec", lambda name: None)
    assert "needs transformers, not installed here: pip install 'patterning_fast[models]'" in refused()
    assert "needs transformers and gguf and accelerate, not" in refused(model="smollm2")
    monkeypatch.setattr(folder, "find_spec", lambda name: None if name in ("datasets", "pyarrow") else name)
    assert "--data hf:a/b needs datasets, not installed here: pip install 'patterning_fast[datasets]'" in refused(
        data="hf:a/b"
    )
    Path("a.parquet").touch()
    assert "pip install 'patterning_fast[parquet]'" in refused(data="a.parquet")


def test_a_hub_out_of_reach(tmp_path: Path, toy: Path) -> None:
    """Told to stay offline, in a process of its own, for the hub's packages read that when they are imported."""
    wanted: dict[str, list[str]] = {"some/model": ["--model", "some/model", "--data", str(toy / "documents.jsonl")]}
    if find_spec("datasets"):
        wanted["some/data"] = ["--model", str(toy / "my-model"), "--data", "hf:some/data"]
    for name, words in wanted.items():
        done = subprocess.run(
            [sys.executable, "-m", "patterning_fast", "estimate", *words, "--out", str(tmp_path / "run")],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert "from Hugging Face's hub (" in done.stderr
        assert f"{name} --local-dir FOLDER`, bring" in done.stderr
        assert not (tmp_path / "run").exists()


def test_settings_there_are_not(refused: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no setting 'colour'; there are model, data, components" in refused(set="colour=red")
    assert "n_beta must be a finite number >= 0, got -1.0" in refused(n_beta=-1)
    assert "seed must be a whole number, got 'x'" in refused(set="seed=x")
    Path("a.toml").write_text("[settings]\nlr = ")
    assert "a.toml is not TOML" in refused(settings="a.toml")
    with pytest.raises(SystemExit):
        main(["estimate", "--out", "run", "--lr", "fast"])
    assert "argument --lr: " in capsys.readouterr().err
