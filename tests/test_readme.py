"""The examples of the README, and of the chapter on patterning, run as they stand, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.mark.filterwarnings("error::patterning_fast.UnsettledWarning")
@pytest.mark.parametrize(
    ("document", "made"),
    [
        ("README.md", {"retrained", "losses"}),
        ("docs/patterning.md", {"plan", "llama", "rho"}),
        ("docs/devinterp.md", {"response"}),
    ],
)
def test_the_examples_run(document: str, made: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if document != "README.md":
        for extra in ("zarr", "pyarrow", "accelerate"):
            pytest.importorskip(extra)
    monkeypatch.chdir(tmp_path)  # where they leave files
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for example in re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL):
        exec(compile(example, document, "exec"), names)
    assert made <= names.keys()
