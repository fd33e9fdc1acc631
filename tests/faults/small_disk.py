"""A real file system of a few megabytes, where mounting is allowed."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_MS_RDONLY, _MS_REMOUNT, _MNT_DETACH = 1, 32, 2


def _mount(target: Path, flags: int, options: str) -> None:
    if _LIBC.mount(b"tmpfs", os.fsencode(target), b"tmpfs", flags, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")


class SmallDisk:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._filler = root / "filler"

    def fill(self, *, but: int = 0) -> None:
        """Takes all space, except `but` bytes."""
        with self._filler.open("ab") as file:
            while (size := self._space() - but) > 0:
                with contextlib.suppress(OSError):  # somebody else writes, too
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)

    def _space(self) -> int:
        space = os.statvfs(self.root)
        return space.f_bavail * space.f_frsize

    def free(self) -> None:
        self._filler.unlink()

    def remount(self, *, read_only: bool) -> None:
        _mount(self.root, _MS_REMOUNT | (_MS_RDONLY if read_only else 0), "")


@contextmanager
def small_disk(root: Path, size: int) -> Iterator[SmallDisk]:
    """Raises PermissionError where mounting is not allowed."""
    root.mkdir()
    _mount(root, 0, f"size={size},mode=0700")
    try:
        yield SmallDisk(root)
    finally:
        if _LIBC.umount2(os.fsencode(root), _MNT_DETACH):
            raise OSError(ctypes.get_errno(), "umount2")
