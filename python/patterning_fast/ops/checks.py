"""What ops ask of their tensors, and the words in which they refuse."""

from __future__ import annotations

import torch
from torch import Tensor


def check_tensor(op: str, name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raise TypeError or ValueError unless `tensor` is contiguous, of `dtype` and of `shape`."""
    if tensor.dtype != dtype:
        raise TypeError(f"{op}: {name} is {tensor.dtype}, but must be {dtype}; convert it with {name}.to({dtype})")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{op}: {name} has shape {list(tensor.shape)}, but must have {list(shape)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{op}: {name} is not contiguous; pass {name}.contiguous()")


def check_same_device(op: str, tensors: dict[str, Tensor]) -> None:
    """Raise ValueError unless all tensors are on one device."""
    devices = {name: str(tensor.device) for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        raise ValueError(f"{op}: tensors are on different devices: {devices}; move them to one")
