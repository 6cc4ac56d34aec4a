"""The README's examples run as they stand, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import torch


def test_the_examples_run() -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for example in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(example, "README.md", "exec"), names)
    assert {"retrained", "losses"} <= names.keys()
