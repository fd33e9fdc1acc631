"""A broker for practice, as a process of its own on a free loopback port: Mosquitto, else amqtt (the `demo` extra).

`python -m gateway.simulator.broker PORT` is the amqtt one.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Final

from gateway.simulator.children import Child, package_environment

START_SECONDS: Final = 10.0
_PLACES: Final = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))


class NoBroker(Exception):
    """No broker can be started; the text says what to install."""


def find_broker() -> str:
    """`mosquitto` or `amqtt`. Raises NoBroker."""
    if shutil.which("mosquitto", path=_PLACES):
        return "mosquitto"
    if importlib.util.find_spec("amqtt") is not None:
        return "amqtt"
    raise NoBroker(
        "there is no broker on this machine: install Mosquitto (apt install mosquitto), "
        "or the one that comes with the demo extra (pip install 'chekt-gateway[demo]')"
    )


def free_port() -> int:
    """A port of the loopback that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def start_broker(folder: Path, port: int, which: str | None = None) -> Child:
    """Starts a broker and returns when it takes connections. Raises NoBroker."""
    which = which or find_broker()
    if which == "mosquitto":
        binary = shutil.which("mosquitto", path=_PLACES)
        if binary is None:
            raise NoBroker("Mosquitto is not installed")
        lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", "persistence false"]
        if os.geteuid() == 0:
            lines.append("user root")  # else it would drop its rights, and with them our folder
        config = folder / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n")
        command = [binary, "-c", str(config)]
    else:
        command = [sys.executable, "-m", "gateway.simulator.broker", str(port)]
    child = await Child.start(which, command, log=folder / "broker.log", environment=package_environment())
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if child.ended or time.monotonic() > deadline:
                await child.stop()
                raise NoBroker(f"{which} does not start; see {child.log}") from None
            await asyncio.sleep(0.05)
        else:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            return child


async def _amqtt(port: int) -> None:
    # Not an import of ours: it is there only where the demo extra was wanted.
    broker = importlib.import_module("amqtt.broker").Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await broker.start()
    await stop.wait()
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(_amqtt(int(sys.argv[1])))
