"""The same calls by devinterp and by `patterning_fast.interop.devinterp`, in turns: seconds of each, and their ratio.

Workload A's trained model of bench/endtoend in plain torch and as the library has it, and a Llama of that size with
random weights. Each call is a process of its own on one thread: with two, ours runs chains side by side, which is not
counted here. `python -m bench.interop` takes some ten minutes; seconds change with what else the machine does, ratios
of neighbours in time hold.
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

import torch
from datasets import Dataset
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from bench.endtoend.workload import A, our_model, prepare
from bench.results import record

ROUNDS, BAR = 3, 4.0

CHAINS: dict[str, Any] = {
    "num_chains": 2, "num_draws": 10, "num_init_loss_batches": 4, "batch_size": A.batch_size, "device": "cpu",
}  # fmt: skip
"""As in devinterp's quickstart, but for fewer draws: what a draw takes does not change with their number."""
SETTINGS: dict[str, Any] = {"lr": A.lr, "n_beta": A.n_beta, "localization": A.localization}
HEADS = ("l0h1", "l0h5", "l1h2", "l1h6")

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
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench.interop", case, library]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


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
    record("interop", rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        warnings.simplefilter("ignore")
        print(call(*sys.argv[1:]))
    else:
        main()
