"""Devices that a user names: there, and able to hold values, or refused."""

from __future__ import annotations

from typing import Annotated

import torch


class There:
    """Of the name of a device: the device."""

    expected = "of a device that is there"
    mend = 'leave it out for the device of the model, or pass "cpu"'

    def holds(self, device: str | torch.device) -> bool:
        try:
            return float(torch.zeros((), dtype=torch.float32, device=device)) == 0.0
        except (RuntimeError, AssertionError):  # of which torch raises the latter where it is built without
            return False

    def read(self, device: str | torch.device) -> torch.device:
        return torch.device(device)


Device = Annotated[str | torch.device, There()]
