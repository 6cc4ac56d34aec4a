"""How many chains, draws and samples: the numbers of a run that `sample` and `calibrate` take alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from patterning_fast.chains.plan import ChainPlan
from patterning_fast.engine.evaluation import Precision
from patterning_fast.engine.memory import check_fits
from patterning_fast.ops.reference.philox import INDEX_BITS
from patterning_fast.posterior.data import bytes_each
from patterning_fast.posterior.local_posterior import LocalPosterior

Engine = Literal["auto", "native", "torch"]


@dataclass(frozen=True)
class Options:
    """The keywords of `sample`, which says what they mean.

    Raises ValueError for a run of more steps than the noise has numbers for.
    """

    chains: int
    draws: int
    burn_in: int
    steps_between_draws: int
    batch_size: int
    shared_minibatches: bool
    antithetic: bool
    groups: int | None
    loss_kernel: bool
    recording_bytes: int
    precision: Precision
    tile: int | None
    seed: int
    engine: Engine = "auto"
    control_variates: bool = False

    def __post_init__(self) -> None:
        steps = self.total_draws * self.steps_between_draws
        if steps >= 2**INDEX_BITS:
            raise ValueError(
                f"(burn_in + draws) * steps_between_draws must be below 2^{INDEX_BITS}, the steps that the noise has "
                f"numbers for, got {steps}; take fewer"
            )

    def check_memory(self, plan: ChainPlan, posterior: LocalPosterior) -> None:
        """Raise ValueError where chains, their traces or their minibatches would not fit into memory."""
        parameters = dict(posterior.model.named_parameters())
        coordinates = sum(each.size(parameters) for each in plan.components) * len(plan.settings)
        at_center = 2 if self.control_variates else 0
        check_fits(
            {
                "chains": 8 * (self.chains + at_center) * coordinates,
                "draws": 12 * plan.rows * self.total_draws,
                "batch_size": self.chains * self.batch_size * (8 + bytes_each(posterior.data)),
            }
        )

    @property
    def attrs(self) -> dict[str, int | float | str]:
        """Those that are given, as attributes that files of any format hold: true and false as 1 and 0."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: int(value) if isinstance(value, bool) else value for name, value in given.items()}

    @property
    def total_draws(self) -> int:
        return self.burn_in + self.draws


@dataclass(frozen=True)
class Keeping:
    """What a run leaves on the disk, and how often; see `sample`."""

    checkpoint: str | Path | None = None
    checkpoint_seconds: float = 60.0
    traces: str | Path | None = None
    allow_versions: bool = False
