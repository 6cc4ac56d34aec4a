"""Where the time of workload A goes, in devinterp's categories, beside what its products take at the rate of torch.mm.

Counted are the multiply-adds of matrix products and attention, of each component by the suffix that it runs.
"""

from __future__ import annotations

import cProfile
import pstats
import threading
import time

import torch

import patterning_fast as pf
from bench.endtoend.workload import A, Workload, our_model
from bench.results import record

DRAWS = 20
PHASES = {
    "probes": ("torch_ensemble.py", "evaluate"),
    "forward and backward": ("torch_ensemble.py", "accumulate_gradients"),
    "update": ("sgld.py", "update"),
    "statistics": ("comoments.py", "update"),
    "recordings": ("recording.py", "recordings"),
    "all": ("sample.py", "sample"),
}


def multiply_adds(workload: Workload, component: str) -> tuple[float, float]:
    """For a token: of its loss, and of its loss and the gradient of what moves."""
    width, words, span = workload.width, workload.vocabulary, workload.context
    head_width = width // workload.heads
    layer = 4 * width**2 + width * span
    own = 4 * head_width * width + head_width * span
    if component == "full":
        loss = width * words + workload.layers * layer
        return loss, 3 * loss
    if component.startswith(f"l{workload.layers - 1}"):  # on known logits
        loss = (2 * head_width + 1) * words + own
        return loss, 3 * loss
    after = (workload.layers - 1 - int(component[1])) * layer
    return width * words + after + own, 2 * (width * words + after) + 3 * own


def counted(workload: Workload) -> dict[str, float]:
    """Floating-point operations of a draw's probes, and of a step, of a chain of each component."""
    names = [f"l{layer}h{head}" for layer in range(workload.layers) for head in range(workload.heads)] + ["full"]
    each = [multiply_adds(workload, name) for name in names]
    of_step = workload.batch_size * (workload.context - 1)
    return {
        "probes": 2.0 * workload.tokens_per_draw * sum(loss for loss, _ in each),
        "forward and backward": 2.0 * of_step * sum(both for _, both in each),
    }


def product_rate(threads: int) -> float:
    """Operations a second of 1,024-wide products on so many cores, one product each, as chains run."""
    torch.set_num_threads(1)
    best: list[float] = []

    def one() -> None:
        left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
        left @ right
        started = time.perf_counter()
        for _ in range(40):
            left @ right
        best.append(40 * 2 * 1024**3 / (time.perf_counter() - started))

    workers = [threading.Thread(target=one) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    torch.set_num_threads(threads)
    return sum(best)


def main() -> None:
    model, threads = our_model(A), torch.get_num_threads()
    model.load_state_dict(A.weights())
    posterior = pf.LocalPosterior(
        model, pf.losses.next_token, A.data("train"), n_beta=A.n_beta, localization=A.localization
    )
    heads = {name: pf.component(model, name, masks) for name, masks in A.head_masks(model).items()}
    rate, profile = product_rate(threads), cProfile.Profile()
    profile.enable()
    pf.sample(
        posterior,
        pf.SGLD(A.lr),
        components=heads,
        probes={"probe": A.data("probe")},
        chains=A.chains,
        draws=DRAWS,
        batch_size=A.batch_size,
        loss_samples=torch.arange(A.loss_samples),
        progress=False,
    )
    profile.disable()
    steps = DRAWS * A.chains * A.component_count()
    spent = dict.fromkeys(PHASES, 0.0)
    for (file, _, function), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        for name, (of_file, of_function) in PHASES.items():
            if file.endswith(of_file) and function == of_function:
                spent[name] += 1e3 * cumulative / steps
    limits = {name: 1e3 * flops / rate / A.component_count() for name, flops in counted(A).items()}
    spent["rest"] = spent.pop("all") - sum(spent[name] for name in PHASES if name != "all")
    cores = f"at {rate / 1e9:.0f} GFLOP/s on {threads} cores"
    print(f"{'ms per chain-step':<24} {'measured':>9} {'limit':>7}   {cores}")
    rows: list[dict[str, object]] = []
    for name, each in (spent | {"sum": sum(spent.values())}).items():
        limit = sum(limits.values()) if name == "sum" else limits.get(name)
        shown = "" if limit is None else f"{limit:7.2f}   {limit / each:.0%} of the limit's rate"
        print(f"{name:<24} {each:9.2f} {shown}")
        rows.append({"figure": f"A: {name}", "value": each, "unit": "ms per chain-step", "bar": None, "holds": None,
                     "peers": {} if limit is None else {"limit [ms]": limit, "GFLOP/s": rate / 1e9}})  # fmt: skip
    record("phases", rows)


if __name__ == "__main__":
    main()
