"""The same calls by devinterp and by `patterning_fast.interop.devinterp`, in turns: seconds of each, and their ratio.

Workload A's trained model of bench/endtoend in plain torch and as the library has it, and a Llama of that size with
random weights. Each call is a process of its own on two threads. `python -m bench.interop` takes some minutes. Both
suffer where other work runs beside them, devinterp more.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
import xarray as xr
from datasets import Dataset
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import patterning_fast as pf
from bench.endtoend.workload import A, our_model, prepare
from bench.results import record
from patterning_fast.interop import devinterp as dropin

ROUNDS, BAR = 3, 4.0

CHAINS: dict[str, Any] = {
    "num_chains": 4, "num_draws": 10, "num_init_loss_batches": 4, "batch_size": A.batch_size, "device": "cpu",
}  # fmt: skip
"""As in devinterp's quickstart, but for fewer draws: what a draw takes does not change with their number."""
SETTINGS: dict[str, Any] = {"lr": A.lr, "n_beta": A.n_beta, "localization": A.localization}
HEADS = ("l0h1", "l1h2")

MODULES = {
    "devinterp": {
        "susceptibilities": "devinterp.slt.susceptibilities",
        "llc": "devinterp.slt.llc",
        "bif": "devinterp.slt.bif",
    },
    "ours": dict.fromkeys(("susceptibilities", "llc", "bif"), "patterning_fast.interop.devinterp"),
}


def plain() -> nn.Module:
    return A.model()


def built_in() -> nn.Module:
    model = our_model(A)
    model.load_state_dict(A.weights())
    return model


def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=A.vocabulary, hidden_size=A.width, intermediate_size=2 * A.width, num_hidden_layers=A.layers,
            num_attention_heads=A.heads, max_position_embeddings=A.context,
        )
    )  # fmt: skip


def heads(model: nn.Module) -> dict[str, Any]:
    """ "full" and some heads, as masks."""
    if isinstance(model, LlamaForCausalLM):
        from devinterp.slt.weight_restrictions import create_param_masks

        return {"full": None} | {head: create_param_masks(model, head) for head in HEADS}
    masks = A.head_masks(model)
    return {"full": None} | {head: masks[head] for head in HEADS}


def dataset(name: str) -> Dataset:
    return Dataset.from_dict({"input_ids": A.data(name).numpy()}).with_format("torch")


CASES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "susceptibilities of heads, plain model": (plain, "susceptibilities"),
    "susceptibilities of heads, built-in model": (built_in, "susceptibilities"),
    "susceptibilities of heads, Llama": (llama, "susceptibilities"),
    "llc, Llama": (llama, "llc"),
    "bif averaged over tokens, plain model": (plain, "bif"),
}


def call(case: str, library: str) -> float:
    """Seconds of a call, imports and data left out."""
    make, name = CASES[case]
    model, train, probe = make(), dataset("train"), dataset("probe")
    function = getattr(importlib.import_module(MODULES[library][name]), name)
    observables = {"train": (train, A.loss_batches), "probe": (probe, A.probe_batches)}
    more: dict[str, Any] = {}
    if name == "susceptibilities":
        more = {"weight_restrictions": heads(model), "sampling_task": "train"}
    elif name == "bif":
        more = {"average_tokenwise_bif": True}
    started = time.perf_counter()
    function(model, train, observables, **more, **SETTINGS, **CHAINS)
    return time.perf_counter() - started


def measured(case: str, library: str) -> float:
    """The same in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "bench.interop", case, library]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def references() -> list[dict[str, object]]:
    """How much of χ is due to `init_loss` being of other sequences than the losses that φ is made of."""
    model, train, probe = plain(), dataset("train"), dataset("probe")
    observables = {"train": (train, A.loss_batches), "probe": (probe, A.probe_batches)}
    trees = {
        name: dropin.sample(model, train, observables, param_masks=masks, num_chains=4, num_draws=20,
                            batch_size=A.batch_size, device="cpu", **SETTINGS).to_dataset()
        for name, masks in heads(model).items()
    }  # fmt: skip
    with torch.no_grad():
        center = float(pf.losses.next_token(model, torch.as_tensor(trees["full"]["input_ids_train"].values)).mean())
    once = {name: each.assign(init_loss=("chain", np.full(4, center))) for name, each in trees.items()}
    as_defined, with_one = (
        dropin.compute_susceptibilities({name: xr.DataTree(each) for name, each in samples.items()}, "train")[
            "susceptibilities"
        ]["sus"]
        for samples in (trees, once)
    )
    rows: list[dict[str, object]] = []
    for head in HEADS:
        shares = [float((each.sel(wr=head) ** 2).mean() ** 0.5) for each in (with_one, as_defined)]
        peers = {"init_loss": float(trees["full"]["init_loss"].mean()), "one reference": center}
        figure = f"rms of χ of {head} with one reference, over that with init_loss"
        value = shares[0] / shares[1]
        rows.append({"figure": figure, "value": value, "unit": "", "bar": None, "holds": None, "peers": peers})
        print(f"{figure}: {value:.3f}; {peers}")
    return rows


def main() -> None:
    prepare(A)
    seconds: dict[tuple[str, str], list[float]] = {(case, library): [] for case in CASES for library in MODULES}
    for _ in range(ROUNDS):
        for each, taken in seconds.items():
            taken.append(measured(*each))
    rows: list[dict[str, object]] = []
    for case in CASES:
        ratio = median(
            theirs / ours for theirs, ours in zip(seconds[case, "devinterp"], seconds[case, "ours"], strict=True)
        )
        peers = {library: median(seconds[case, library]) for library in MODULES}
        rows.append({"figure": case, "value": ratio, "unit": "times devinterp's speed", "bar": BAR,
                     "holds": ratio >= BAR, "peers": peers})  # fmt: skip
        print(f"{case}: {ratio:.1f} times, " + ", ".join(f"{name} {each:.1f} s" for name, each in peers.items()))
    record("interop", rows + references())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        warnings.simplefilter("ignore")
        print(call(*sys.argv[1:]))
    else:
        main()
