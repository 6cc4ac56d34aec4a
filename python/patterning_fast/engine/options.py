"""How many chains, draws and samples: the numbers of a run that `sample` and `calibrate` take alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from patterning_fast.engine.evaluation import Precision

Engine = Literal["auto", "native", "torch"]


@dataclass(frozen=True)
class Options:
    """The keywords of `sample`, which says what they mean.

    Raises ValueError for numbers out of range.
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

    def __post_init__(self) -> None:
        for name, least in (
            ("draws", 1),
            ("burn_in", 0),
            ("steps_between_draws", 1),
            ("batch_size", 1),
            ("recording_bytes", 0),
            ("tile", 1),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {get_args(Precision)}, got {self.precision!r}")
        if self.engine not in get_args(Engine):
            raise ValueError(f"engine must be one of {get_args(Engine)}, got {self.engine!r}")

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
