"""Three small models that every contestant samples: their data, parameters and settings, the same files for all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "small"


@dataclass(frozen=True)
class Workload:
    """Matrices of a stack of dense layers, and how its posterior is sampled."""

    name: str
    batch_size: int
    lr: float
    n_beta: float
    localization: float

    def path(self) -> Path:
        return FOLDER / f"{self.name}.npz"

    def load(self) -> dict[str, np.ndarray]:
        """`x`, `y` and the parameters by name, float32; classes int64."""
        with np.load(self.path()) as arrays:
            return dict(arrays)


SUPERPOSITION = Workload("superposition", 64, 1e-4, 10.0, 100.0)
"""relu(Wᵀ W x + b) of 6 sparse features in 2 dimensions: `w` [2, 6], `b` [6]; squared error to x itself."""

DEEP_LINEAR = Workload("deep-linear", 256, 1e-4, 100.0, 10.0)
"""`w0` [8, 10], `w1` [8, 8], `w2` [10, 8]; squared error."""

MLP = Workload("mlp", 32, 1e-5, 100.0, 10.0)
"""Digits of 8 × 8: `w0` [32, 64], `b0`, relu, `w1` [10, 32], `b1`; cross entropy."""

WORKLOADS = {each.name: each for each in (SUPERPOSITION, DEEP_LINEAR, MLP)}


def prepare() -> None:
    """Make the data and the parameters, once for all contestants."""
    from sklearn.datasets import load_digits

    FOLDER.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)

    sparse = (rng.random((4096, 6)) * (rng.random((4096, 6)) < 0.2)).astype(np.float32)
    np.savez(SUPERPOSITION.path(), x=sparse, y=sparse, w=normal(2, 6), b=np.zeros(6, dtype=np.float32))
    x, linear = rng.normal(size=(1000, 10)).astype(np.float32), [normal(8, 10), normal(8, 8), normal(10, 8)]
    y = x @ linear[0].T @ linear[1].T @ linear[2].T
    np.savez(DEEP_LINEAR.path(), x=x, y=y, w0=linear[0], w1=linear[1], w2=linear[2])
    digits = load_digits()
    np.savez(
        MLP.path(),
        x=(digits.data / 16).astype(np.float32),
        y=digits.target.astype(np.int64),
        w0=normal(32, 64), b0=np.zeros(32, dtype=np.float32), w1=normal(10, 32), b1=np.zeros(10, dtype=np.float32),
    )  # fmt: skip


if __name__ == "__main__":
    prepare()
