"""Training that is cut short and taken up again gives the bits of training that is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, AdamW, NAdam
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

import patterning_fast as pf
from patterning_fast.engine.checkpoint import read_record, sha256
from patterning_fast.posterior.losses import Batch
from patterning_fast.training.state import REST, packed
from tests.flips import flipped, random_bits
from tests.models import language_model, tokens

STEPS = 9
WEIGHTS = torch.linspace(0, 2, 12)


class CutOffError(Exception):
    """Stands for whatever ends a process."""


class Loss:
    """Squared error of a sample that ends the run in the forward pass of one step."""

    def __init__(self, cut_off: float = math.inf) -> None:
        self._calls, self._cut_off = -2, cut_off  # the first calls are to see the shape, and what the losses are

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        if self._calls >= self._cut_off:
            raise CutOffError
        self._calls += 1
        return pf.losses.squared_error(model, batch)


def warmed_up(optimizer: torch.optim.Optimizer) -> SequentialLR:
    return SequentialLR(optimizer, [LinearLR(optimizer, total_iters=3), CosineAnnealingLR(optimizer, 6)], [3])


RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one cycle, clipped": {"schedule": partial(OneCycleLR, max_lr=0.1, total_steps=STEPS), "max_grad_norm": 0.5},
    "momentum, lambda": {
        "optimizer": partial(SGD, momentum=0.9),
        "schedule": partial(LambdaLR, lr_lambda=lambda step: 1 / (1 + step)),
    },
    "sampled": {"weights": WEIGHTS, "weighting": "sampling", "optimizer": NAdam},
    "weighted, milestones": {"weights": WEIGHTS, "schedule": partial(MultiStepLR, milestones=[2, 5, 5])},
    "warmed up": {"schedule": warmed_up, "optimizer": Adagrad, "weight_decay": 0.1},
    "bfloat16": {"precision": "bfloat16"},
}


def network() -> nn.Module:
    """Draws random numbers and has buffers of several types."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2))


def train(checkpoint: Path | None, model: nn.Module | None = None, cut_off: float = math.inf, **changes: Any) -> Any:
    model = network() if model is None else model
    generator = torch.Generator().manual_seed(1)
    data = (torch.randn(12, 3, generator=generator), torch.randn(12, 2, generator=generator))
    arguments: dict[str, Any] = {"steps": STEPS, "batch_size": 4, "lr": 0.05, "metrics_every": 4, "progress": False}
    torch.manual_seed(2)
    rows = pf.train(
        model, data, Loss(cut_off), checkpoint=checkpoint, checkpoint_seconds=0,
        metrics=lambda model: {"norm": model.get_parameter("0.weight").norm()}, **arguments | changes,
    )  # fmt: skip
    return model, rows


