"""Faults of disk, power and process at every system call that changes files, as SQLite's tests have them.

The kernel stops a forked process at each such call (seccomp) and asks this one what shall come of it, whoever makes
the call: Python, torch's C++, Arrow's or safetensors' Rust. `at_every_operation` is the way in:

    for ended in at_every_operation(action, folder, (KILL, POWER_LOSS, IO_ERROR, FULL)):
        again = run(action, folder)          # the same command once more
        assert again.error is None, ended    # and what `folder` must hold now
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import platform
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

SECONDS = 120
"""After which a run hangs."""


@dataclass(frozen=True)
class Fault:
    """What happens at one operation, which is not carried out."""

    name: str
    error: int = 0
    """Number of the error that the call returns; 0 for an end of the process."""
    lasting: bool = False
    """Whether each later operation that needs room fails as well."""
    loses_power: bool = False
    """Whether all is lost that was not flushed: bytes of files, and names in folders."""
    keeps_removals: bool = False
    """Whether what was removed is gone all the same, though other changes before it are lost: disks may reorder."""


KILL = Fault("kill")
POWER_LOSS = Fault("loss of power", loses_power=True)
REORDERED = Fault("loss of power after removals", loses_power=True, keeps_removals=True)
IO_ERROR = Fault("I/O error", errno.EIO)
FULL = Fault("full disk", errno.ENOSPC, lasting=True)


class Operation(NamedTuple):
    """A system call that changes files, and which: the path, or that of the descriptor."""

    call: str
    path: str


@dataclass(repr=False)
class Ended:
    """How a run ended."""

    fault: Fault | None
    at: int
    """Number of the operation that the fault came at, from 0."""
    operations: list[Operation] = field(default_factory=list)
    """Those within the folder."""
    error: str | None = "killed"
    """None after a return, the traceback after an exception."""

    def __str__(self) -> str:
        where = self.operations[self.at] if self.at < len(self.operations) else "the end"
        return f"{self.fault.name if self.fault else 'no fault'} at {self.at}, {where}; {self.error or 'returned'}"

    __repr__ = __str__


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A folder that takes no time to flush."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        yield Path(folder)


def at_every_operation(
    action: Callable[[], object], folder: Path, faults: Sequence[Fault], every: int = 1
) -> Iterator[Ended]:
    """Run `action` with each fault at each operation in turn (at one of `every`), each time from `folder` as it is now.

    Yields after each, with what the fault has left in `folder`.
    """
    before = folder.with_name(f"{folder.name}-before")
    shutil.copytree(folder, before, symlinks=True)

    def start_again() -> None:
        shutil.rmtree(folder)
        shutil.copytree(before, folder, symlinks=True)

    try:
        undisturbed = run(action, folder)
        assert undisturbed.error is None, undisturbed
        assert undisturbed.operations, f"{action} changes nothing in {folder}"
        for at in range(0, len(undisturbed.operations), every):
            for fault in faults:
                start_again()
                yield run(action, folder, fault, at)
    finally:
        shutil.rmtree(before)


def run(action: Callable[[], object], folder: Path, fault: Fault | None = None, at: int = 0) -> Ended:
    """Run `action` in a forked process, with a fault at one of its operations within `folder`.

    It has one torch thread, since OpenMP's do not survive a fork. Returns once the processes that it started have
    ended too.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("the numbers of system calls are those of Linux on x86-64")
    disk, ended = Disk(folder), Ended(fault, at)
    ours, theirs = socket.socketpair()
    with ours, disk.held:
        process = os.fork()
        if process == 0:
            ours.close()
            in_the_process(action, theirs)
        theirs.close()
        listener = received_descriptor(ours)
        try:
            supervise(listener, process, disk, ended)
        finally:
            os.close(listener)
            if os.waitpid(process, os.WNOHANG)[0] == 0:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
        said = b"".join(iter(lambda: ours.recv(65536), b"")).decode()
        if said:
            ended.error = said.removeprefix("ok") or None
        if fault and fault.loses_power and len(ended.operations) > at:
            disk.restore(fault.keeps_removals)
    return ended


