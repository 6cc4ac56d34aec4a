"""Checkpoints: runs that are killed give the bits of one that is not, and nothing else is ever resumed."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import patterning_fast as pf
from patterning_fast.durable import reading
from patterning_fast.engine.checkpoint import Checkpoint, discard, read_record
from tests.engine.interrupted import RUNS
from tests.faults import FULL, IO_ERROR, KILL, POWER_LOSS, at_every_operation
from tests.flips import cut, flipped, random_bits
from tests.models import language_model, language_posterior, tokens

KILLS = 8
FLIPS = 500  # in each of the two files
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


def interrupted(folder: Path, every: int, kills: int, *what: str) -> None:
    """Kill runs, and compare what they came to with what undisturbed ones did."""
    command = [sys.executable, "-W", "error", "-m", "tests.engine.interrupted"]
    arguments = [str(folder), str(every), str(kills), "0", *what]
    done = subprocess.run(
        [*command, *arguments], cwd=Path(__file__).parents[2], env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = {"before an operation": 32 // every, "within a file": 1, "at a random moment": kills}
    assert [json.loads(line) for line in done.stdout.splitlines()] == [counts] * len(what)
    for each in what:
        undisturbed, *others = sorted((folder / each).iterdir(), key=lambda path: int(path.name))
        assert others
        for other in others:
            assert (other / "result.safetensors").read_bytes() == (undisturbed / "result.safetensors").read_bytes()


def test_killed_runs_resume_to_the_bit(tmp_path: Path) -> None:
    """Killed at random moments, before every operation on files of a start and a save, and halfway through tensors."""
    interrupted(tmp_path, 1, KILLS, "sampled")
    undisturbed, *others = sorted((tmp_path / "sampled").iterdir(), key=lambda folder: int(folder.name))
    assert others
    traces = files(undisturbed / "traces.zarr")
    assert len(traces) > 10
    for folder in others:
        assert files(folder / "traces.zarr") == traces
        assert sorted(path.name for path in (folder / "checkpoint").iterdir()) == [
            "checkpoint-10.json", "checkpoint-10.safetensors", "checkpoint-9.json", "checkpoint-9.safetensors",
            "checkpoint.lock",
        ]  # fmt: skip


def test_killed_runs_of_every_kind_resume_to_the_bit(tmp_path: Path) -> None:
    interrupted(tmp_path, 16, 1, "calibrated", "differentiated", "verified", "replicated")


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
            r"loss.name: patterning_fast.posterior.losses.next_token there, .*test_checkpoint.other_loss here$",
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


def test_other_samples_of_the_loss_are_another_run(tmp_path: Path) -> None:
    sample(tmp_path, loss_samples=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"probes.samples of L: "):
        sample(tmp_path, loss_samples=torch.tensor([2, 3]))


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


def saved_twice(folder: Path, kept: int = 2) -> Path:
    """A folder with checkpoints of 1 and 2 draws, or that of 2 alone."""
    with Checkpoint(folder, IDENTITY, 0) as checkpoint:
        for draws in range(3 - kept, 3):
            checkpoint.save(draws, state(draws))
    return folder


def read_back(folder: Path) -> tuple[int, dict[str, Tensor]]:
    with Checkpoint(folder, IDENTITY, 0) as checkpoint:
        into = state(0.0)
        return checkpoint.restore(into), into


def refused(folder: Path, name: str) -> str:
    """The message with which the damage of a file is refused."""
    with pytest.raises(ValueError, match=f"{name} is damaged") as error:
        read_back(folder)
    return str(error.value)


@pytest.mark.parametrize("name", ["checkpoint-2.json", "checkpoint-2.safetensors"])
def test_no_flipped_bit_and_no_cut_goes_unnoticed(tmp_path: Path, name: str) -> None:
    path = saved_twice(tmp_path) / name
    for bit in random_bits(path, FLIPS, seed=0):
        with flipped(path, bit):
            assert "The checkpoint before, of 1, is whole: remove" in refused(tmp_path, name)
    for size in range(0, path.stat().st_size, 1 + path.stat().st_size // 50):
        with cut(path, size):
            refused(tmp_path, name)
    draws, into = read_back(tmp_path)
    assert draws == 2
    assert torch.equal(into["params"], state(2.0)["params"])


def remove(path: Path) -> None:
    path.unlink()


def change_draws(path: Path, to: object = 1) -> None:
    path.write_text(path.read_text().replace('"draws_done": 2', f'"draws_done": {json.dumps(to)}'))


def respace(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes())))


def reseal(path: Path) -> None:
    """Other draws, and the hash that goes with them."""
    path.write_bytes(replace(read_record(path), draws_done=2.0).content())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "damage", "why"),
    [
        ("checkpoint-2.safetensors", remove, "it is not there"),
        ("checkpoint-2.json", change_draws, "its SHA-256 is not that of its content"),
        ("checkpoint-2.json", partial(change_draws, to=-5), "its SHA-256"),
        ("checkpoint-2.json", partial(change_draws, to="2"), "its SHA-256"),
        ("checkpoint-2.json", respace, "its SHA-256"),
        ("checkpoint-2.json", reseal, "it is of 2.0 draws"),
    ],
)
@pytest.mark.parametrize("kept", [1, 2])
def test_what_is_damaged_is_named_and_how_to_go_on(
    tmp_path: Path, name: str, damage: Callable[[Path], None], why: str, kept: int
) -> None:
    damage(saved_twice(tmp_path, kept) / name)
    message = refused(tmp_path, name)
    assert why in message
    record = tmp_path / "checkpoint-2.json"
    if kept == 1:
        assert message.endswith("no checkpoint before it can be read whole: name another folder to start afresh")
        return
    assert message.endswith(f"The checkpoint before, of 1, is whole: remove {record} to go on from there")
    record.unlink()
    draws, into = read_back(tmp_path)
    assert draws == 1
    assert torch.equal(into["params"], state(1.0)["params"])


def test_a_damaged_run_ends_in_the_same_bits_from_the_checkpoint_before(tmp_path: Path) -> None:
    whole = sample(tmp_path, checkpoint_seconds=0)
    with flipped(tmp_path / "checkpoint-3.safetensors", 5000):
        with pytest.raises(ValueError, match=r"checkpoint-3.safetensors is damaged .*remove .*checkpoint-3.json to go"):
            sample(tmp_path)
        (tmp_path / "checkpoint-3.json").unlink()
        again = sample(tmp_path)
    assert torch.equal(again.totals.cross, whole.totals.cross)


@pytest.mark.parametrize("name", ["checkpoint-2.json", "checkpoint-2.safetensors"])
def test_what_cannot_be_read_is_not_called_damaged(tmp_path: Path, name: str) -> None:
    path = saved_twice(tmp_path) / name
    path.unlink()
    path.mkdir()  # root may read any file
    with pytest.raises(OSError, match=f"cannot read a checkpoint, {path}: Is a directory; look after the disk"):
        read_back(tmp_path)


def test_permissions_are_the_mend_of_what_may_not_be_read() -> None:
    with pytest.raises(OSError, match="cannot read a checkpoint, x: Permission denied; allow yourself to read it"), (
        reading("a checkpoint", Path("x"))
    ):  # fmt: skip
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


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
        with limit, pytest.raises(OSError, match=r"cannot write a checkpoint to .*: File too large; name another path. "
                                  "The last, of 1, is whole: run again"):  # fmt: skip
            checkpoint.save(2, state(2.0))
    with Checkpoint(tmp_path, identity, 0) as checkpoint:
        into = state(0.0)
        assert checkpoint.restore(into) == 1
    assert torch.equal(into["params"], state(1.0)["params"])
    assert sorted(files(tmp_path)) == ["checkpoint-1.json", "checkpoint-1.safetensors", "checkpoint.lock"]


def test_a_fault_at_any_operation_leaves_a_save_that_is_whole(tmp_path: Path) -> None:
    """The last two or the two before, and no other files."""
    folder, found, removing = saved_twice(tmp_path / "folder"), set(), []

    def third_save() -> None:
        with Checkpoint(folder, IDENTITY, 0) as checkpoint:
            checkpoint.save(3, state(3.0))

    for ended in at_every_operation(third_save, folder, (KILL, POWER_LOSS, IO_ERROR, FULL)):
        if ended.error != "killed":
            assert ended.error is None or "OSError: cannot write" in ended.error, ended
        draws, into = read_back(folder)
        assert torch.equal(into["params"], state(float(draws))["params"]), ended
        kept = [f"checkpoint-{each}.{kind}" for each in (draws - 1, draws) for kind in ("json", "safetensors")]
        assert sorted(files(folder)) == [*kept, "checkpoint.lock"], ended
        if ended.fault is POWER_LOSS and "checkpoint-1." in str(ended):  # what is committed is on the disk by then
            assert draws == 3, ended
            removing.append(ended)
        found.add(draws)
    assert found == {2, 3}
    assert len(removing) == 2


def test_a_full_disk_is_noticed_before_sampling(tmp_path: Path) -> None:
    with files_of_at_most(2000), pytest.raises(OSError, match=r"cannot write 0\.\d MiB of checkpoints to"):
        sample(tmp_path)


def test_a_folder_that_cannot_be_is_noticed_before_sampling(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write checkpoints to .*: Not a directory; name another"):
        sample(tmp_path / "file" / "checkpoint")


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    """Under names that only look like ours, and under ours; of another run, too."""
    with Checkpoint(tmp_path / "other", {"configuration": {"seed": 1}}, 0) as checkpoint:
        checkpoint.save(1, state())
    other = (tmp_path / "other" / "checkpoint-1.safetensors").read_bytes()
    mine = {
        "notes.txt": b"mine", "checkpoint-mine.safetensors": b"mine", "checkpoint-2.safetensors": b"mine",
        "checkpoint-1.safetensors": other, "checkpoint.json": b"mine",
    }  # fmt: skip
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in mine.items():
        (folder / name).write_bytes(content)
    found = sample(folder, checkpoint_seconds=0)
    assert sample(folder).attrs == found.attrs
    discard(folder)
    assert files(folder) == mine


def test_what_an_interrupted_save_leaves_is_removed(tmp_path: Path) -> None:
    saved_twice(tmp_path)
    before = sorted(files(tmp_path))
    shutil.copy(tmp_path / "checkpoint-2.safetensors", tmp_path / "checkpoint-3.safetensors")
    (tmp_path / "checkpoint.partial").mkdir()
    (tmp_path / "checkpoint.partial" / "checkpoint-3.json").write_text("{")
    assert read_back(tmp_path)[0] == 2
    assert sorted(files(tmp_path)) == before
    discard(tmp_path)
    assert not tmp_path.exists()


def test_the_lock_is_no_way_to_a_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "checkpoint.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="cannot write checkpoints to"):
        sample(tmp_path / "folder")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_forked_child_does_not_hold_the_folder(tmp_path: Path) -> None:
    """It outlives the run, and neither keeps the folder in use nor removes anything from it."""
    checkpoint = Checkpoint(tmp_path, IDENTITY, 0)
    (started, starts), (ends, end) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        os.write(starts, b"x")
        os.read(ends, 1)
        checkpoint.close()
        os._exit(0)
    try:
        os.read(started, 1)
        with pytest.raises(BlockingIOError):  # the child has not let go of it for its parent
            Checkpoint(tmp_path, IDENTITY, 0)
        checkpoint.lock.close()  # as when the process is killed
        with Checkpoint(tmp_path, IDENTITY, 0) as again:
            (tmp_path / "checkpoint.partial").mkdir()
            os.write(end, b"x")
            assert os.waitpid(child, 0)[1] == 0
            assert (tmp_path / "checkpoint.partial").exists()
            again.save(1, state())
    finally:
        for each in (started, starts, ends, end):
            os.close(each)


def test_an_empty_path_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="checkpoint must be a path that is not empty"):
        sample("")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def stack_posterior() -> pf.LocalPosterior:
    """One that kernels run."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    data = (torch.randn(12, 3), torch.randn(12, 2))
    return pf.LocalPosterior(model, pf.losses.squared_error, data, n_beta=10.0, localization=10.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"observables": {"size": lambda model: model.embedding.norm()}},
        {"burn_in": 2, "precision": "bfloat16", "loss_kernel": True},
        {"posterior": stack_posterior(), "engine": "native", "burn_in": 1},
    ],
)
def test_more_draws_are_those_of_a_longer_run(tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = sample(tmp_path / "whole", draws=6, **changes)
    for draws in (1, 4, 6):
        grown = sample(tmp_path / "grown", draws=draws, **changes)
    for name, total in vars(whole.totals).items():
        assert torch.equal(total, getattr(grown.totals, name)), name
    for name, trace in vars(whole.traces).items():
        assert torch.equal(trace, getattr(grown.traces, name)), name
    assert grown.attrs["draws"] == 6
    with pytest.raises(ValueError, match=r"has 6 draws done, more than draws=5: ask for as many or more, or name"):
        sample(tmp_path / "grown", draws=5, **changes)


@pytest.mark.parametrize("what", RUNS)
def test_every_kind_of_run_knows_what_it_is(tmp_path: Path, what: str) -> None:
    """Its seed, and the versions it was begun with."""
    first = {name: tensor.clone() for name, tensor in RUNS[what](tmp_path).items()}
    with pytest.raises(ValueError, match=r"of another run:\n  configuration.seed: 0 there, 7 here"):
        RUNS[what](tmp_path, seed=7)
    for path in sorted(tmp_path.rglob("checkpoint-*.json")):
        record = read_record(path)
        path.write_bytes(replace(record, identity=record.identity | {"versions": VERSIONS_THERE}).content())
    with pytest.raises(ValueError, match=r"with other versions: torch: 2.6.0 there"):
        RUNS[what](tmp_path)
    for name, tensor in RUNS[what](tmp_path, allow_versions=True).items():
        assert torch.equal(tensor.nan_to_num(), first[name].nan_to_num()), name


VERSIONS_THERE = {"python": "3.11", "torch": "2.6.0", "patterning_fast": "0.1.0"}


def test_other_versions_are_refused_unless_they_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sample(tmp_path, draws=2, observables={"one": lambda model: torch.ones(())})
    path = tmp_path / "checkpoint-2.json"
    record = read_record(path)
    other_code = {"one": record.identity["observables"]["one"] | {"bytecode": "of another Python"}}
    older = record.identity | {"versions": VERSIONS_THERE, "observables": other_code}
    path.write_bytes(replace(record, identity=older).content())
    again: dict[str, Any] = {"observables": {"one": lambda model: torch.ones(())}}
    with pytest.raises(ValueError, match=r"with other versions: torch: 2.6.0 there, .* here. .*allow_versions=True"):
        sample(tmp_path, **again)
    assert "earlier_versions" not in first.attrs
    for _ in range(2):  # it is on record from then on
        found = sample(tmp_path, allow_versions=True, **again)
        assert found.attrs["earlier_versions"] == "python 3.11, torch 2.6.0, patterning_fast 0.1.0"
    assert "earlier_versions" in sample(tmp_path, **again).attrs


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