def same(model: nn.Module, other: nn.Module) -> bool:
    there = other.state_dict()
    return all(torch.equal(tensor, there[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", RUNS)
def test_cut_short_at_every_step_it_ends_in_the_same_bits(name: str, tmp_path: Path) -> None:
    model, rows = train(None, **RUNS[name])
    for _ in range(STEPS - 1):
        with pytest.raises(CutOffError):
            train(tmp_path, cut_off=1, **RUNS[name])
    resumed, resumed_rows = train(tmp_path, cut_off=1, **RUNS[name])
    assert same(resumed, model)
    assert [row["step"] for row in rows] == [0, 4, 8, 9]
    assert str(resumed_rows) == str(rows)  # NaN included
    again, rows_again = train(tmp_path, cut_off=0, **RUNS[name])
    assert same(again, model)
    assert str(rows_again) == str(rows)
    assert again.training  # as before the run


def test_a_checkpoint_holds_the_model_by_name(tmp_path: Path) -> None:
    model, _ = train(tmp_path)
    saved = load_file(tmp_path / f"checkpoint-{STEPS}.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(saved[f"model.{name}"], tensor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.06}, r"optimizer.groups: .*'lr': 0.05.* there, .*'lr': 0.06.* here"),
        ({"optimizer": SGD}, "optimizer.class: torch.optim.adamw.AdamW there, torch.optim.sgd.SGD here"),
        ({"schedule": partial(LinearLR, total_iters=2)}, "schedule.class: nothing there, .*LinearLR here"),
        ({"weights": WEIGHTS}, r"weights: None there, [0-9a-f]{32} here"),
        ({"weighting": "sampling"}, "configuration.weighting: loss there, sampling here"),
        ({"max_grad_norm": 1.0}, "configuration.max_grad_norm: None there, 1.0 here"),
        ({"seed": 1}, "configuration.seed: 0 there, 1 here"),
    ],
)
def test_another_run_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(ValueError, match=r"(?s)holds a checkpoint of another run:.*" + message):
        train(tmp_path, **changes)
    other = network()
    with torch.no_grad():
        other.get_parameter("3.bias")[0] += 1e-3
    with pytest.raises(ValueError, match=r"model.3.bias: [0-9a-f]{32} there"):
        train(tmp_path, other)


def test_a_lost_run_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="not finite by step 2; lower lr"):
        pf.train(language_model(), tokens(), pf.losses.next_token, steps=9, batch_size=4, lr=1e30, progress=False,
                 checkpoint=tmp_path, checkpoint_seconds=0)  # fmt: skip
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["checkpoint-1.safetensors"]


def reference(schedule: Callable[..., Any] | None, max_grad_norm: float | None, precision: str) -> Tensor:
    """The same training as a loop of plain torch."""
    model, data = language_model(), tokens()
    generator = torch.Generator().manual_seed(5)
    optimizer = AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    scheduler = schedule(optimizer) if schedule else None
    for _ in range(STEPS):
        batch = data[torch.randint(len(data), (4,), generator=generator)]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = pf.losses.next_token(model, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        if max_grad_norm:
            nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        if scheduler:
            scheduler.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("schedule", [None, warmed_up])
@pytest.mark.parametrize("max_grad_norm", [None, 0.3])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_is_the_loop_one_would_write(schedule: Any, max_grad_norm: float | None, precision: Any) -> None:
    model = language_model()
    pf.train(
        model, tokens(), pf.losses.next_token, steps=STEPS, batch_size=4, lr=1e-2, weight_decay=0.1, seed=5,
        schedule=schedule, max_grad_norm=max_grad_norm, precision=precision, progress=False,
    )  # fmt: skip
    found = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert torch.equal(found, reference(schedule, max_grad_norm, precision))


def test_what_cannot_work_is_said_at_once() -> None:
    with pytest.raises(TypeError, match="ReduceLROnPlateau wants a metric; choose another"):
        train(None, schedule=ReduceLROnPlateau)
    with pytest.raises(ValueError, match=r"precision must be one of \('float32', 'bfloat16'\), got 'float16'"):
        train(None, precision="float16")
    with pytest.raises(ValueError, match="max_grad_norm must be a finite number > 0, or None, got 0"):
        train(None, max_grad_norm=0.0)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    """As a disk damages it, and as only another program would write it, hashes and all."""
    whole, _ = train(tmp_path)
    path = tmp_path / f"checkpoint-{STEPS}.safetensors"
    for bit in random_bits(path, 20, seed=0):
        with flipped(path, bit), pytest.raises(ValueError, match=f"{path.name} is damaged .*of 8, is whole: remove"):
            train(tmp_path)
    saved, record = load_file(path), read_record(path.with_suffix(".json"))
    for changed in (
        {name: each for name, each in saved.items() if name != "model.0.weight"},
        {name: each for name, each in saved.items() if name != REST},
        saved | {"model.0.weight": torch.zeros(1)},
        saved | {REST: torch.zeros(9, dtype=torch.uint8)},
        saved | {REST: packed({"optimizer": {}})},
    ):
        save_file(changed, path, {"run": "another"})
        record.path.write_bytes(replace(record, tensors_sha256=sha256(path)).content())
        with pytest.raises(ValueError, match=f"{path.name} is damaged"):
            train(tmp_path)
    record.path.unlink()
    again, _ = train(tmp_path)
    assert same(again, whole)


def test_other_code_of_makers_is_another_run(tmp_path: Path) -> None:
    train(tmp_path, optimizer=lambda params, **options: SGD(params, momentum=0.5, **options))
    with pytest.raises(ValueError, match=r"makers\.optimizer: its code is another here"):
        train(tmp_path, optimizer=lambda params, **options: SGD(params, momentum=0.5, nesterov=False, **options))


def test_other_versions_are_allowed_by_name(tmp_path: Path) -> None:
    whole, _ = train(tmp_path)
    record = read_record(tmp_path / f"checkpoint-{STEPS}.json")
    older = {"python": "3.11", "torch": "2.6.0", "patterning_fast": "0.0.1"}
    record.path.write_bytes(replace(record, identity=record.identity | {"versions": older}).content())
    with pytest.raises(ValueError, match=r"made with other versions: .*pass allow_versions=True"):
        train(tmp_path)
    again, _ = train(tmp_path, allow_versions=True)
    assert same(again, whole)
