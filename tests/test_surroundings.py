"""Every piece of work gives the same bits whatever the caller has set in torch, NumPy and Python, or is refused."""

from __future__ import annotations

import ast
import asyncio
import copy
import hashlib
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import patterning_fast as pf
from patterning_fast.engine.checkpoint import Checkpoint
from patterning_fast.engine.recording import Runners
from patterning_fast.models.head_suffix import HeadSuffix, HeadSuffixRunner
from tests.models import language_model, tokens

PACKAGE = Path(pf.__file__).parent
CHAINS: dict[str, Any] = {"chains": 2, "draws": 3, "batch_size": 4, "tile": 1, "progress": False}
SGLD = pf.SGLD(1e-3)


def stack() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6))


def pairs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(12, 6, generator=generator), torch.randn(12, 6, generator=generator)


STACK, PAIRS, MODEL, TOKENS = stack(), pairs(), language_model(), tokens()


def of_language(**changes: Any) -> pf.LocalPosterior:
    return pf.LocalPosterior(MODEL, pf.losses.next_token, TOKENS, n_beta=10.0, localization=100.0, **changes)


def of_stack() -> pf.LocalPosterior:
    return pf.LocalPosterior(STACK, pf.losses.squared_error, PAIRS, n_beta=20.0, localization=50.0)


Bits = list[np.ndarray]


def read(statistics: pf.Statistics) -> Bits:
    """Everything there is to read of a run but its time."""
    results = [statistics.llc(), statistics.susceptibilities(), statistics.influence(), statistics.diagnostics()]
    return [values for each in results for values in bits(each)]


def bits(result: xr.Dataset) -> Bits:
    return [result[name].values for name in result.variables if result[name].dtype.kind in "fiub"]


def head() -> dict[str, pf.Component]:
    return {"l1h0": pf.attention_heads(MODEL)["l1h0"]}


def norm(model: nn.Module) -> Tensor:
    return torch.stack([each.square().sum() for each in model.parameters()]).sum()


def sampling(sampler: Any = SGLD, **changes: Any) -> Bits:
    watched = {"norm": norm}
    return read(pf.sample(of_language(), sampler, components=head(), observables=watched, **CHAINS | changes))


def native(sampler: Any = SGLD, **changes: Any) -> Bits:
    statistics = pf.sample(of_stack(), sampler, engine="native", **CHAINS | changes)
    assert statistics.attrs["engine"] == "native"
    return read(statistics)


def responding() -> Bits:
    return bits(pf.linear_response(of_language(), SGLD, components=head(), burn_in=1, **CHAINS))


def comparing() -> Bits:
    response = {"draws": 2, "burn_in": 1, "steps_between_draws": 2}
    chains = CHAINS | {"chains": 4}
    return bits(pf.fluctuation_dissipation(of_language(), SGLD, components=head(), response=response, **chains))


def calibrating() -> Bits:
    return bits(pf.calibrate(of_stack(), SGLD, lr=[1e-3, 2e-3], n_beta=[1.0, 20.0], **CHAINS))


@cache
def chi() -> xr.Dataset:
    return pf.sample(of_language(), SGLD, components=pf.attention_heads(MODEL), **CHAINS).susceptibilities()


def planned() -> pf.Plan:
    return pf.invert(chi(), pf.modes(chi(), unsettled=True)[0], strength=0.1, unsettled=True)


def inverting() -> Bits:
    found, plan = pf.modes(chi(), unsettled=True), planned()
    return [found[0].data.values, found[0].components.values, plan.weights.values, *bits(plan.predicted)]


def trained(path: Path | None = None, **changes: Any) -> Bits:
    with torch.inference_mode(False):  # a model that was made within could not be trained
        model = copy.deepcopy(MODEL)
    settings: dict[str, Any] = {"steps": 4, "batch_size": 4, "lr": 1e-2, "progress": False, "checkpoint": path}
    rows = pf.train(model, TOKENS, pf.losses.next_token, weights=planned().weights, **settings | changes)
    return [*(each.detach().numpy() for each in model.parameters()), np.array([row["loss"] for row in rows])]


def replicas() -> Bits:
    initial = torch.cat([each.detach().flatten() for each in STACK.parameters()]).repeat(3, 1)
    return bits(
        pf.train_replicas(STACK, initial, PAIRS, pf.losses.squared_error, steps=4, batch_size=4,
                          optimizer=lambda params: torch.optim.Adam(params, lr=1e-2), progress=False)
    )  # fmt: skip


