"""Processes that the demo starts: each in a session of its own, ended by its own id on every way out.

Killed itself, the demo can end nobody: then the kernel does (prctl(2), PR_SET_PDEATHSIG), which setpriv asks it for.
That is a part of util-linux; where it is not there, such children stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gateway

STOP_SECONDS: Final = 10.0  # then it is killed
# What systemd or an installer has set for the real gateway is not for a rehearsal.
_NOT_INHERITED: Final = ("STATE_DIRECTORY", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "JOURNAL_STREAM", "WATCHDOG_USEC")


def package_environment() -> dict[str, str]:
    """This process's environment without settings of a real gateway, and with this very package to import."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _NOT_INHERITED and not name.startswith("CHEKT_GATEWAY_")
    }
    places = [str(Path(gateway.__file__).parent.parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    return environment


@functools.cache
def _ending_with_us() -> tuple[str, ...]:
    """What to write before a command for that; not each setpriv knows it (busybox has one of its own)."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return ()
    words = (setpriv, "--pdeathsig", "TERM", "--")
    tried = subprocess.run([*words, "true"], check=False, capture_output=True, timeout=STOP_SECONDS)
    return words if tried.returncode == 0 else ()


@dataclass
class Child:
    """One process of ours."""

    name: str
    process: asyncio.subprocess.Process
    log: Path | None

    @classmethod
    async def start(
        cls, name: str, command: Sequence[str], *, log: Path | None, environment: Mapping[str, str]
    ) -> Child:
        """Output goes to `log`, or with None to our own stderr."""
        with contextlib.ExitStack() as stack:
            out = sys.stderr if log is None else stack.enter_context(log.open("ab"))
            # A session of its own: Ctrl-C in the terminal reaches us alone, and we end the others in order.
            process = await asyncio.create_subprocess_exec(
                *_ending_with_us(),
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=dict(environment),
                start_new_session=True,
            )
        return cls(name, process, log)

    @property
    def ended(self) -> bool:
        return self.process.returncode is not None

    async def wait(self) -> int:
        return await self.process.wait()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough."""
        for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
            if self.ended:
                return
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), seconds)

    def last_lines(self, count: int = 15) -> str:
        """The end of its log, for a message about its failure."""
        if self.log is None:
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])