def in_the_process(action: Callable[[], object], channel: socket.socket) -> None:
    """What the forked process does; it ends here."""
    said = "ok"
    try:
        os.setsid()
        torch.set_num_threads(1)
        listener = stop_at_changes()
        channel.sendmsg([b"d"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))])
        os.close(listener)
        action()
    except BaseException:
        said = traceback.format_exc()
    channel.sendall(said.encode())
    os._exit(0)


def received_descriptor(channel: socket.socket) -> int:
    _, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_LEN(4))
    if not ancillary:
        pytest.skip("this kernel lets no process watch another's system calls")
    return array.array("i", ancillary[0][2])[0]


def supervise(listener: int, process: int, disk: Disk, ended: Ended) -> None:
    """Answer each call of the process and of those that it starts, until the last has ended."""
    poll, fault = select.poll(), ended.fault
    poll.register(listener, select.POLLIN)
    while True:
        ready = poll.poll(1000 * SECONDS)
        assert ready, f"hangs after {ended}"
        if not ready[0][1] & select.POLLIN:
            return
        notice = bytearray(NOTICE.size)
        try:
            fcntl.ioctl(listener, RECEIVE, notice)
        except FileNotFoundError:  # it was killed meanwhile
            continue
        number, thread, _, call, _, _, *arguments = NOTICE.unpack(notice)
        operation, error = operation_of(thread, CALLS[call], arguments), 0
        if operation and disk.folder in (Path(operation.path), *Path(operation.path).parents):
            at = len(ended.operations)
            ended.operations.append(operation)
            if fault and (at == ended.at or (fault.lasting and at > ended.at and operation.call in NEED_ROOM)):
                error = fault.error
                if not error:
                    os.kill(process, signal.SIGKILL)
                    continue  # an answer might let it carry the operation out first
            if operation.call in ("fsync", "fdatasync") and not error:
                disk.flush(f"/proc/{thread}/fd/{arguments[0]}")
            if operation.call in ("unlink", "rmdir") and not error and os.path.lexists(operation.path):
                disk.removed.add(disk.hold(operation.path))
        try:
            fcntl.ioctl(listener, SEND, ANSWER.pack(number, 0, -error, 0 if error else CONTINUE))
        except FileNotFoundError:
            continue


class Disk:
    """What a folder would hold after a loss of power: names that were flushed with their folder, bytes with their file.

    The strictest disk that POSIX allows; a killed process leaves the most lenient.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.held = ExitStack()
        """Descriptors of all inodes that were seen, so that the number of none is given out again."""
        self.contents: dict[int, bytes] = {}
        self.names: dict[int, dict[str, tuple[int, bool]]] = {}
        """Of each folder's inode: names to inode, and whether it is a folder."""
        self.removed: set[int] = set()
        for path in (self.folder, *self.folder.rglob("*")):
            self.flush(str(path))

    def flush(self, path: str) -> None:
        """Keep what a file or a folder holds now."""
        inode = self.hold(path)
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                self.names[inode] = {
                    each.name: (self.hold(each.path), each.is_dir(follow_symlinks=False)) for each in entries
                }
        else:
            self.contents[inode] = Path(path).read_bytes()

    def hold(self, path: str) -> int:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        self.held.callback(os.close, descriptor)
        return os.stat(descriptor).st_ino

    def restore(self, without_removed: bool) -> None:
        """Make the folder what it would be."""
        if not without_removed:
            self.removed.clear()
        root = self.folder.stat().st_ino
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.make(self.folder, root)

    def make(self, folder: Path, inode: int) -> None:
        for name, (number, is_folder) in self.names.get(inode, {}).items():
            if number in self.removed:
                continue
            if is_folder:
                (folder / name).mkdir()
                self.make(folder / name, number)
            else:
                (folder / name).write_bytes(self.contents.get(number, b""))


