"""`normal_`: the noise of `langevin_step` alone."""

from __future__ import annotations

import torch
from torch import Tensor

from patterning_fast import _C
from patterning_fast.arguments import Seed, Whole, explained
from patterning_fast.ops import library
from patterning_fast.ops.checks import address, check_dimensions, check_same_device, check_tensor, noise_place
from patterning_fast.ops.cuda import kernels, launch
from patterning_fast.ops.reference.normal import normal_ as reference


def fields(*tensors: Tensor) -> tuple[int, ...]:
    """The fields of csrc's Normal, in order."""
    return (*map(address, tensors), *tensors[0].shape)


def cpp(*tensors: Tensor) -> None:
    _C.normal(fields(*tensors), torch.get_num_threads())


def cuda(*tensors: Tensor) -> None:
    launch(kernels().normal, tensors[0].device, fields(*tensors))


library.register(
    "normal_(Tensor(a!) out, Tensor chain_ids, Tensor seed, Tensor step) -> ()",
    reference=reference,
    cpp=cpp,
    triton="patterning_fast.ops.triton.normal:normal_",
    cuda=cuda,
)


@explained
def normal_(out: Tensor, *, seed: Seed | Tensor, step: Whole | Tensor, chain_ids: Tensor | None = None) -> Tensor:
    """Fill `out` with the standard normals that `langevin_step` adds at (seed, chain id, step); returns `out`.

    Philox4x32-10 words (Salmon et al. 2011), in pairs to normals by Box-Muller.

    Args:
        out: float32 `[chains, params]`; float64 runs on the reference.
        seed, step, chain_ids: as for `langevin_step`.

    Raises:
        TypeError, ValueError: a tensor of the wrong dtype, shape, layout or device.
    """
    op = "normal_"
    check_dimensions(op, "out", out, 2)
    chains, device = out.shape[0], out.device
    check_tensor(op, "out", out, (torch.float32, torch.float64), tuple(out.shape))
    place = noise_place(op, chains, device, chain_ids, seed, step)
    check_same_device(op, {"out": out, **place})
    torch.ops.patterning_fast.normal_(out, *place.values())
    return out
