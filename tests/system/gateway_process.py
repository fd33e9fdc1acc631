"""The real gateway as its own process, with a real notify socket, for the tests that pull the plug."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sqlite3
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fakes.waiting import until

CONFIG = """
[site]
location_id = "Z6RSOG"
recorder_id = "Z6RANV"
timezone = "UTC"

[cloud]
url = "{cloud_url}"
token_url = "{token_url}"
audience = "{audience}"
client_id = "{client_id}"
key_id = "{key_id}"
private_key_file = "{key_file}"

[broker]
url = "{broker_url}"

[outbox]
path = "{folder}/outbox.db"
reserve = "1MiB"

[delivery]
stale_after = "off"
drain_jitter = "0ms"
{delivery}

[defaults]
{defaults}

[sources.nvr]
family = "frigate"
{source}

{cameras}
"""


@dataclass
class GatewayProcess:
    """`start()` returns when the process has said READY=1; `kill()` is SIGKILL; `stop()` is SIGTERM."""

    folder: Path
    config: Path
    environment: dict[str, str] = field(default_factory=dict)
    outbox_folder: Path | None = None  # where the configuration says so; else beside it
    process: asyncio.subprocess.Process | None = None
    states: list[str] = field(default_factory=list)
    _socket: socket.socket | None = None
    _starts: int = 0
    _log_from: int = 0
    _may_end: bool = False
    _minding: asyncio.Task[None] | None = None

    @property
    def outbox(self) -> Path:
        return (self.outbox_folder or self.folder) / "outbox.db"

    @property
    def log(self) -> str:
        path = self.folder / "gateway.log"
        return path.read_text(errors="replace") if path.exists() else ""

    async def start(self, *, ready: bool = True) -> None:
        self._log_from = len(self.log)
        assert self.process is None or self.process.returncode is not None
        self.states.clear()
        self._starts += 1
        notify = self.folder / f"notify{self._starts}.sock"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(notify))
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self._heard)
        with (self.folder / "gateway.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "gateway",
                "run",
                "--config",
                os.fspath(self.config),
                stdout=log,
                stderr=log,
                env={**os.environ, "NOTIFY_SOCKET": os.fspath(notify), **self.environment},
            )
        self._may_end = not ready
        self._minding = asyncio.create_task(self._mind(self.process, asyncio.current_task()))
        if ready:
            await until(lambda: "READY=1" in self.states or self.returncode is not None, timeout=30, what="READY=1")
            assert "READY=1" in self.states, self.log

    async def _mind(self, process: asyncio.subprocess.Process, test: asyncio.Task[Any] | None) -> None:
        """A gateway that ends by itself ends the test at once: nobody waits for what cannot come any more."""
        code = await process.wait()
        if not self._may_end and test is not None and process is self.process:
            sys.stdout.write(self.log[-20_000:])
            test.cancel(f"the gateway has ended with {code}")

    async def subscribed(self) -> None:
        """The broker has taken our subscriptions: from here on it keeps what is published."""
        await until(lambda: "mqtt_connected" in self.log[self._log_from :], timeout=30, what="mqtt_connected")

    @property
    def returncode(self) -> int | None:
        return None if self.process is None else self.process.returncode

    def _heard(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(BlockingIOError):
            self.states += self._socket.recv(65536).decode().splitlines()

    def signal(self, number: int) -> None:
        assert self.process is not None
        self._may_end = True
        self.process.send_signal(number)

    async def wait(self) -> int:
        assert self.process is not None
        self._may_end = True
        code = await self.process.wait()
        if self._minding is not None:
            await self._minding
        self._close_socket()
        return code

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.wait()

    async def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return await self.wait()

    async def end(self) -> None:
        """For fixtures: whatever state it is in, nothing of it remains."""
        if self.process is not None and self.process.returncode is None:
            await self.kill()
        self._close_socket()

    def _close_socket(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def rows(self, query: str, *arguments: object) -> list[tuple[Any, ...]]:
        """Reads the outbox as a stranger would: its own read-only connection."""
        if not self.outbox.exists():
            return []
        connection = sqlite3.connect(f"file:{self.outbox}?mode=ro", uri=True, timeout=5)
        try:
            return connection.execute(query, arguments).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []
            raise
        finally:
            connection.close()

    async def ask(self, *arguments: str) -> tuple[int, str, str]:
        """Runs one command of the CLI against this gateway's configuration."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gateway",
            *arguments,
            "--config",
            os.fspath(self.config),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **self.environment},
        )
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def status(self) -> dict[str, Any]:
        _, out, err = await self.ask("status", "--json")
        assert out, err
        answer: dict[str, Any] = json.loads(out)
        return answer

    def counters(self) -> dict[str, int]:
        return dict(self.rows("SELECT name, value FROM counter"))

    def check_conservation(self) -> None:
        """Every message ends in exactly one counted outcome, every event in exactly one state, as the rows show it."""
        count = self.counters()
        ends = ("stored", "duplicate", "closing", "ignored", "unmapped", "unreadable")
        assert count.get("received", 0) == sum(count.get(end, 0) for end in ends), count
        states = dict(self.rows("SELECT state, count(*) FROM event GROUP BY state"))
        assert {
            name.removeprefix("state_"): n for name, n in count.items() if name.startswith("state_") and n
        } == states
        pruned = sum(n for name, n in count.items() if name.startswith("pruned_"))
        assert count.get("events", 0) == sum(states.values()) + pruned, count

    def settled(self) -> bool:
        """Nothing waits for the cloud any more."""
        return not self.rows("SELECT 1 FROM event WHERE state IN ('pending', 'sending') LIMIT 1")
