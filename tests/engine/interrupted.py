"""A process that kills runs: `python -m tests.engine.interrupted FOLDER KILLS SEED`.

Runs are forked from this process, which has imported what they need: a start is then milliseconds, and the run still a
process of its own. Every run that was not killed leaves `FOLDER/NUMBER/result.safetensors` and its traces, number 0 the
one that nothing disturbs; the last line printed says how many were killed, in which way.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import zarr  # noqa: F401  # so that a run need not import it
from safetensors.torch import save_file

import patterning_fast as pf
from tests.models import language_model, language_posterior, tokens

DRAWS = 8
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree"}
EVENTS_OF_TWO_SAVES = 32


def run(folder: Path) -> None:
    """One run, resumed from what is there."""
    heads = pf.attention_heads(language_model())
    statistics = pf.sample(
        language_posterior(),
        pf.SGLD(1e-3),
        components={"l1h0": heads["l1h0"]},
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
    )
    result = {name: tensor.clone() for name, tensor in (vars(statistics.totals) | vars(statistics.traces)).items()}
    save_file(result, folder / "result.safetensors")


def forked(folder: Path, prepare: Callable[[Path], object]) -> int:
    """The process id of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        prepare(folder)
        run(folder)
        code = 0
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


def main(root: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    undisturbed = root / "0"
    began = time.monotonic()
    assert end(forked(undisturbed, lambda _: None)) == "done"
    duration = time.monotonic() - began
    (saved,) = (undisturbed / "checkpoint").glob("*.safetensors")
    moments = random.Random(seed)
    number, killed = 1, Counter[str]()

    def kill(kind: str, prepare: Callable[[Path], object], delay: Callable[[], float] | None = None) -> None:
        """Start runs until one is killed; the next goes on from what it leaves."""
        nonlocal number
        while True:
            folder = root / str(number)
            child = forked(folder, prepare)
            if delay:
                time.sleep(delay())
                os.kill(child, signal.SIGKILL)
            if end(child) != "done":
                killed[kind] += 1
                return
            number += 1

    for event in range(1, EVENTS_OF_TWO_SAVES + 1):
        kill("before an operation", partial(die_before, event))
    kill("within a file", lambda _: die_in_the_middle_of_the_tensors(saved.stat().st_size))
    for _ in range(kills):
        kill("at a random moment", lambda _: None, lambda: moments.uniform(0, 0.8 * duration))
    assert end(forked(root / str(number), lambda _: None)) == "done"
    print(json.dumps(killed))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