# What follows is Linux': include/uapi/linux/seccomp.h and the table of system calls on x86-64.

NOTICE = struct.Struct("=QIIiIQ6Q")
"""seccomp_notif: id, thread, flags, number of the call, architecture, instruction, arguments."""
ANSWER = struct.Struct("=QqiI")
"""seccomp_notif_resp: id, value, error, flags."""
RECEIVE, SEND, CONTINUE = 0xC0502100, 0xC0182101, 1
ALLOW, ASK = 0x7FFF0000, 0x7FC00000
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06


class Call(NamedTuple):
    """A system call, and which of its arguments name the file."""

    name: str
    path: int | None = None
    descriptor: int | None = None
    """Of the file, or of the folder that `path` is in."""
    flags: int | None = None
    """Of those that open: without one that writes, nothing changes."""


CALLS = {
    1: Call("write", None, 0), 18: Call("pwrite", None, 0), 20: Call("writev", None, 0), 296: Call("pwritev", None, 0),
    328: Call("pwritev2", None, 0), 40: Call("sendfile", None, 0), 326: Call("copy_file_range", None, 2),
    2: Call("open", 0, None, 1), 257: Call("open", 1, 0, 2), 85: Call("creat", 0),
    74: Call("fsync", None, 0), 75: Call("fdatasync", None, 0),
    76: Call("truncate", 0), 77: Call("ftruncate", None, 0), 285: Call("fallocate", None, 0),
    82: Call("rename", 0), 264: Call("rename", 1, 0), 316: Call("rename", 1, 0),
    83: Call("mkdir", 0), 258: Call("mkdir", 1, 0), 84: Call("rmdir", 0), 87: Call("unlink", 0),
    263: Call("unlink", 1, 0), 86: Call("link", 1), 265: Call("link", 3, 2), 88: Call("symlink", 1),
    266: Call("symlink", 2, 1), 90: Call("chmod", 0), 91: Call("fchmod", None, 0), 268: Call("chmod", 1, 0),
}  # fmt: skip
NEED_ROOM = {
    "write", "pwrite", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range", "open", "creat", "fallocate",
    "mkdir", "link", "symlink",
}  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
AT_CWD = -100


def operation_of(thread: int, call: Call, arguments: Sequence[int]) -> Operation | None:
    """The operation that a stopped call is; None for one that changes no file."""
    if call.flags is not None and not arguments[call.flags] & WRITES:
        return None
    try:
        number = AT_CWD if call.descriptor is None else ctypes.c_int(arguments[call.descriptor]).value
        at = os.readlink(f"/proc/{thread}/cwd" if number == AT_CWD else f"/proc/{thread}/fd/{number}")
        if call.path is None:
            return Operation(call.name, at.removesuffix(" (deleted)"))
        with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
            memory.seek(arguments[call.path])
            name = b""
            while b"\0" not in name and (more := memory.read(256 - memory.tell() % 256)):  # not beyond its page
                name += more
    except OSError:  # the call will fail by itself, or its process has ended
        return None
    path = os.path.normpath(os.path.join(at, os.fsdecode(name.partition(b"\0")[0])))
    return Operation(call.name, os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)))


def stop_at_changes() -> int:
    """Have the kernel stop this process, and those that it starts, at each of `CALLS`; whom to ask is returned."""
    steps = [struct.pack("=HBBI", LOAD, 0, 0, 0)]
    steps += [struct.pack("=HBBI", JUMP_IF_EQUAL, len(CALLS) - at, 0, call) for at, call in enumerate(CALLS)]
    steps += [struct.pack("=HBBI", RETURN, 0, 0, answer) for answer in (ALLOW, ASK)]
    program = ctypes.create_string_buffer(b"".join(steps))
    header = struct.pack("@HP", len(steps), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_filter, with_listener, seccomp = 38, 1, 8, 317
    libc.prctl(no_new_privileges, 1, 0, 0, 0)
    listener = libc.syscall(seccomp, set_filter, with_listener, header)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp is not allowed here")
    return listener
