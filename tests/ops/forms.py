"""Every form of the ops that can run here, to hold each to the reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from patterning_fast import _C
from patterning_fast.ops import library

ISAS = _C.build_info()["isas"]
FORMS = [f"cpp@{isa}" for isa in ISAS]
if library.is_built("triton") and (library.triton_interprets() or torch.cuda.is_available()):
    FORMS.append("triton")
if library.is_built("cuda") and torch.cuda.is_available():
    FORMS.append("cuda")


def device_of(form: str) -> torch.device:
    """Where a form's tensors must be."""
    return torch.device("cuda" if form == "cuda" or (form == "triton" and torch.cuda.is_available()) else "cpu")


@contextmanager
def use_form(op: str, form: str) -> Iterator[torch.device]:
    """Run ops in one form until the end; yields the device its tensors must be on."""
    backend, _, isa = form.partition("@")
    device = device_of(form)
    if backend not in library.backends(op, device.type):
        pytest.skip(f"{op} has no {backend} form")
    before = _C.build_info()["isa"]
    try:
        if isa:
            _C.use_isa(isa)
        with library.use_backend(backend):
            yield device
    finally:
        _C.use_isa(before)


def interpreted(form: str) -> bool:
    """Whether a form runs in Triton's interpreter, which takes minutes for what others do at once."""
    return form == "triton" and device_of(form).type == "cpu"


def skip_if_interpreted(form: str, rows: int, numbers: int) -> None:
    """Skip sizes that take an interpreter too long."""
    if interpreted(form) and (rows > 40 or numbers > 3000):
        pytest.skip("too long for Triton's interpreter")
