"""Checkpoints: runs that are killed give the bits of one that is not, and nothing else is ever resumed."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import patterning_fast as pf
from patterning_fast.engine.checkpoint import Checkpoint
from tests.models import language_model, language_posterior, tokens

KILLS = 20
IDENTITY = {"configuration": {"seed": 0}}


def sample(folder: Path, posterior: pf.LocalPosterior | None = None, **changes: Any) -> pf.Statistics:
    arguments: dict[str, Any] = {"chains": 2, "draws": 3, "batch_size": 4, "tile": 1, "progress": False}
    sampler = changes.pop("sampler", pf.SGLD(1e-3))
    return pf.sample(posterior or language_posterior(), sampler, checkpoint=folder, **arguments | changes)


def state(value: float = 1.0) -> dict[str, Tensor]:
    return {"params": torch.full((1000,), value), "step": torch.tensor(int(value))}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a full disk, writes past `size` bytes of a file fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_killed_runs_resume_to_the_bit(tmp_path: Path) -> None:
    """Killed at random moments, before every operation on files of two saves, and halfway through the tensors."""
    command = [sys.executable, "-W", "error", "-m", "tests.engine.interrupted", str(tmp_path), str(KILLS), "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    killed = json.loads(done.stdout.splitlines()[-1])
    assert killed == {"before an operation": 32, "within a file": 1, "at a random moment": KILLS}
    undisturbed, *others = sorted(tmp_path.iterdir(), key=lambda folder: int(folder.name))
    assert len(others) > 2
    traces = files(undisturbed / "traces.zarr")
    assert len(traces) > 10
    for folder in others:
        assert (folder / "result.safetensors").read_bytes() == (undisturbed / "result.safetensors").read_bytes()
        assert files(folder / "traces.zarr") == traces
        assert sorted(path.name for path in (folder / "checkpoint").iterdir()) == [
            "checkpoint-10.safetensors", "checkpoint.json", "checkpoint.lock"
        ]  # fmt: skip


def test_checkpoints_do_not_change_the_numbers(tmp_path: Path) -> None:
    saved = sample(tmp_path, checkpoint_seconds=0)
    plain = pf.sample(language_posterior(), pf.SGLD(1e-3), chains=2, draws=3, batch_size=4, tile=1, progress=False)
    assert torch.equal(saved.totals.cross, plain.totals.cross)
    assert torch.equal(saved.traces.distance, plain.traces.distance)


def test_a_finished_run_is_returned_without_sampling(tmp_path: Path) -> None:
    first = sample(tmp_path)
    before = files(tmp_path)
    again = sample(tmp_path)
    assert files(tmp_path) == before
    for name, total in vars(first.totals).items():
        assert torch.equal(total, getattr(again.totals, name)), name
    assert again.attrs == first.attrs  # the seconds it took included
    assert again.diagnostics().identical(first.diagnostics())


def other_model(name: str) -> pf.LocalPosterior:
    model = language_model()
    with torch.no_grad():
        dict(model.named_parameters())[name][0] += 1e-3
    return pf.LocalPosterior(model, pf.losses.next_token, tokens(), n_beta=10.0, localization=100.0)


def other_data() -> pf.LocalPosterior:
    return pf.LocalPosterior(language_model(), pf.losses.next_token, tokens(seed=1), n_beta=10.0, localization=100.0)


def other_loss(model: torch.nn.Module, batch: Any) -> Tensor:
    return 2 * pf.losses.next_token(model, batch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda: {"draws": 4}, r"configuration.draws: 3 there, 4 here$"),
        (lambda: {"seed": 1}, r"configuration.seed: 0 there, 1 here$"),
        (lambda: {"sampler": pf.SGLD(2e-3)}, r"configuration.lr: 0.001 there, 0.002 here$"),
        (lambda: {"posterior": language_posterior(n_beta=11.0)}, r"configuration.n_beta: 10.0 there, 11.0 here$"),
        (lambda: {"posterior": other_model("layers.1.output")}, r"^  model.layers.1.output: [0-9a-f]{32} there, "),
        (lambda: {"posterior": other_data()}, r"^  data: \['[0-9a-f]{32}'\] there, "),
        (lambda: {"posterior": language_posterior(weights=torch.ones(12, 8))}, r"^  weights: None there, [0-9a-f]{32}"),
        (
            lambda: {
                "posterior": pf.LocalPosterior(
                    language_model(), other_loss, tokens(), n_beta=10.0, localization=100.0
                )
            },
            r"code.loss: patterning_fast.posterior.losses.next_token there, tests.engine.test_checkpoint.other_loss",
        ),
        (lambda: {"probes": {"p": tokens(2)}}, r"^  probes.data: .* there, nothing here$"),
        (
            lambda: {"components": {"head": pf.attention_heads(language_model())["l1h0"]}},
            r"^  components.head.layers.1.qkv: nothing there, [0-9a-f]{32} here$",
        ),
        (lambda: {"loss_kernel": True}, r"configuration.loss_kernel: 0 there, 1 here$"),
    ],
)  # fmt: skip
def test_another_run_is_refused(tmp_path: Path, changes: Callable[[], dict[str, Any]], message: str) -> None:
    sample(tmp_path)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"(?m)" + message) as refusal:
        sample(tmp_path, **changes())
    assert str(refusal.value).startswith(f"{tmp_path} holds a checkpoint of another run")
    assert str(refusal.value).endswith("resume that one, or name another folder for this one.")
    assert files(tmp_path) == before


def test_many_differences_are_counted(tmp_path: Path) -> None:
    with Checkpoint(tmp_path, {str(number): 0 for number in range(10)}, 0) as checkpoint:
        checkpoint.save(1, state())
    with pytest.raises(ValueError, match=r"7: 0 there, 1 here\n  and 2 more"):
        Checkpoint(tmp_path, {str(number): 1 for number in range(10)}, 0)


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        Checkpoint(tmp_path, IDENTITY, 60.0),
        pytest.raises(BlockingIOError, match="is in use by another run; wait for it to end, or name another folder"),
    ):
        sample(tmp_path)
    sample(tmp_path)


def test_the_folder_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(pf.ChainDivergedError):
        sample(tmp_path, language_posterior(localization=1e12), sampler=pf.SGLD(1.0), draws=20)
    sample(tmp_path)


def damage_tensors(folder: Path) -> str:
    (path,) = folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    return path.name


def remove_tensors(folder: Path) -> str:
    (path,) = folder.glob("*.safetensors")
    path.unlink()
    return path.name


def damage_record(folder: Path) -> str:
    (folder / "checkpoint.json").write_text('{"draws_done": 3')
    return "checkpoint.json"


@pytest.mark.parametrize("damage", [damage_tensors, remove_tensors, damage_record])
def test_damaged_files_are_named(tmp_path: Path, damage: Callable[[Path], str]) -> None:
    sample(tmp_path)
    name = damage(tmp_path)
    with pytest.raises(ValueError, match=f"{name} is damaged .*: remove .* or name another folder, and start afresh"):
        sample(tmp_path)


def test_tensors_of_other_shapes_are_not_restored(tmp_path: Path) -> None:
    with Checkpoint(tmp_path, IDENTITY, 0) as checkpoint:
        checkpoint.save(1, state())
        with pytest.raises(ValueError, match=r"checkpoint-1.safetensors is damaged \(it holds"):
            checkpoint.restore({"params": torch.zeros(1, 1000), "step": torch.tensor(0)})


def test_views_and_shared_memory_are_saved(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"whole": whole, "row": whole[1], "columns": whole.T[1:3], "half": torch.ones(2, dtype=torch.bfloat16)}
    with Checkpoint(tmp_path, IDENTITY, 0) as checkpoint:
        checkpoint.save(1, tensors)
        into = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        assert checkpoint.restore(into) == 1
    assert all(torch.equal(into[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("identity", [IDENTITY, {"data": "0" * 10_000}])
def test_a_full_disk_leaves_the_last_save(tmp_path: Path, identity: dict[str, Any]) -> None:
    """Full within the tensors, and within a longer record, tensors of the new draw already in place."""
    with Checkpoint(tmp_path, identity, 0) as checkpoint:
        checkpoint.save(1, state(1.0))
        limit = files_of_at_most(2000 if identity is IDENTITY else 5000)
        with limit, pytest.raises(OSError, match="the last one is intact: make room"):
            checkpoint.save(2, state(2.0))
    with Checkpoint(tmp_path, identity, 0) as checkpoint:
        into = state(0.0)
        assert checkpoint.restore(into) == 1
    assert torch.equal(into["params"], state(1.0)["params"])
    assert sorted(files(tmp_path)) == ["checkpoint-1.safetensors", "checkpoint.json", "checkpoint.lock"]


def test_a_full_disk_is_noticed_before_sampling(tmp_path: Path) -> None:
    with files_of_at_most(2000), pytest.raises(OSError, match=r"has no room for 0\.0 MiB of checkpoints: File too"):
        sample(tmp_path)


def test_a_folder_that_cannot_be_is_noticed_before_sampling(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write checkpoints in .*: Not a directory; name another"):
        sample(tmp_path / "file" / "checkpoint")


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoint-2.safetensors").write_text("left by a save that was cut short")
    sample(tmp_path)
    assert sorted(files(tmp_path)) == [
        "checkpoint-3.safetensors", "checkpoint.json", "checkpoint.lock", "notes.txt"
    ]  # fmt: skip


def test_saves_take_a_small_share_of_the_time(tmp_path: Path) -> None:
    tensors = {"params": torch.zeros(2**20)}
    with Checkpoint(tmp_path, IDENTITY, 1e-6) as checkpoint:
        began = time.monotonic()
        checkpoint.save(1, tensors)
        took = time.monotonic() - began
        assert not checkpoint.due()
        assert 1e-6 < checkpoint.wait <= took / 0.05
        time.sleep(checkpoint.wait)
        assert checkpoint.due()
    with Checkpoint(tmp_path, IDENTITY, 3600.0) as checkpoint:
        checkpoint.save(2, tensors)
        assert checkpoint.wait == 3600
    with Checkpoint(tmp_path, IDENTITY, 0) as checkpoint:
        checkpoint.save(3, tensors)
        assert checkpoint.due()


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_bad_intervals_are_refused(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(ValueError, match="checkpoint_seconds must be a finite number >= 0"):
        sample(tmp_path / "new", checkpoint_seconds=seconds)
    assert not (tmp_path / "new").exists()
