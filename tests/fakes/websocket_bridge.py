"""A broker's websocket listener in front of its TCP listener: each packet of the broker, however large, is one frame.

Mosquitto's own cuts them up and is slow with large ones; other brokers are not.
"""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import WSMsgType, web

from tests.fakes.old_broker import read_packet


class WebsocketBridge:
    def __init__(self, broker_port: int) -> None:
        self._broker_port = broker_port
        self._runner: web.AppRunner | None = None
        self.port = 0
        self.largest = 0  # frame that was sent

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def __aenter__(self) -> WebsocketBridge:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._carry)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _carry(self, request: web.Request) -> web.WebSocketResponse:
        frames = web.WebSocketResponse(protocols=("mqtt",), compress=False, max_msg_size=0, autoping=False)
        await frames.prepare(request)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._broker_port)

        async def from_the_broker() -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                while True:
                    packet = await read_packet(reader)
                    self.largest = max(self.largest, len(packet))
                    await frames.send_bytes(packet)
            await frames.close()

        back = asyncio.create_task(from_the_broker())
        try:
            async for message in frames:
                if message.type is WSMsgType.BINARY:
                    writer.write(message.data)
        finally:
            writer.close()
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)
        return frames
