"""Where benchmarks leave their figures: one JSON file a machine, in bench/results/."""

from __future__ import annotations

import json
import platform
import re
from importlib.metadata import version
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "results"


def machine() -> str:
    """A short name for this machine: its processor, or its GPU, and how many threads torch uses."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())):
        model = found[1]
    if torch.cuda.is_available():
        model = torch.cuda.get_device_name()
    return re.sub(r"\W+", "-", f"{model} {torch.get_num_threads()} threads".lower()).strip("-")


def record(benchmark: str, rows: list[dict[str, object]]) -> None:
    """Replace this benchmark's rows in this machine's file; each has figure, value, bar, holds and peers."""
    path = FOLDER / f"{machine()}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    versions = {package: version(package) for package in ("patterning_fast", "torch", "numpy")}
    results[benchmark] = {"versions": versions, "rows": rows}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
