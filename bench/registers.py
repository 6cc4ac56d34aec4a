"""What each CUDA kernel takes of a multiprocessor, read from the built module: registers, shared memory, spills."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

from bench.results import FOLDER


class Kernel(TypedDict):
    kernel: str
    architecture: str
    registers: int
    shared: int
    """Bytes a block takes."""
    stack: int
    """Bytes a thread takes beside its registers; local holds what is spilled."""
    local: int


def cuobjdump() -> str | None:
    """The toolkit's `cuobjdump`, or the one that Triton carries; None where there is neither."""
    triton = importlib.util.find_spec("triton")
    carried = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump" if triton and triton.origin else None
    return shutil.which("cuobjdump") or (str(carried) if carried and carried.exists() else None)


def kernels(module: str, tool: str) -> list[Kernel]:
    """The kernels in a built module, by name and architecture."""
    listing = subprocess.run([tool, "-res-usage", module], check=True, capture_output=True, text=True).stdout
    found: list[Kernel] = []
    architecture = name = ""
    for line in listing.splitlines():
        if match := re.match(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.match(r" Function (\S+):$", line):
            name = readable(match[1])
        elif match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, match.groups())
            found.append(
                Kernel(
                    kernel=name,
                    architecture=architecture,
                    registers=registers,
                    shared=shared,
                    stack=stack,
                    local=local,
                )
            )
    return sorted(found, key=lambda kernel: (kernel["kernel"], kernel["architecture"]))


def readable(symbol: str) -> str:
    """A kernel's name as the source has it, without its parameters, where c++filt is there to tell."""
    tool = shutil.which("c++filt")
    if tool is None:
        return symbol
    name = subprocess.run([tool, symbol], check=True, capture_output=True, text=True).stdout.strip()
    name = name.replace("pf::cuda::(anonymous namespace)::", "").replace("pf::", "").removeprefix("void ")
    return re.sub(r"\([^()]*\)$", "", name)


def main() -> None:
    tool, module = cuobjdump(), importlib.util.find_spec("patterning_fast._C_cuda")
    if tool is None:
        sys.exit("error: no cuobjdump: install the CUDA toolkit or Triton")
    if module is None or module.origin is None:
        sys.exit("error: the CUDA kernels are not built: build with -DCUDA=ON")
    found = kernels(module.origin, tool)
    (FOLDER / "registers.json").write_text(json.dumps(found, indent=1) + "\n")
    for kernel in found:
        print("{architecture} {registers:4} registers {shared:6} shared  {kernel}".format(**kernel))
    spilling = [kernel for kernel in found if kernel["stack"] or kernel["local"]]
    if spilling:
        sys.exit(f"error: kernels spill: {spilling}")


if __name__ == "__main__":
    main()
