"""A small device: publishes with QoS 1 and knows of which messages the broker said PUBACK; can listen, too.

Its own thread (paho's), so that it goes on whatever the loop under test does. `await confirmed()` waits for the broker.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Literal

from paho.mqtt.client import Client, ConnectFlags, MQTTMessage, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from tests.fakes.waiting import until


class Publisher:
    def __init__(
        self,
        port: int,
        *,
        listen: tuple[str, ...] = (),
        client_id: str = "",
        protocol: Literal["5", "3.1.1"] = "3.1.1",
        inflight: int = 200,
        will: tuple[str, str] | None = None,  # topic, payload; retained
    ) -> None:
        self._port = port
        self._listen = listen
        self._published: list[tuple[bytes, MQTTMessageInfo]] = []
        self._confirmed = 0  # of these, from the front
        self.heard: list[tuple[str, bytes, bool]] = []  # topic, payload, retain
        self.listening = not listen
        v5 = protocol == "5"
        self._client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if v5 else True,
            protocol=MQTTProtocolVersion.MQTTv5 if v5 else MQTTProtocolVersion.MQTTv311,
        )
        self._client.max_inflight_messages = inflight
        if will is not None:
            self._client.will_set(will[0], will[1], qos=1, retain=True)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._client.on_subscribe = self._on_subscribe

    async def start(self) -> Publisher:
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        await until(lambda: self._client.is_connected() and self.listening, what="the publisher's connection")
        return self

    async def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    async def vanish(self) -> None:
        """As if its power had failed: no DISCONNECT, and the broker tells the last will."""
        self._client.loop_stop()
        sock = self._client.socket()
        if sock is not None:
            sock.close()

    async def __aenter__(self) -> Publisher:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def publish(self, topic: str, payload: str | bytes, *, qos: int = 1, retain: bool = False) -> MQTTMessageInfo:
        content = payload.encode() if isinstance(payload, str) else payload
        info = self._client.publish(topic, content, qos=qos, retain=retain)
        self._published.append((content, info))
        return info

    @property
    def acked(self) -> list[bytes]:
        """The payloads that the broker has taken over."""
        return [payload for payload, info in self._published if info.is_published()]

    async def confirmed(self, timeout: float = 30.0) -> None:
        """The broker has everything that was published until now (QoS 0: it is on its way)."""
        await until(self._all_confirmed, timeout=timeout, what="the broker's confirmations")

    def _all_confirmed(self) -> bool:
        while self._confirmed < len(self._published) and self._published[self._confirmed][1].is_published():
            self._confirmed += 1
        return self._confirmed == len(self._published)

    def states(self, topic: str) -> list[str]:
        """What was heard on one topic."""
        return [payload.decode() for name, payload, _ in self.heard if name == topic]

    def _on_connect(self, client: Client, _: Any, __: ConnectFlags, ___: ReasonCode, ____: Properties | None) -> None:
        for topic in self._listen:
            client.subscribe(topic, 1)

    def _on_subscribe(self, _: Client, __: Any, ___: int, ____: list[ReasonCode], _____: Properties | None) -> None:
        self.listening = True

    def _on_message(self, _: Client, __: Any, message: MQTTMessage) -> None:
        self.heard.append((message.topic, bytes(message.payload), message.retain))
