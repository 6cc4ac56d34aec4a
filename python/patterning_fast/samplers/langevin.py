"""What all samplers share: the state that goes with a bank, one step of it, and how a chain is frozen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from patterning_fast import ops
from patterning_fast.arguments import NonNegative, Numbers, Positive, Seed, checked
from patterning_fast.chains.bank import ChainBank
from patterning_fast.domains import made_by
from patterning_fast.ops.checks import check_tensor


@dataclass
@checked
class LangevinState:
    """What an update reads and moves beside the bank: float32 `[rows]` where nothing else is said."""

    lr: Tensor
    n_beta: Tensor
    localization: Tensor
    noise_scale: Tensor
    """1, and −1 for the second chain of an antithetic pair."""
    chain_ids: Tensor
    """int64 `[rows]`"""
    seed: Tensor
    """0-d int64, as `step`."""
    step: Tensor
    row_starts: list[int]
    """Those of the bank, as `center_starts`: on the host, so that no step waits for a device to tell them."""
    center_starts: list[int]
    memory: Tensor | None = None
    """Second moment or momentum, in the places of `bank.params`."""
    thermostat: Tensor | None = None
    frozen: set[int] = field(default_factory=set)
    """Rows that do not move any more; their lr is 0."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes from step to step or was given to `init`: what `load` needs to go on from here."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from the `tensors()` of another state, copied in place.

        Raises TypeError or ValueError, before anything is copied, where they belong to another sampler or bank.
        """
        own = self.tensors()
        if tensors.keys() != own.keys():
            raise ValueError(
                f"a state with {sorted(tensors)} was saved by another sampler; this one has {sorted(own)}: "
                "resume with the sampler that saved it"
            )
        for name, tensor in own.items():
            check_tensor("load", name, tensors[name], tensor.dtype, tuple(tensor.shape))
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        self.frozen = set((self.lr == 0).nonzero().flatten().tolist())

    def place(self, row: int) -> slice:
        """Where a row lies in `bank.params`, `bank.grads` and `memory`."""
        return slice(self.row_starts[row], self.row_starts[row + 1])

    def center_place(self, row: int) -> slice:
        """Where a row's w* lies in `bank.centers`."""
        place, start = self.place(row), self.center_starts[row]
        return slice(start, start + place.stop - place.start)

    def freeze(self, bank: ChainBank, row: int) -> None:
        """From now on this row's parameters stay as they are, whatever its gradients; infinite ones become NaN.

        The other rows take no notice.
        """
        for numbers in (self.lr, self.localization, self.noise_scale):
            numbers[row] = 0
        # 0 · ∞ is NaN, so they would become NaN at the next step.
        bank.params[self.place(row)].nan_to_num_(nan=math.nan, posinf=math.nan, neginf=math.nan)
        self.frozen.add(row)
        self.still_frozen(bank)

    def still_frozen(self, bank: ChainBank) -> None:
        """Gradients, memory and thermostat of frozen rows to 0: lr = 0 alone does not stop a NaN."""
        for row in self.frozen:
            bank.grads[self.place(row)] = 0
            if self.memory is not None:
                self.memory[self.place(row)] = 0
            if self.thermostat is not None:
                self.thermostat[row] = 0


@made_by(
    "pass pf.SGLD(lr=1e-3), pf.RMSPropSGLD(lr=1e-3), pf.SGHMC(lr=1e-6) or pf.SGNHT(lr=1e-3); "
    "rules in pf.ops are for the op langevin_step"
)
class Sampler(Protocol):
    """A recursion that advances all chains of a bank; its hyper-parameters are its fields."""

    @property
    def lr(self) -> float:
        """The step size of rows that are given no other."""

    def init(self, bank: ChainBank, lr: Tensor, n_beta: Tensor, localization: Tensor, seed: int) -> LangevinState:
        """The state that goes with a bank; `lr`, `n_beta` and `localization` are float32 `[rows]`."""

    def rule(self, state: LangevinState) -> ops.RMSProp | ops.SGHMC | ops.SGNHT | None:
        """The rule of `ops.langevin_step` that it follows, on its state; None for SGLD's."""

    def update(self, bank: ChainBank, state: LangevinState) -> None:
        """One step of every chain on the gradients in the bank, which it leaves at 0."""


