"""`linear_cross_entropy` against the bare product, torch's cross entropy and its autograd: time and memory."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from bench.ops.timing import interleaved
from patterning_fast import _C
from patterning_fast.ops.linear_cross_entropy import linear_cross_entropy, weighted_linear_cross_entropy
from patterning_fast.ops.reference.cross_entropy import linear_cross_entropy as reference

TOKENS, WIDTH, VOCABULARY, THREADS, REPEATS = 4096, 256, 5000, 2, 9
VERIFIED_TOKENS = 1000
MEGABYTE = 1e6


def inputs(tokens: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states and unembedding that want gradients, labels, weights."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=generator).requires_grad_()
    unembedding = (torch.randn(vocabulary, WIDTH, generator=generator) / 8).requires_grad_()
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    return hidden, unembedding, labels, torch.rand(tokens, generator=generator)


@torch.no_grad()
def losses_here(hidden: Tensor, unembedding: Tensor, labels: Tensor, _: Tensor) -> Tensor:
    return linear_cross_entropy(hidden, unembedding, labels)


@torch.no_grad()
def losses_of_torch(hidden: Tensor, unembedding: Tensor, labels: Tensor, _: Tensor) -> Tensor:
    return functional.cross_entropy(functional.linear(hidden, unembedding), labels, reduction="none")


def gradients_here(*arguments: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(weighted_linear_cross_entropy(*arguments)[0], arguments[:2])


def gradients_of_torch(hidden: Tensor, unembedding: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    losses = functional.cross_entropy(hidden @ unembedding.T, labels, reduction="none")
    return torch.autograd.grad((losses * weights).sum(), (hidden, unembedding))


FUNCTIONS = {
    function.__name__: function for function in (losses_here, losses_of_torch, gradients_here, gradients_of_torch)
}


def verified(arguments: tuple[Tensor, ...]) -> bool:
    """Whether losses and gradients are within 1e-4 of the reference's, relative to its largest."""
    chained = [tensor.detach()[None] for tensor in arguments]
    exact = [torch.empty_like(chained[at], dtype=torch.float64) for at in (3, 0, 1)]
    reference(*chained, -100, *exact)  # type: ignore[arg-type, call-arg]
    actual = (losses_here(*arguments), *gradients_here(*arguments))
    return all(float((a - e[0]).abs().max() / e.abs().max()) < 1e-4 for a, e in zip(actual, exact, strict=True))


def memory(name: str) -> float:
    """Bytes by which the process's peak grows while a function runs, without its results; in a process of its own."""
    command = [sys.executable, "-m", "bench.ops.linear_cross_entropy", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(name: str) -> float:
    torch.set_num_threads(THREADS)
    arguments = inputs(TOKENS, VOCABULARY)
    FUNCTIONS[name](*inputs(7, 9))  # libraries load
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
    before = peak()
    results = FUNCTIONS[name](*arguments)
    return peak() - before - sum(result.nbytes for result in ([results] if isinstance(results, Tensor) else results))


def peak() -> int:
    """Largest resident memory of this process [bytes]."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])


def rows() -> list[dict[str, object]]:
    """The figures, each with its bar and with those of its peers."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    arguments = inputs(TOKENS, VOCABULARY)
    hidden, unembedding, labels, _ = (tensor.detach() for tensor in arguments)
    logits = hidden @ unembedding.T
    is_verified = verified(inputs(VERIFIED_TOKENS, VOCABULARY))
    seconds = interleaved(
        {
            "mm": lambda: torch.mm(hidden, unembedding.T),
            "held": lambda: functional.cross_entropy(logits, labels, reduction="none"),
        }
        | {name: partial(function, *arguments) for name, function in FUNCTIONS.items()},
        REPEATS,
    )
    torch.set_num_threads(threads_before)
    megabytes = {name: memory(name) / MEGABYTE for name in FUNCTIONS}
    shared = {
        "op": "linear_cross_entropy",
        "form": f"cpp@{_C.build_info()['isa']}",
        "size": f"{TOKENS} tokens, width {WIDTH}, vocabulary {VOCABULARY}, {THREADS} threads",
        "verified": is_verified,
    }
    losses, gradients = seconds["losses_here"], seconds["gradients_here"]
    loss_peers = {
        "torch.mm [ms]": 1e3 * seconds["mm"],
        "F.linear, F.cross_entropy [ms]": 1e3 * seconds["losses_of_torch"],
        "F.cross_entropy, logits held [ms]": 1e3 * seconds["held"],
        "here [ms]": 1e3 * losses,
    }
    gradient_peers = {"torch autograd [ms]": 1e3 * seconds["gradients_of_torch"], "here [ms]": 1e3 * gradients}
    of_mm, speed_up = losses / seconds["mm"], seconds["losses_of_torch"] / losses
    gradient_speed_up = seconds["gradients_of_torch"] / gradients
    per_thread = megabytes["losses_here"] / THREADS
    of_torch = megabytes["gradients_here"] / megabytes["gradients_of_torch"]
    return [
        shared | {"figure": "losses: time over that of torch.mm alone", "value": of_mm, "unit": "ratio", "bar": 1.2,
                  "holds": of_mm <= 1.2, "peers": loss_peers},
        shared | {"figure": "losses: faster than F.linear and F.cross_entropy", "value": speed_up, "unit": "times",
                  "bar": 1.5, "holds": speed_up >= 1.5, "peers": loss_peers},
        shared | {"figure": "losses: extra memory a thread", "value": per_thread, "unit": "MB", "bar": 4.0,
                  "holds": per_thread <= 4,
                  "peers": {"F.linear, F.cross_entropy [MB]": megabytes["losses_of_torch"] / THREADS}},
        shared | {"figure": "losses and gradients: faster than torch autograd", "value": gradient_speed_up,
                  "unit": "times", "bar": 1.0, "holds": gradient_speed_up >= 1, "peers": gradient_peers},
        shared | {"figure": "losses and gradients: extra memory over torch's", "value": of_torch, "unit": "ratio",
                  "bar": 0.1, "holds": of_torch <= 0.1,
                  "peers": {f"{name} [MB]": megabytes[name] for name in ("gradients_of_torch", "gradients_here")}},
    ]  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(measure_memory(sys.argv[1]))
    else:
        for row in rows():
            print(row)