def verified() -> Bits:
    chosen = pf.verify(planned(), of_language(), SGLD, components=pf.attention_heads(MODEL), fractions=[1.0], **CHAINS)
    return bits(chosen)


def stored(folder: Path) -> Bits:
    pf.save_weights(folder / "weights.parquet", planned(), TOKENS)
    return [pf.load_weights(folder / "weights.parquet", TOKENS).values]


def resumed(folder: Path) -> Bits:
    """Runs that are interrupted after their first draws or steps, and taken up again."""

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    kept: dict[str, Any] = {"checkpoint": folder / "sample", "traces": folder / "traces.zarr", "checkpoint_seconds": 0}
    saves, save = [], Checkpoint.save

    def save_once(*arguments: Any) -> None:
        save(*arguments)
        saves.append(arguments)
        interrupt()

    for work in (partial(sampling, **kept), partial(trained, folder / "train", checkpoint_seconds=0)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoint, "save", save_once)
            with pytest.raises(KeyboardInterrupt):
                work()
    assert len(saves) == 2
    return sampling(**kept) + trained(folder / "train", checkpoint_seconds=0)


WORK: dict[str, Callable[[], Bits]] = {
    "sample": sampling,
    "sample in tiles": partial(sampling, tile=2, chains=4, loss_kernel=True, antithetic=True),
    "sample in bfloat16": partial(sampling, precision="bfloat16"),
    "SGHMC": partial(sampling, pf.SGHMC(1e-4)),
    "SGNHT": partial(sampling, pf.SGNHT(1e-3)),
    "RMSPropSGLD": partial(sampling, pf.RMSPropSGLD(1e-4)),
    "gradient noise corrected": partial(sampling, pf.SGLD(1e-3, gradient_noise_correction=True)),
    "native": native,
    "native SGNHT": partial(native, pf.SGNHT(1e-3)),
    "native RMSPropSGLD": partial(native, pf.RMSPropSGLD(1e-4)),
    "linear_response": responding,
    "fluctuation_dissipation": comparing,
    "calibrate": calibrating,
    "modes and invert": inverting,
    "train": trained,
    "train by sampling": partial(trained, weighting="sampling", max_grad_norm=1.0),
    "train_replicas": replicas,
    "verify": verified,
}
IN_FOLDER: dict[str, Callable[[Path], Bits]] = {"weights": stored, "resumed": resumed}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@contextmanager
def warnings_as_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", pf.UnsettledWarning)  # few draws do here
        yield


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default dtype float64": partial(default_dtype, torch.float64),
    "default dtype bfloat16": partial(default_dtype, torch.bfloat16),
    "default device meta": default_device,
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "deterministic algorithms": deterministic,
    "warnings are errors": warnings_as_errors,
    "NumPy raises": partial(np.errstate, all="raise"),
}


@cache
def plainly(name: str) -> Bits:
    return WORK[name]()


def assert_same_bits(found: Bits, expected: Bits) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """What one test leaves set, the next would not notice."""
    before = torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(before[0])
    torch.set_default_device(None)
    torch.set_num_threads(before[2])


MAIN = ("sample in tiles", "sample in bfloat16", "native", "linear_response", "modes and invert", "train")
CASES = [
    (work, surroundings)
    for surroundings in SURROUNDINGS
    for work in WORK
    if work in MAIN or surroundings in ("default dtype float64", "default device meta")
]


@pytest.mark.parametrize(("work", "surroundings"), CASES)
def test_same_bits(work: str, surroundings: str) -> None:
    expected = plainly(work)
    with SURROUNDINGS[surroundings]():
        found = WORK[work]()
    assert_same_bits(found, expected)


@pytest.mark.parametrize("surroundings", ["default dtype float64", "default device meta", "inference_mode"])
def test_files_and_resumed_runs_are_the_same(surroundings: str, tmp_path: Path) -> None:
    planned()
    expected = stored(tmp_path) + sampling() + trained()
    with SURROUNDINGS[surroundings]():
        found = stored(tmp_path) + resumed(tmp_path)
    assert_same_bits(found, expected)


@pytest.mark.parametrize("work", ["sample in tiles", "native", "linear_response", "modes and invert", "train_replicas"])
def test_same_bits_on_any_number_of_threads(work: str, threads: int) -> None:
    found = WORK[work]()
    assert torch.get_num_threads() == threads
    assert_same_bits(found, plainly(work))


