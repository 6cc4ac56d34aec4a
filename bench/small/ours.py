"""Our side: `ops.dense_steps`, what `pf.sample` calls between two draws."""

from __future__ import annotations

import numpy as np
import torch

from bench.small.contestant import Advance, Run, contest
from bench.small.workload import Workload
from patterning_fast import ops
from patterning_fast.ops import DenseLayer, DenseStack

LAYERS = {
    "superposition": [DenseLayer(6, 2, 0), DenseLayer(2, 6, 0, 12, transposed=True, activation="relu")],
    "deep-linear": [DenseLayer(10, 8, 0), DenseLayer(8, 8, 80), DenseLayer(8, 10, 144)],
    "mlp": [DenseLayer(64, 32, 0, 2048, activation="relu"), DenseLayer(32, 10, 2080, 2400)],
}


def prepare(run: Run, workload: Workload, arrays: dict[str, np.ndarray]) -> Advance:
    torch.set_num_threads(run.threads)
    parameters = [torch.from_numpy(array) for name, array in arrays.items() if name not in ("x", "y")]
    base = torch.cat([each.flatten() for each in parameters])
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    whole, none = torch.full((run.chains,), -1), torch.zeros(0, dtype=torch.int64)
    classes = y.dtype == torch.int64
    target = x if run.workload == "superposition" else y
    stack = DenseStack(LAYERS[run.workload], base, whole, none, x, None if classes else target, y if classes else None)
    starts = torch.arange(run.chains + 1) * base.numel()

    def advance() -> list[np.ndarray]:
        rows = base.repeat(run.chains)
        ops.dense_steps(
            stack, rows, torch.zeros_like(rows), base, row_starts=starts, center_starts=torch.zeros_like(starts[1:]),
            lr=workload.lr, n_beta=workload.n_beta, localization=workload.localization, seed=0, step=0,
            replicas=torch.arange(run.chains), batch_size=workload.batch_size, steps=run.steps,
        )  # fmt: skip
        split = rows.view(run.chains, -1).split([each.numel() for each in parameters], 1)
        return [each.view(run.chains, *own.shape).numpy() for each, own in zip(split, parameters, strict=True)]

    return advance


if __name__ == "__main__":
    contest(prepare)
