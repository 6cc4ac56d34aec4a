"""A process that kills runs: `python -m tests.engine.interrupted FOLDER EVERY KILLS SEED WHAT...`.

Runs are forked from this process, which has imported what they need: a start is then milliseconds, and the run still a
process of its own. They are killed before every operation, or one of so many, on files of a start and a save, and at
random moments. Every run that was not killed leaves `FOLDER/WHAT/NUMBER/result.safetensors` and its traces, number 0
the one that nothing disturbs; a line for each of WHAT says how many were killed, in which way.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # so that a run need not import it
import xarray as xr
import zarr  # noqa: F401  # so that a run need not import it
from safetensors.torch import save_file
from torch import Tensor, nn

import patterning_fast as pf
from tests.models import language_model, language_posterior, tokens

DRAWS = 8
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree"}
OPERATIONS = 32
"""On files of a checkpoint: of a start, and of the first save after it."""


def head() -> dict[str, pf.Component]:
    return {"l1h0": pf.attention_heads(language_model())["l1h0"]}


def sampled(folder: Path, **changes: Any) -> dict[str, Tensor]:
    statistics = pf.sample(
        language_posterior(),
        pf.SGLD(1e-3),
        components=head(),
        probes={"a": tokens(3, 1), "b": tokens(2, 2)},
        chains=2,
        draws=DRAWS,
        burn_in=2,
        batch_size=4,
        tile=1,
        checkpoint=folder / "checkpoint",
        checkpoint_seconds=0,
        traces=folder / "traces.zarr",
        progress=False,
        **changes,
    )
    return vars(statistics.totals) | vars(statistics.traces)


def calibrated(folder: Path, **changes: Any) -> dict[str, Tensor]:
    return numbers(
        pf.calibrate(
            language_posterior(), pf.SGLD(1e-3), lr=[1e-4, 1e-3], components=head(), chains=2, draws=DRAWS,
            batch_size=4, tile=1, checkpoint=folder / "checkpoint", checkpoint_seconds=0, progress=False, **changes,
        )
    )  # fmt: skip


def differentiated(folder: Path, **changes: Any) -> dict[str, Tensor]:
    """In two waves."""
    return numbers(
        pf.linear_response(
            language_posterior(), pf.SGLD(1e-2), components=head(), chains=3, draws=2, burn_in=4, batch_size=4, tile=1,
            steps_between_draws=2, trajectory_bytes=2 * 128 * 8 * 10, checkpoint=folder / "checkpoint",
            checkpoint_seconds=0, progress=False, **changes,
        )
    )  # fmt: skip


def verified(folder: Path, **changes: Any) -> dict[str, Tensor]:
    predicted = xr.Dataset({"dmu": ("component", [1.0]), "dmu_error": ("component", [0.1])}, {"component": ["full"]})
    weights = xr.DataArray(torch.linspace(0.5, 1.5, 12), dims="sample")
    plan = pf.Plan(weights, predicted, {"strength": 0.3, "n_beta": 10.0, "observable": "phi"})
    return numbers(
        pf.verify(
            plan, language_posterior(), pf.SGLD(1e-3), fractions=[0.5, 1.0], chains=2, draws=3, batch_size=4, tile=1,
            checkpoint=folder / "checkpoint", checkpoint_seconds=0, progress=False, **changes,
        )
    )  # fmt: skip


def replicated(folder: Path, **changes: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    size = sum(each.numel() for each in model.parameters())
    return numbers(
        pf.train_replicas(
            model, torch.randn(3, size), (torch.randn(12, 3), torch.randn(12, 2)), pf.losses.squared_error, steps=12,
            batch_size=4, optimizer=partial(torch.optim.Adam, lr=0.01), weights=torch.rand(2, 12), snapshots=3,
            checkpoint=folder / "checkpoint", checkpoint_seconds=0, progress=False, **changes,
        )
    )  # fmt: skip


def numbers(found: xr.Dataset) -> dict[str, Tensor]:
    return {
        str(name): torch.from_numpy(each.values.copy()) for name, each in found.items() if each.dtype.kind in "biuf"
    }


RUNS = {each.__name__: each for each in (sampled, calibrated, differentiated, verified, replicated)}


def run(what: str, folder: Path) -> None:
    """One run, resumed from what is there."""
    found = {name: tensor.clone() for name, tensor in RUNS[what](folder).items()}
    save_file(found, folder / "result.safetensors")


def forked(what: str, folder: Path, prepare: Callable[[Path], object]) -> int:
    """The process id of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        prepare(folder)
        run(what, folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def die_before(number: int, folder: Path) -> None:
    """Have this process killed before the operation of that number on the files of its checkpoint."""
    left, under = number, str(folder / "checkpoint")

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in EVENTS and str(arguments[0]).startswith(under):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def die_in_the_middle_of_the_tensors(size: int) -> None:
    """Have this process killed when a file of its grows over half of `size`."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


def end(child: int) -> str:
    """How a run ended: the signal that killed it, or "done"."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code > 0:
        raise RuntimeError(f"a run failed with exit code {code}")
    return signal.Signals(-code).name if code else "done"


def main(what: str, root: Path, every: int, kills: int, seed: int) -> None:
    undisturbed = root / "0"
    began = time.monotonic()
    assert end(forked(what, undisturbed, lambda _: None)) == "done"
    duration = time.monotonic() - began
    largest = max(path.stat().st_size for path in (undisturbed / "checkpoint").rglob("*.safetensors"))
    moments = random.Random(seed)
    number, killed = 1, Counter[str]()

    def kill(kind: str, prepare: Callable[[Path], object], delay: Callable[[], float] | None = None) -> None:
        """Start runs until one is killed; the next goes on from what it leaves."""
        nonlocal number
        while True:
            folder = root / str(number)
            child = forked(what, folder, prepare)
            if delay:
                time.sleep(delay())
                os.kill(child, signal.SIGKILL)
            if end(child) != "done":
                killed[kind] += 1
                return
            number += 1

    for operation in range(every, OPERATIONS + 1, every):
        kill("before an operation", partial(die_before, operation))
    kill("within a file", lambda _: die_in_the_middle_of_the_tensors(largest))
    for _ in range(kills):
        kill("at a random moment", lambda _: None, lambda: moments.uniform(0, 0.8 * duration))
    assert end(forked(what, root / str(number), lambda _: None)) == "done"
    print(json.dumps(killed))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for kind in sys.argv[5:]:
        main(kind, Path(sys.argv[1]) / kind, *map(int, sys.argv[2:5]))
