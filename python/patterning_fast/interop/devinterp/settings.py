"""What devinterp's `sample` is told of a run, and what of it this library does not do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import Tensor

import patterning_fast as pf
from patterning_fast.chains.bank import ChainBank
from patterning_fast.domains import shown
from patterning_fast.samplers.langevin import LangevinState, Sampler

SamplingMethod = Literal["sgmcmc_sgld", "rmsprop_sgld"]

METHOD_OPTIONS: dict[SamplingMethod, set[str]] = {"sgmcmc_sgld": set(), "rmsprop_sgld": {"alpha", "eps"}}
"""What `sampling_method_kwargs` may hold."""

RMSPROP_ALPHA, RMSPROP_EPS = 0.99, 0.1
"""devinterp's defaults."""

NOT_KEPT: dict[str, tuple[Any, str]] = {
    "noise_level": (1.0, "with other noise the chains sample no posterior; for another temperature change n_beta"),
    "llc_weight_decay": (0.0, "chains are pulled to the trained weights alone; take localization"),
    "init_noise": (None, "chains start at the trained weights; num_burnin_steps takes them away from there"),
    "save_metrics": (False, "pf.sample(...).diagnostics() says how chains fare, and pf.calibrate which settings do"),
}
"""Arguments with the one value they may have, and what to do instead."""


@dataclass(frozen=True)
class Settings:
    """The arguments of `sample` that are no data; their names and defaults are devinterp's."""

    lr: float
    n_beta: float
    batch_size: int = 32
    num_chains: int = 4
    num_draws: int = 200
    num_burnin_steps: int = 0
    num_steps_bw_draws: int = 1
    gradient_accumulation_steps: int = 1
    num_init_loss_batches: int = 32
    init_seed: int = 100
    localization: float = 0.0
    noise_level: float = 1.0
    llc_weight_decay: float = 0.0
    bounding_box_size: float | None = None
    sampling_method: SamplingMethod = "sgmcmc_sgld"
    sampling_method_kwargs: Mapping[str, Any] | None = None
    init_noise: float | None = None
    save_metrics: bool = False
    shuffle: bool = True
    match_sampling_input_ids_across_chains: bool = True
    rmsprop_eps: float | None = None
    rmsprop_alpha: float | None = None
    batches_per_draw: int = 3
    obs_seed: int = 1337
    method_options: dict[str, Any] = field(init=False)
    """Of the sampling method: `sampling_method_kwargs` and what stands for one of them."""

    def __post_init__(self) -> None:
        for name, (kept, instead) in NOT_KEPT.items():
            given = getattr(self, name)
            if given != kept:
                raise ValueError(
                    f"sample: {name}={shown(given, typed=False)} is not supported, only {name}={kept}: {instead}"
                )
        object.__setattr__(self, "method_options", self.read_method_options())

    def read_method_options(self) -> dict[str, Any]:
        """Raises ValueError for what the method does not take, and for what is given twice."""
        options = dict(self.sampling_method_kwargs or {})
        if options.get("add_grad_correction") is False:
            del options["add_grad_correction"]
        for name, value in (("eps", self.rmsprop_eps), ("alpha", self.rmsprop_alpha)):
            if value is None:
                continue
            if self.sampling_method != "rmsprop_sgld":
                raise ValueError(
                    f"sample: rmsprop_{name}={value} goes with sampling_method='rmsprop_sgld', got "
                    f"{self.sampling_method!r}: leave it out, or change the method"
                )
            if name in options:
                raise ValueError(
                    f"sample: rmsprop_{name} and sampling_method_kwargs[{name!r}] are one option, given twice: leave "
                    "one out"
                )
            options[name] = value
        for name in options.keys() - METHOD_OPTIONS[self.sampling_method]:
            instead = NOT_KEPT[name][1] if name in NOT_KEPT else "leave it out"
            if name.startswith("sketch"):
                instead = "no CountSketch of updates is kept here; leave it out"
            raise ValueError(
                f"sample: sampling_method_kwargs[{name!r}] is not supported with {self.sampling_method!r}, which takes "
                f"{sorted(METHOD_OPTIONS[self.sampling_method]) or 'none'}: {instead}"
            )
        return options

    @property
    def steps(self) -> int:
        """SGLD steps of a chain."""
        return self.num_burnin_steps + self.num_draws * self.num_steps_bw_draws

    @property
    def draw_steps(self) -> range:
        """The steps after which there is a draw: the first of every `num_steps_bw_draws`."""
        return range(self.num_burnin_steps, self.steps, self.num_steps_bw_draws)

    @property
    def samples_per_step(self) -> int:
        """Samples of a chain's gradient."""
        return self.batch_size * self.gradient_accumulation_steps

    def sampler(self) -> Sampler:
        """What makes the steps."""
        inner: Sampler = pf.SGLD(self.lr)
        if self.sampling_method == "rmsprop_sgld":
            alpha, eps = (self.method_options.get(*each) for each in (("alpha", RMSPROP_ALPHA), ("eps", RMSPROP_EPS)))
            inner = pf.RMSPropSGLD(self.lr, decay=alpha, stability=eps, bias_correction=False)
        return inner if self.bounding_box_size is None else Confined(inner, self.bounding_box_size)

    def as_stored(self) -> dict[str, Any]:
        """The record of a run in the attributes of its tree, with devinterp's names."""
        own = {"rmsprop_eps", "rmsprop_alpha", "batches_per_draw", "obs_seed", "method_options"}
        constant = {"epoch_mode": "cycle", "scheduler_type": "constant", "scheduler_kwargs": None, "cores": 1}
        kept = {name: value for name, value in asdict(self).items() if name not in own}
        return kept | {"sampling_method_kwargs": self.method_options, "online": False} | constant


@dataclass(frozen=True)
class Confined:
    """A sampler whose chains are kept within `box` of w* in every coordinate, by cutting off what lies beyond."""

    inner: Sampler
    box: float

    @property
    def lr(self) -> float:
        return self.inner.lr

    def init(self, bank: ChainBank, lr: Tensor, n_beta: Tensor, localization: Tensor, seed: int) -> LangevinState:
        return self.inner.init(bank, lr, n_beta, localization, seed)

    def rule(self, state: LangevinState) -> Any:
        return self.inner.rule(state)

    def update(self, bank: ChainBank, state: LangevinState) -> None:
        self.inner.update(bank, state)
        for row in range(bank.plan.rows):
            center = bank.centers[state.center_place(row)]
            bank.params[state.place(row)].clamp_(center - self.box, center + self.box)
