"""`langevin_step` in plain torch, computed in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from patterning_fast.ops.reference.normal import noise

RULES = ["sgld", "rmsprop", "rmsprop_bias_corrected", "sghmc", "sgnht"]


def langevin_step(
    params: Tensor,
    grads: Tensor,
    center: Tensor,
    row_starts: Tensor,
    center_starts: Tensor,
    lr: Tensor,
    n_beta: Tensor,
    localization: Tensor,
    noise_scale: Tensor,
    chain_ids: Tensor,
    seed: Tensor,
    step: Tensor,
    rule: str,
    constants: list[float],
    memory: Tensor | None,
    thermostat: Tensor | None,
    box: Tensor | None,
    shadow: Tensor | None,
    statistics: Tensor | None,
) -> None:
    """The contract is that of `patterning_fast.ops.langevin_step`, on flat rows."""
    lengths = row_starts.diff()
    chain = torch.repeat_interleave(lengths, output_size=params.numel())
    index = torch.arange(params.numel(), device=params.device) - row_starts[chain]

    def of_chain(values: Tensor) -> Tensor:
        return values.double()[chain]

    def sum_by_chain(values: Tensor) -> Tensor:
        return torch.zeros(len(lengths), dtype=torch.float64, device=params.device).index_add_(0, chain, values)

    w, g, w_star = params.double(), grads.double(), center[center_starts[chain] + index].double()
    eps = of_chain(lr)
    drift = of_chain(n_beta) * g + of_chain(localization) * (w - w_star)
    xi = of_chain(noise_scale) * noise(seed, chain_ids[chain], step, index)
    if statistics is not None:
        distance = w - w_star
        for row, values in enumerate((g * g, distance * distance, g * distance)):
            statistics[row] = sum_by_chain(values)

    if rule == "sgld":
        w = w - 0.5 * eps * drift + eps.sqrt() * xi
    elif rule.startswith("rmsprop"):
        assert memory is not None
        decay, stability = constants
        v = decay * memory.double() + (1 - decay) * g * g
        memory.copy_(v)
        if rule == "rmsprop_bias_corrected":
            v = v / (1 - torch.as_tensor(decay, dtype=torch.float64, device=v.device) ** (step + 1))
        eps = eps / (v.sqrt() + stability)
        w = w - 0.5 * eps * drift + eps.sqrt() * xi
    elif rule == "sghmc":
        assert memory is not None
        (friction,) = constants
        p = memory.double()
        p = p - friction * p - eps * drift + (2 * friction * eps).sqrt() * xi
        memory.copy_(p)
        w = w + p
    elif rule == "sgnht":
        assert memory is not None
        assert thermostat is not None
        (diffusion,) = constants
        p = memory.double()
        p = p - of_chain(thermostat) * eps * p - eps * drift + (2 * diffusion * eps).sqrt() * xi
        memory.copy_(p)
        w = w + eps * p
        kinetic = sum_by_chain(p * p) / lengths.clamp(min=1)
        warmed = thermostat.double() + lr.double() * (kinetic - 1)
        thermostat.copy_(torch.where(lengths > 0, warmed, thermostat.double()))
    else:
        raise ValueError(f"langevin_step: no rule is called {rule!r}; there are {', '.join(RULES)}")

    if box is not None:
        w = torch.minimum(torch.maximum(w, w_star - of_chain(box)), w_star + of_chain(box))
    params.copy_(w)
    if shadow is not None:
        shadow.copy_(params)
    if statistics is not None:
        statistics[3] = (sum_by_chain((~torch.isfinite(params)).double()) == 0).double()
    grads.zero_()