def test_runners_are_made_in_float32_whoever_needs_them_first() -> None:
    """Not in the precision of the evaluation that a worker happens to be at."""
    suffix = HeadSuffix(MODEL, 1, 0, recalls_logits=True)
    with torch.autocast("cpu", torch.bfloat16):
        runner = Runners(of_language())[suffix]
    assert isinstance(runner, HeadSuffixRunner)
    assert (runner.constant.dtype, runner.from_centred.dtype) == (torch.float32, torch.float32)


FOLLOW_DEFAULTS = {"zeros", "ones", "empty", "full", "tensor", "rand", "randn", "normal", "linspace", "eye"}


def test_every_tensor_is_made_with_a_dtype() -> None:
    """Tensors of the library never follow torch's default dtype; parameters of its models do, as those of any."""
    without = []
    for path in PACKAGE.rglob("*.py"):
        calls = [each for each in ast.walk(ast.parse(path.read_text())) if isinstance(each, ast.Call)]
        in_parameters = {
            id(inner) for each in calls if ast.unparse(each.func) == "nn.Parameter" for inner in ast.walk(each)
        }
        for each in calls:
            module, _, function = ast.unparse(each.func).rpartition(".")
            named = any(keyword.arg == "dtype" for keyword in each.keywords)
            if module == "torch" and function in FOLLOW_DEFAULTS and not named and id(each) not in in_parameters:
                without.append(f"{path.name}:{each.lineno}: {ast.unparse(each)}")
    assert not without


NARROWS = r"[\w.]+ is not None|isinstance\([\w.]+, \w+\)"


def test_no_assert_checks_input() -> None:
    """`python -O` drops asserts: they may only tell mypy what is known."""
    checks = []
    for path in PACKAGE.rglob("*.py"):
        for each in ast.walk(ast.parse(path.read_text())):
            if isinstance(each, ast.Assert) and not re.fullmatch(NARROWS, ast.unparse(each.test)):
                checks.append(f"{path.name}:{each.lineno}: {ast.unparse(each)}")
    assert not checks


def test_model_and_data_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model, data = copy.deepcopy(MODEL), TOKENS.clone()
        stacked, numbers = copy.deepcopy(STACK), (PAIRS[0].clone(), PAIRS[1].clone())
        rho = torch.ones(12)
    arguments: dict[str, Any] = {"n_beta": 10.0, "localization": 100.0}
    posterior = pf.LocalPosterior(model, pf.losses.next_token, data, weights=rho, **arguments)
    plain = of_language(weights=torch.ones(12))
    assert_same_bits(read(pf.sample(posterior, SGLD, **CHAINS)), read(pf.sample(plain, SGLD, **CHAINS)))
    posterior = pf.LocalPosterior(stacked, pf.losses.squared_error, numbers, n_beta=20.0, localization=50.0)
    for engine in ("native", "torch"):
        found, expected = (pf.sample(each, SGLD, engine=engine, **CHAINS) for each in (posterior, of_stack()))
        assert_same_bits(read(found), read(expected))
    with pytest.raises(ValueError, match=r"inference_mode.*deepcopy"):
        pf.train(model, data, pf.losses.next_token, steps=1, batch_size=2, lr=1e-3, progress=False)
    pf.train(copy.deepcopy(model), data, pf.losses.next_token, steps=1, batch_size=2, lr=1e-3, progress=False)


