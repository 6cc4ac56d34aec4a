"""How an op becomes a torch op: one schema, the C++ kernel on CPUs, the reference wherever no kernel is built."""

from __future__ import annotations

from collections.abc import Callable

import torch

LIBRARY = torch.library.Library("patterning_fast", "DEF")
OPS: list[str] = []
"""Names of the ops registered so far."""


def register(schema: str, reference: Callable[..., None], cpu: Callable[..., None]) -> None:
    """Define the op of `schema`; every op of the library works in place and returns nothing."""
    name = schema.partition("(")[0]
    OPS.append(name)
    LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    LIBRARY.impl(name, cpu, "CPU")
    torch.library.register_fake(f"patterning_fast::{name}", lambda *_: None, lib=LIBRARY)


def backend_of(op: str, device: torch.device) -> str:
    """Which form of `op` runs on `device`: "cpp" or "reference"."""
    key = device.type.upper()
    return "cpp" if torch._C._dispatch_has_kernel_for_dispatch_key(f"patterning_fast::{op}", key) else "reference"