@dataclass
class Adjoint:
    """Derivatives of what is wanted by the state after a step, in the places of `bank.params`."""

    position: Tensor
    momentum: Tensor | None = None
    """Where the sampler has one."""


class Reversible(Protocol):
    """A sampler whose steps can be gone back over."""

    def force(self, bank: ChainBank, state: LangevinState, adjoint: Adjoint, grads: Tensor) -> Tensor:
        """What a step does with ∇U, turned round, in the places of `bank.params`; moves a momentum's adjoint back."""


@checked
class Langevin:
    """What the samplers of this library share: a step is `ops.langevin_step` by the sampler's own rule."""

    def init(self, bank: ChainBank, lr: Tensor, n_beta: Tensor, localization: Tensor, seed: Seed) -> LangevinState:
        """The state that goes with a bank; `lr`, `n_beta` and `localization` are float32 `[rows]`."""
        return init(bank, lr, n_beta, localization, seed)

    def rule(self, state: LangevinState) -> ops.RMSProp | ops.SGHMC | ops.SGNHT | None:
        """The rule of `ops.langevin_step` that it follows, on its state; None for SGLD's."""
        return None

    def update(self, bank: ChainBank, state: LangevinState) -> None:
        """One step of every chain on the gradients in the bank, which it leaves at 0."""
        step(bank, state, self.rule(state))

    def steepest(self, lr: Positive) -> float:
        """The curvature of the potential from which on chains run away."""
        return 4 / lr

    def inflation(self, curvature: Numbers, lr: Positive) -> np.ndarray:
        """Stationary variance over the posterior's 1/a, on U = ½a(w − w*)²; infinite where chains run away."""
        left = 1 - np.asarray(curvature, dtype=np.float64) / self.steepest(lr)
        return np.divide(1.0, left, out=np.full_like(left, np.inf), where=left > 0)

    def heating(self, lr: Positive, n_beta: NonNegative) -> float:
        """Variance that minibatch gradients of variance 1 add to a step, over the variance injected.

        NaN where the sampler takes it out, as far as it can.
        """
        return lr / 4 * n_beta**2


def init(bank: ChainBank, lr: Tensor, n_beta: Tensor, localization: Tensor, seed: int) -> LangevinState:
    """The state before the first step, without memory or thermostat; the given tensors `[rows]` are copied.

    Raises TypeError or ValueError for tensors that are not float32 `[rows]`, or an lr that is not finite and > 0.
    """
    device, rows = bank.params.device, bank.plan.rows
    for name, tensor in (("lr", lr), ("n_beta", n_beta), ("localization", localization)):
        check_tensor("init", name, tensor, torch.float32, (rows,))
    wrong = lr[~(lr.isfinite() & (lr > 0))]
    if wrong.numel():
        raise ValueError(f"lr must be finite and > 0 in every row, got {float(wrong[0])}")
    return LangevinState(
        lr=lr.to(device, copy=True),
        n_beta=n_beta.to(device, copy=True),
        localization=localization.to(device, copy=True),
        noise_scale=bank.plan.noise_scale().to(device),
        chain_ids=bank.plan.chain_ids().to(device),
        seed=torch.tensor(seed, dtype=torch.int64, device=device),
        step=torch.tensor(0, dtype=torch.int64, device=device),
        row_starts=bank.row_starts.tolist(),
        center_starts=bank.center_starts.tolist(),
    )


def step(bank: ChainBank, state: LangevinState, rule: ops.RMSProp | ops.SGHMC | ops.SGNHT | None = None) -> None:
    """One step of every chain by a rule of `ops.langevin_step` on the gradients in the bank, which it leaves at 0."""
    state.still_frozen(bank)  # of new gradients
    ops.langevin_step(
        bank.params,
        bank.grads,
        bank.centers,
        lr=state.lr,
        n_beta=state.n_beta,
        localization=state.localization,
        noise_scale=state.noise_scale,
        chain_ids=state.chain_ids,
        row_starts=bank.row_starts,
        center_starts=bank.center_starts,
        seed=state.seed,
        step=state.step,
        rule=rule,
    )
    state.still_frozen(bank)  # of what NaN parameters have put there
    state.step += 1
