"""How an op becomes a torch op, and which of its forms runs: CUDA, Triton, C++, or the torch reference."""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from patterning_fast.arguments import checked

LIBRARY = torch.library.Library("patterning_fast", "DEF")
BACKENDS = ("cuda", "triton", "cpp", "reference")
"""In the order they are preferred."""

Form = Callable[..., None]

_forms: dict[str, dict[str, Form | str]] = {}
_wanted: str | None = None


def register(schema: str, **forms: Form | str) -> None:
    """Define the op of `schema` with its forms by backend; every op works in place and returns nothing.

    A form named "module:function" is imported when it first runs.
    """
    name = schema.partition("(")[0]
    _forms[name] = forms
    LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, lambda *arguments: run(name, *arguments), key)
    torch.library.register_fake(f"patterning_fast::{name}", lambda *_: None, lib=LIBRARY)


def ops() -> list[str]:
    """Names of the ops."""
    return list(_forms)


def triton_interprets() -> bool:
    """Whether Triton's interpreter is on, which runs its kernels on CPU tensors, slowly."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def backends(op: str, device_type: str) -> list[str]:
    """The forms of `op` that can run on a type of device here, the one that runs unless told otherwise first."""
    possible = ["cuda", "triton"] if device_type == "cuda" else ["cpp"]
    if device_type == "cpu" and triton_interprets():
        possible.append("triton")
    return [name for name in possible if name in _forms[op] and is_built(name)] + ["reference"]


@functools.cache
def is_built(backend: str) -> bool:
    """Whether a backend's modules are there."""
    module = {"cuda": "patterning_fast._C_cuda", "triton": "triton"}.get(backend)
    if module is None:
        return True
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def backend_of(op: str, device: torch.device) -> str:
    """Which form of `op` runs on `device`; raises RuntimeError where the backend asked for cannot run there."""
    possible = backends(op, device.type)
    if _wanted is None:
        return possible[0]
    if _wanted not in possible:
        hint = "; Triton runs on a CPU only with TRITON_INTERPRET=1 in the environment" if _wanted == "triton" else ""
        raise RuntimeError(
            f"{op} has no {_wanted} form on {device.type} here, only {', '.join(possible)}{hint}; "
            "undo with use_backend(None)"
        )
    return _wanted


def run(op: str, *arguments: Any) -> None:
    """Run an op on its first tensor's device. Only the reference works in float64."""
    first: Tensor = arguments[0]
    chosen = "reference" if first.dtype == torch.float64 else backend_of(op, first.device)
    form = _forms[op][chosen]
    if isinstance(form, str):
        form = _forms[op][chosen] = pkgutil.resolve_name(form)
    with torch.cuda.device_of(first):  # where kernels are launched
        form(*arguments)


@checked
class use_backend:
    """Run every op in one form, "cuda", "triton", "cpp" or "reference"; None for the fastest on each device.

    At once and for the whole process; as a context, until its end. Raises ValueError for any other name.
    """

    def __init__(self, name: str | None) -> None:
        global _wanted
        if name is not None and name not in BACKENDS:
            raise ValueError(
                f"no backend is called {name!r}; there are {', '.join(BACKENDS)}, and None for the fastest"
            )
        self.before, _wanted = _wanted, name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        global _wanted
        _wanted = self.before
