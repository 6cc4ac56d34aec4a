"""devinterp 2.0.1: `susceptibilities()` as its README calls it, each head restricted by masks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from datasets import Dataset
from devinterp.slt.llc import compute_llc
from devinterp.slt.susceptibilities import susceptibilities
from torch import Tensor

from bench.endtoend.contestant import Arrays, Prepared, Run, contest
from bench.endtoend.workload import Workload


def dataset(tokens: Tensor) -> Dataset:
    return Dataset.from_dict({"input_ids": tokens.numpy()}).with_format("torch")


def prepare(run: Run, workload: Workload) -> Prepared:
    model = workload.model()
    train, loss, probe = (dataset(workload.data(name)) for name in ("train", "loss", "probe"))
    restrictions = {"full": None, **workload.head_masks(model)}

    def sample() -> tuple[Arrays, float, float]:
        with tempfile.TemporaryDirectory() as folder:
            result = susceptibilities(
                model=model,
                dataset=train,
                observables={"loss": (loss, workload.loss_batches), "probe": (probe, workload.probe_batches)},
                weight_restrictions=restrictions,
                sampling_task="loss",
                lr=workload.lr,
                n_beta=workload.n_beta,
                localization=workload.localization,
                num_chains=run.chains,
                num_draws=run.draws,
                batch_size=workload.batch_size,
                # Chains that share their minibatches, the default, are not independent: no error could be told.
                match_sampling_input_ids_across_chains=False,
                init_seed=100 + 1000 * run.seed,
                device="cpu",
                output_path=Path(folder) / "samples.zarr",
            )
            disk = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 2**20
            arrays = traces(Path(folder), list(restrictions), workload)
        arrays["two_chain"] = result["susceptibilities"]["sus"].values.T
        arrays["chain_steps"] = np.array(len(restrictions) * run.chains * run.draws)
        return arrays, 0.0, disk

    return sample


def traces(folder: Path, components: list[str], workload: Workload) -> Arrays:
    """Losses of every draw in the order of the workload's probe, and what devinterp makes an LLC of."""
    trees: dict[str, Any] = {name: xr.open_datatree(folder / f"samples_{name}.zarr", engine="zarr", consolidated=False)
             for name in components}  # fmt: skip
    order = rows_of(trees["full"]["input_ids_probe"].values, workload.data("probe").numpy())
    probe = [tree["loss_probe"].values[:, :, order].reshape(*tree["loss_probe"].shape[:2], -1)
             for tree in trees.values()]  # fmt: skip
    return {
        "components": np.array(components),
        "order": order,
        "loss": np.stack([tree["loss_loss"].values.mean((-2, -1), dtype=np.float64) for tree in trees.values()]),
        "probe": np.stack(probe),
        "initial_loss": np.array([float(tree["init_loss"].values.mean()) for tree in trees.values()]),
        "llc": np.stack([compute_llc(tree)["llc_per_chain"].values for tree in trees.values()]),
    }


def rows_of(shuffled: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Where each row of `original` is in `shuffled`."""
    places = {row.tobytes(): at for at, row in enumerate(shuffled)}
    return np.array([places[row.tobytes()] for row in original])


if __name__ == "__main__":
    contest(prepare)
