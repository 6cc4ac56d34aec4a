"""`patterning-fast doctor`: what runs here and on what."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

from patterning_fast import _C
from patterning_fast.ops import library
from patterning_fast.ops.cuda import kernels


def doctor() -> str:
    """What runs here and on what, as lines of text."""
    build = _C.build_info()
    lines = [f"patterning_fast  {version('patterning_fast')}", f"python           {platform.python_version()}"]
    lines += [f"{package:<16} {version(package)}" for package in ("torch", "numpy", "scipy", "xarray", "matplotlib")]
    lines += [
        f"machine          {platform.machine()}, {torch.get_num_threads()} threads",
        f"cpu kernels      {build['isa']} in use; {', '.join(build['isas'])} can run here "
        "(force one with PATTERNING_FAST_ISA)",
        f"built with       {build['compiler']}, OpenMP {build['openmp']}",
        f"cuda kernels     {cuda_kernels()}",
        f"triton           {version('triton') if library.is_built('triton') else 'not installed'}",
    ]
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    for device in devices:
        name = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
        lines += [f"device           {device} ({name})"]
        for op in sorted(library.ops()):
            others = [form for form in library.backends(op, device.type) if form != library.backend_of(op, device)]
            lines.append(f"  {op:<26} {library.backend_of(op, device):<10} (or {', '.join(others)})")
    return "\n".join(lines)


def cuda_kernels() -> str:
    """What the CUDA kernels were built for, if they were."""
    if not library.is_built("cuda"):
        return "not built: nvcc was not found"
    build = kernels().build_info()
    return f"for {', '.join(build['architectures'])}, nvcc {build['nvcc']}"
