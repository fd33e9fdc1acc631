"""A real broker that speaks only MQTT 3.1.1 (amqtt), in its own process; and brokers that answer CONNECT as told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import sys
from collections.abc import Callable
from typing import Final

from tests.fakes.mosquitto import free_port

_AMQTT: Final = """
import asyncio, sys
from amqtt.broker import Broker
async def main():
    broker = Broker({
        "listeners": {"default": {"type": "tcp", "bind": "127.0.0.1:" + sys.argv[1]}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    })
    await broker.start()
    print("listening", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


class OldBroker:
    """amqtt 0.12 takes the properties of an MQTT 5 CONNECT for a long client id and waits for ever for the rest."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> OldBroker:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _AMQTT,
            str(self.port),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(30):
            line = await self._process.stdout.readline()
        assert line == b"listening\n"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.communicate()


class ScriptedBroker:
    """Says what `talk` says, once for each connection. `connects` are the CONNECT packets as they came."""

    def __init__(
        self, talk: Callable[[ScriptedBroker, bytes], bytes | None], *, port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        """`talk` gets each packet and returns the answer; None closes the connection."""
        self._tls = tls
        self._talk = talk
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.connects: list[bytes] = []
        self.packets: list[bytes] = []
        self.connections = 0
        self.port = port

    @property
    def open(self) -> int:
        return len(self._writers)

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    async def __aenter__(self) -> ScriptedBroker:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def say(self, packet: bytes) -> None:
        """To everyone who is connected."""
        for writer in self._writers:
            writer.write(packet)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        try:
            while True:
                packet = await read_packet(reader)
                self.packets.append(packet)
                if packet[0] == 0x10:
                    self.connects.append(packet)
                answer = self._talk(self, packet)
                if answer is None:
                    return
                writer.write(answer)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def ordinary(
    *, session_present: bool = False, suback: bytes = b"\x01"
) -> Callable[[ScriptedBroker, bytes], bytes | None]:
    """A broker of MQTT 5 that does what it should; `suback` are the reason codes for our filters."""

    def talk(_: ScriptedBroker, packet: bytes) -> bytes | None:
        match packet[0] & 0xF0:
            case 0x10:
                return bytes([0x20, 3, session_present, 0, 0])
            case 0x80:
                return bytes([0x90, 3 + len(suback)]) + packet[2:4] + b"\x00" + suback
            case 0x30:
                return b"\x40\x02" + packet[4 + packet[3] :][:2]
            case 0xE0:
                return None
            case _:
                return b""

    return talk


async def read_packet(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(1)
    length = shift = 0
    while True:
        byte = await reader.readexactly(1)
        head += byte
        length |= (byte[0] & 0x7F) << shift
        shift += 7
        if not byte[0] & 0x80:
            return head + await reader.readexactly(length)


def publish(mid: int, topic: str, payload: bytes) -> bytes:
    """A PUBLISH of MQTT 5 with QoS 1, short enough for one length byte."""
    name = topic.encode()
    body = len(name).to_bytes(2, "big") + name + mid.to_bytes(2, "big") + b"\x00" + payload
    return bytes([0x32, len(body)]) + body


def protocol_level(connect: bytes) -> int:
    """4 is MQTT 3.1.1, 5 is 5 (MQTT 5.0, 3.1.2.2)."""
    return connect[connect.index(b"\x00\x04MQTT") + 6]
