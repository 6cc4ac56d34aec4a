"""What ops ask of their tensors, and the words in which they refuse."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from patterning_fast.ops.reference.philox import INDEX_BITS


def check_tensor(
    op: str, name: str, tensor: Tensor, dtype: torch.dtype | tuple[torch.dtype, ...], shape: tuple[int, ...]
) -> None:
    """Raise TypeError or ValueError unless `tensor` is contiguous, of (one of) `dtype` and of `shape`."""
    wanted = dtype if isinstance(dtype, tuple) else (dtype,)
    if tensor.dtype not in wanted:
        must = " or ".join(map(str, wanted))
        raise TypeError(f"{op}: {name} is {tensor.dtype}, but must be {must}; convert it with {name}.to({wanted[0]})")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{op}: {name} has shape {list(tensor.shape)}, but must have {list(shape)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{op}: {name} is not contiguous; pass {name}.contiguous()")


def check_dimensions(op: str, name: str, tensor: Tensor, dimensions: int) -> None:
    """Raise ValueError unless `tensor` has that many dimensions."""
    if tensor.dim() != dimensions:
        raise ValueError(f"{op}: {name} has shape {list(tensor.shape)}, but must have {dimensions} dimensions")


def check_same_device(op: str, tensors: dict[str, Tensor]) -> None:
    """Raise ValueError unless all tensors are on one device."""
    devices = {name: str(tensor.device) for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        raise ValueError(f"{op}: tensors are on different devices: {devices}; move them to one")


def chain_numbers(op: str, chains: int, device: torch.device, **values: float | Tensor) -> dict[str, Tensor]:
    """Numbers for every chain, float32 `[chains]`; raises TypeError or ValueError for tensors that are not."""
    numbers = {
        name: value
        if isinstance(value, Tensor)
        else torch.full((chains,), number(op, name, value), dtype=torch.float32, device=device)
        for name, value in values.items()
    }
    for name, tensor in numbers.items():
        check_tensor(op, name, tensor, torch.float32, (chains,))
    return numbers


def number(op: str, name: str, value: float) -> float:
    """The number as a float; raises TypeError or ValueError for what is none, which float() might take."""
    if type(value) is float and value == value:  # the fast way, for most
        return value
    if isinstance(value, bool | np.bool_) or not isinstance(value, float | int | np.number):
        raise TypeError(f"{op}: {name} must be a number or a tensor, got {value!r}; pass {name}=1.0, for example")
    if value != value:
        raise ValueError(f"{op}: {name} must be a number, got {value}; pass {name}=1.0, for example")
    return float(value)


def noise_place(
    op: str, chains: int, device: torch.device, chain_ids: Tensor | None, seed: int | Tensor, step: int | Tensor
) -> dict[str, Tensor]:
    """Where the noise of a step is drawn, int64: `chain_ids` `[chains]`, by default 0, 1, ...; 0-d `seed` and `step`.

    Raises TypeError or ValueError for tensors that are not.
    """
    for name, value, most in (("seed", seed, 2**63 - 1), ("step", step, 2**INDEX_BITS - 1)):
        if isinstance(value, int) and not 0 <= value <= most:
            raise ValueError(f"{op}: {name} must lie in [0, {most}], got {value}; pass {name}=0, for example")
    place = {
        "chain_ids": torch.arange(chains, device=device) if chain_ids is None else chain_ids,
        "seed": torch.as_tensor(seed, device=device),
        "step": torch.as_tensor(step, device=device),
    }
    for name, tensor in place.items():
        check_tensor(op, name, tensor, torch.int64, (chains,) if name == "chain_ids" else ())
    return place


def address(tensor: Tensor | None) -> int:
    """Where a tensor's numbers are; 0 for no tensor."""
    return 0 if tensor is None else tensor.data_ptr()
