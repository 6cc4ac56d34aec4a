"""The CPU kernels under ThreadSanitizer: a C++ program of their own, as Python and OpenMP would blind it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMPILER = os.environ.get("CXX", "c++")


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs a C++ compiler")
def test_kernels_have_no_data_races(tmp_path: Path) -> None:
    if not (ROOT / "csrc").is_dir() or platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("needs the C++ sources, and a machine that ThreadSanitizer knows")
    kernels = sorted(map(str, (ROOT / "csrc").glob("*/*_cpu.cpp")))
    flags = ["-std=c++17", "-O1", "-g", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi", "-w"]
    flags += ["-fsanitize=thread", "-DPF_PLAIN_THREADS", "-DPF_ISA=baseline", "-pthread", f"-I{ROOT / 'csrc'}"]
    program = str(tmp_path / "races")
    built = subprocess.run(
        [COMPILER, *flags, *kernels, str(ROOT / "tests/cpp/races.cpp"), "-o", program], capture_output=True, text=True
    )
    if "cannot find" in built.stderr and "tsan" in built.stderr:
        pytest.skip("this compiler has no ThreadSanitizer")
    assert built.returncode == 0, built.stderr
    # Without random addresses, which older ThreadSanitizers cannot place their shadow among.
    command = ["setarch", "-R", program] if shutil.which("setarch") else [program]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
