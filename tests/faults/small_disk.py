"""A file system of a few megabytes that can be filled and made read-only, for whoever runs the tests.

Root mounts one. Others run the test once more in a user and mount namespace of their own, where they may; where that
is not allowed either, with the witness (`witness.c`), which keeps the books of a small disk without there being one.
SMALL_DISK=mount, namespace or witness asks for one way. A test that is marked `small_disk` is run where it can be.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

import pytest

from tests.faults.forgetful_disk import Faults, build, witnessed

WHY_NOT: Final = "needs leave to mount a file system, or to make a user namespace, or a C compiler: none is here"
_LIBC = ctypes.CDLL(None, use_errno=True)
_MS_RDONLY, _MS_REMOUNT, _MNT_DETACH = 1, 32, 2
_WAY, _FOLDER, _FAULTS = "SMALL_DISK", "WITNESS_FOLDER", "WITNESS_FAULTS"


class SmallDisk(Protocol):
    root: Path

    def fill(self) -> None:
        """Takes all space."""

    def free(self) -> None: ...

    def remount(self, *, read_only: bool) -> None: ...


def _mount(target: Path, flags: int, options: str) -> None:
    if _LIBC.mount(b"tmpfs", os.fsencode(target), b"tmpfs", flags, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")


class Mounted:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._filler = root / "filler"

    def fill(self) -> None:
        with self._filler.open("ab") as file:
            while (size := self._space()) > 0:
                with contextlib.suppress(OSError):  # somebody else writes, too
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)

    def _space(self) -> int:
        space = os.statvfs(self.root)
        return space.f_bavail * space.f_frsize

    def free(self) -> None:
        self._filler.unlink()

    def remount(self, *, read_only: bool) -> None:
        _mount(self.root, _MS_REMOUNT | (_MS_RDONLY if read_only else 0), "")


class Pretended:
    def __init__(self, root: Path, faults: Faults, size: int) -> None:
        self.root = root
        self._faults = faults
        self._size = size
        self.free()

    def fill(self) -> None:
        self._faults.set(room_errno=errno.ENOSPC, room=0)

    def free(self) -> None:
        self._faults.set(room_errno=errno.ENOSPC, room=self._size)

    def remount(self, *, read_only: bool) -> None:
        self._faults.set(write_errno=errno.EROFS if read_only else 0)


@contextmanager
def small_disk(root: Path, size: int) -> Iterator[SmallDisk]:
    if os.environ.get(_WAY) == "pretended":
        folder = Path(os.environ[_FOLDER])
        root.symlink_to(folder)
        yield Pretended(root, Faults(Path(os.environ[_FAULTS]), fresh=False), size)
        return
    root.mkdir()
    _mount(root, 0, f"size={size},mode=0700")
    try:
        yield Mounted(root)
    finally:
        if _LIBC.umount2(os.fsencode(root), _MNT_DETACH):
            raise OSError(ctypes.get_errno(), "umount2")


@functools.cache
def way() -> str | None:
    """How this process gets a small disk: `mount` and `pretended` here, `namespace` and `witness` in another one."""
    if asked := os.environ.get(_WAY):
        return asked
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(OSError), small_disk(Path(folder) / "disk", 1 << 20):
            return "mount"
        try_it = [*_NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", folder]
        with contextlib.suppress(OSError):
            if subprocess.run(try_it, capture_output=True, timeout=30, check=False).returncode == 0:
                return "namespace"
    return "witness" if shutil.which("cc") else None


_NAMESPACE: Final = ("unshare", "--user", "--map-root-user", "--mount")


def runs_elsewhere(item: pytest.Item) -> bool:
    return item.get_closest_marker("small_disk") is not None and way() in ("namespace", "witness")


def run_elsewhere(item: pytest.Item) -> pytest.TestReport:
    """This one test, in a process that can have a small disk."""
    began = time.time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before, environment = _surroundings(folder)
        options = ["-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'tests'}"]
        run = subprocess.run(
            [*before, sys.executable, "-m", "pytest", *options, item.nodeid],
            cwd=item.config.rootpath,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
    # 5: nothing was collected. Whatever is skipped there was not run.
    passed = run.returncode == 0 and " passed" in run.stdout
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={},
        outcome="passed" if passed else "failed",
        longrepr=None if passed else f"as {way()}: {' '.join(before)}\n{run.stdout}{run.stderr}",
        when="call",
        duration=time.time() - began,
        start=began,
        stop=time.time(),
    )


def _surroundings(folder: Path) -> tuple[list[str], Mapping[str, str]]:
    if way() == "namespace":
        return list(_NAMESPACE), {_WAY: "mount"}
    disk, faults = folder / "disk", folder / "faults"
    disk.mkdir()
    Faults(faults)
    return [], {_WAY: "pretended", **witnessed(build(folder), disk, faults=faults)}
