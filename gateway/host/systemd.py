"""What the gateway tells systemd, and what systemd asks of it: sd_notify(3) and sd_watchdog_enabled(3).

The protocol is one datagram of `NAME=value` lines to the socket in `$NOTIFY_SOCKET`. Outside systemd every call does
nothing. A message that cannot be delivered never disturbs the gateway: the methods return False, nothing is raised.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Final

# Seconds that a full queue of PID 1 may hold us up: READY= must not get lost easily, the event loop must not stand.
_SEND_TIMEOUT: Final = 1.0
AT_WORK_SECONDS: Final = 120.0  # a slow card may need so long for one flush


class Systemd:
    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._address = _socket_address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_seconds: float | None = _watchdog_seconds(environ)
        """Without a WATCHDOG=1 for so long systemd kills the gateway; None: nobody watches. Feed it twice as often."""

    @property
    def listens(self) -> bool:
        return self._address is not None

    def ready(self, status: str | None = None) -> bool:
        return self._notify("READY=1", *([_status(status)] if status else []))

    def status(self, text: str) -> bool:
        """One line, shown by `systemctl status`."""
        return self._notify(_status(text))

    def watchdog(self) -> bool:
        return self._notify("WATCHDOG=1")

    def stopping(self, status: str | None = None) -> bool:
        return self._notify("STOPPING=1", *([_status(status)] if status else []))

    def reloading(self) -> bool:
        """To be followed by `ready()`."""
        # sd_notify(3): MONOTONIC_USEC= belongs to RELOADING=1 from systemd 253 on; older ones ignore it.
        return self._notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def at_work(self, what: str) -> bool:
        """Before READY=1: the start goes on, and may take a while longer from now on. To be told again in time."""
        # sd_notify(3), EXTEND_TIMEOUT_USEC=: beyond TimeoutStartSec= the service must tell it within each such while.
        return self._notify(f"EXTEND_TIMEOUT_USEC={round(AT_WORK_SECONDS * 1_000_000)}", _status(what))

    def _notify(self, *assignments: str) -> bool:
        if self._address is None:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.settimeout(_SEND_TIMEOUT)
                channel.sendto("\n".join(assignments).encode(), self._address)
        except OSError:
            return False
        return True


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())  # a line break would begin another assignment


def _socket_address(name: str) -> str | None:
    # sd_notify(3): a path, or "@" and a name in the abstract namespace; anything else is not for us.
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else None


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    # sd_watchdog_enabled(3): WATCHDOG_PID, if set, says whom the watchdog is meant for.
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return microseconds / 1_000_000 if microseconds > 0 else None