class Checkpointed(nn.Module):
    """A stack whose first layers are computed again on the way back."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.stack, self.use_reentrant = copy.deepcopy(STACK), use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_() if self.use_reentrant else x
        return self.stack[2](checkpoint(self.stack[:2], x, use_reentrant=self.use_reentrant))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant: bool) -> None:
    """Where parameters are swapped for the forward pass alone it would compute gradients at w*; training is as ever."""
    model = Checkpointed(use_reentrant)
    refusal = (
        "checkpointed with use_reentrant=True" if use_reentrant else "uses gradient checkpointing .* turn that off"
    )
    with pytest.raises(ValueError, match=refusal):
        pf.LocalPosterior(model, pf.losses.squared_error, PAIRS, n_beta=20.0, localization=50.0)
    ways = model, copy.deepcopy(STACK)
    for each in ways:
        pf.train(each, PAIRS, pf.losses.squared_error, steps=3, batch_size=4, lr=1e-2, progress=False)
    for one, other in zip(*(each.parameters() for each in ways), strict=True):
        assert torch.equal(one, other)


def interrupted() -> None:
    def interrupt(model: nn.Module) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            raise KeyboardInterrupt
        return norm(model)

    with pytest.raises(KeyboardInterrupt):
        pf.sample(of_language(), SGLD, observables={"norm": interrupt}, **CHAINS)


def test_an_interrupt_leaves_no_threads(threads: int) -> None:
    sampling()
    before = threading.active_count()
    interrupted()
    assert threading.active_count() == before
    assert torch.get_num_threads() == threads
    with ThreadPoolExecutor(1) as other:
        assert other.submit(torch.get_num_threads).result() == threads


def test_runs_in_two_threads_at_once(threads: int) -> None:
    """Of one posterior, of others, and of training: each gets its bits, and the threads that it would have alone."""
    posterior = of_language()
    works: list[Callable[[], Bits]] = [
        lambda: read(pf.sample(posterior, SGLD, components=head(), **CHAINS)),
        lambda: read(pf.sample(posterior, SGLD, components=head(), seed=1, **CHAINS)),
        native,
        responding,
        replicas,
    ]
    expected = [work() for work in works]
    together = threading.Barrier(len(works))
    with ThreadPoolExecutor(len(works)) as pool:
        # A thread's very first use of torch, by code of its own, may fall into the start of a pool and take its number.
        list(pool.map(lambda _: (torch.get_num_threads(), together.wait()), works))
        for _ in range(2):
            for found, one in zip(pool.map(lambda work: work(), works), expected, strict=True):
                assert_same_bits(found, one)
            assert set(pool.map(lambda _: torch.get_num_threads(), range(20))) == {threads}
    assert torch.get_num_threads() == threads


def test_within_a_running_event_loop() -> None:
    async def main() -> Bits:
        await asyncio.sleep(0)
        return WORK["sample"]() + await asyncio.to_thread(WORK["native"])

    assert_same_bits(asyncio.run(main()), plainly("sample") + plainly("native"))


IN_CHILDREN = ("sample", "native", "linear_response", "train_replicas")


def in_child(name: str) -> Bits:
    torch.rand(300, 300, dtype=torch.float32) @ torch.rand(300, 300, dtype=torch.float32)
    return WORK[name]()


def used_openmp() -> None:
    """As a parent has whose threads a forked child then lacks."""
    torch.set_num_threads(2)
    torch.rand(10**6, dtype=torch.float32).exp().sum()
    plainly("native")


def assert_children_agree(children: Executor) -> None:
    found: list[Future[Bits]] = [children.submit(in_child, name) for name in IN_CHILDREN]
    for name, each in zip(IN_CHILDREN, found, strict=True):
        assert_same_bits(each.result(timeout=60), plainly(name))


def test_forked_children() -> None:
    """They do not wait for threads that only their parent has."""
    used_openmp()
    fork = multiprocessing.get_context("fork")
    children = ProcessPoolExecutor(2, mp_context=fork)
    try:
        assert_children_agree(children)
    finally:
        for process in (children._processes or {}).values():
            process.kill()  # one that hangs would keep this process
        children.shutdown(cancel_futures=True)
    with fork.Pool(1) as pool:
        assert_same_bits(pool.apply_async(in_child, ["native"]).get(timeout=60), plainly("native"))


def test_spawned_children() -> None:
    used_openmp()
    forkserver, spawn = (multiprocessing.get_context(each) for each in ("forkserver", "spawn"))
    with ProcessPoolExecutor(1, mp_context=forkserver) as served, spawn.Pool(1) as spawned:
        waiting = spawned.apply_async(in_child, ["sample"])
        assert_children_agree(served)
        assert_same_bits(waiting.get(timeout=60), plainly("sample"))


def digest_of_all() -> str:
    """Of the bits of all work."""
    found = [each for name in WORK for each in WORK[name]()]
    return hashlib.sha256(b"".join(each.tobytes() for each in found)).hexdigest()


def test_another_interpreter() -> None:
    """Another hash seed, no asserts and no docstrings, and every warning an error from the first import on."""
    command = "from tests.test_surroundings import digest_of_all; print(digest_of_all())"
    process = subprocess.run(
        [sys.executable, "-OO", "-W", "error", "-W", "ignore:chains of:UserWarning", "-c", command],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == digest_of_all()
