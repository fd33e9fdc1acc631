"""Whether somebody disciplines this machine's clock: adjtimex(2), and the stamp of systemd-timesyncd.

The kernel counts its clock as synchronised until its greatest possible error passes 16 s: some nine hours after the
last word of a time server (`STA_UNSYNC`, include/uapi/linux/timex.h). Under `ProtectClock=` the call is refused; then
the stamp that systemd-timesyncd leaves after its first success since boot (systemd-timesyncd.service(8)) must do.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Final

STAMP: Final = Path("/run/systemd/timesync/synchronized")
_STA_UNSYNC: Final = 0x0040
_SAME_CLOCK_SECONDS: Final = 30


class _Timeval(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("fraction", ctypes.c_long))


class _Timex(ctypes.Structure):
    """struct timex of 64-bit Linux; the rest is reserved."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("frequency", ctypes.c_long),
        ("maximum_error", ctypes.c_long),
        ("estimated_error", ctypes.c_long),
        ("status", ctypes.c_int),
        ("constant", ctypes.c_long),
        ("precision", ctypes.c_long),
        ("tolerance", ctypes.c_long),
        ("time", _Timeval),
        ("rest", ctypes.c_byte * 256),
    )


def synchronised(*, stamp: Path = STAMP) -> bool | None:
    """None: nobody can tell."""
    found = _adjtimex()
    if found is None:
        return True if stamp.exists() else None
    status, seconds = found
    if abs(seconds - time.time()) > _SAME_CLOCK_SECONDS:
        return None  # the kernel speaks of another clock than the one that this process is shown
    return not status & _STA_UNSYNC


def _adjtimex() -> tuple[int, int] | None:
    """Status and seconds of the kernel's clock; nothing is changed by `modes` = 0."""
    timex = _Timex()
    try:
        if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) < 0:
            return None
    except (OSError, AttributeError):
        return None
    return timex.status, timex.time.seconds
