"""`langevin_step`: one SGLD step on every chain of a bank."""

from __future__ import annotations

import torch
from torch import Tensor

from patterning_fast import _C
from patterning_fast.ops import library
from patterning_fast.ops.checks import check_same_device, check_tensor
from patterning_fast.ops.reference.langevin_step import langevin_step as reference

STATUS = {
    1: "row_starts must begin at 0, never decrease and end at the number of params",
    2: "a chain's row in center, from its center_starts, reaches outside center",
}


def cpu(*tensors: Tensor) -> None:
    params, _, center, _, center_starts, *_ = tensors
    addresses = [tensor.data_ptr() for tensor in tensors]
    sizes = (center_starts.numel(), params.numel(), center.numel())
    status = _C.langevin_step(*addresses[:10], *sizes, *addresses[10:], torch.get_num_threads())
    if status:
        raise ValueError(f"langevin_step: {STATUS[status]}")


library.register(
    "langevin_step(Tensor(a!) params, Tensor(b!) grads, Tensor center, Tensor row_starts, Tensor center_starts, "
    "Tensor lr, Tensor n_beta, Tensor localization, Tensor noise_scale, Tensor chain_ids, Tensor seed, Tensor step)"
    " -> ()",
    reference,
    cpu,
)


def langevin_step(
    params: Tensor,
    grads: Tensor,
    center: Tensor,
    *,
    lr: float | Tensor,
    n_beta: float | Tensor,
    localization: float | Tensor,
    seed: int | Tensor,
    step: int | Tensor,
    noise_scale: float | Tensor = 1.0,
    chain_ids: Tensor | None = None,
    row_starts: Tensor | None = None,
    center_starts: Tensor | None = None,
) -> None:
    """One SGLD step in place, w ← w − (lr/2)[n_beta·g + localization·(w − w*)] + noise_scale·√lr·ξ; then g ← 0.

    Source: Welling & Teh 2011, with the localised tempered posterior of arXiv:2308.12108.

    Args:
        params, grads: float32 `[chains, params]`, or flat `[total]` rows of any lengths with `row_starts`.
        center: w*, float32 `[params]` or `[chains, params]`; flat with `center_starts` where params are flat.
        lr, n_beta, localization, noise_scale: a number, or float32 `[chains]`.
        seed, step, chain_ids: the noise is a pure function of (seed, chain id, step, place in the row). Integers
            below 2^63 (seed) and 2^40; as int64 0-d tensors where they must change under a captured graph.
        row_starts: int64 `[chains + 1]`; center_starts: int64 `[chains]`.

    Raises:
        TypeError, ValueError: a tensor of the wrong dtype, shape, layout or device; rows out of range.
    """
    op, device = "langevin_step", params.device
    if params.dim() == 2:
        if row_starts is not None or center_starts is not None:
            raise ValueError(f"{op}: row_starts and center_starts go with flat params, got {list(params.shape)}")
        chains, length = params.shape
        center_shape = (chains, length) if center.dim() == 2 else (length,)
        row_starts = torch.arange(chains + 1, device=device) * length
        center_starts = row_starts[:-1].clone() if center.dim() == 2 else torch.zeros_like(row_starts[:-1])
    elif row_starts is None or center_starts is None:
        raise ValueError(
            f"{op}: params of shape {list(params.shape)} need row_starts and center_starts, or 2 dimensions"
        )
    else:
        chains, center_shape = center_starts.numel(), (center.numel(),)
    tensors = {
        "params": params,
        "grads": grads,
        "center": center,
        "row_starts": row_starts,
        "center_starts": center_starts,
        "lr": per_chain(lr, chains, device),
        "n_beta": per_chain(n_beta, chains, device),
        "localization": per_chain(localization, chains, device),
        "noise_scale": per_chain(noise_scale, chains, device),
        "chain_ids": torch.arange(chains, device=device) if chain_ids is None else chain_ids,
        "seed": torch.as_tensor(seed, device=device),
        "step": torch.as_tensor(step, device=device),
    }
    shape = tuple(params.shape) if params.dim() == 2 else (params.numel(),)
    for name, expected in {"params": shape, "grads": shape, "center": center_shape}.items():
        check_tensor(op, name, tensors[name], torch.float32, expected)
    for name in ("lr", "n_beta", "localization", "noise_scale"):
        check_tensor(op, name, tensors[name], torch.float32, (chains,))
    places = {"row_starts": (chains + 1,), "center_starts": (chains,), "chain_ids": (chains,), "seed": (), "step": ()}
    for name, expected in places.items():
        check_tensor(op, name, tensors[name], torch.int64, expected)
    check_same_device(op, tensors)
    flat = {name: tensors[name].view(-1) for name in ("params", "grads", "center")}
    torch.ops.patterning_fast.langevin_step(*(tensors | flat).values())


def per_chain(value: float | Tensor, chains: int, device: torch.device) -> Tensor:
    """A number for every chain, float32 `[chains]`; tensors are left as they are."""
    return value if isinstance(value, Tensor) else torch.full((chains,), float(value), device=device)
