"""Living on one connection to the broker: reading, writing, pinging, acknowledging, saying goodbye.

paho-mqtt keeps the protocol; our event loop does the waiting. Each connection has its own client, so nothing of an old
one (queued acknowledgements, packet ids) can leak into the next.

Promises: SUBSCRIBE is the first packet after the broker accepted us; a message is acknowledged only by `ack`; an
exception in one of our own callbacks ends `run` with that exception. Policy (again when? what is a gap?) lives in
`broker.py`. Sources: OASIS MQTT 5.0 and 3.1.1; paho's source for what its documentation leaves open.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, ParamSpec, Protocol

from paho.mqtt import client as paho
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from gateway.sources import broker_reasons
from gateway.sources.broker_reasons import Lost, Why
from gateway.sources.broker_target import Target
from gateway.sources.broker_window import Cut
from gateway.sources.paho_dial import OFFLINE, dial, new_client

READ_BURST: Final = 64  # packets a turn: twice the throughput of one a turn, and about 4 ms until others run again
TICK_SECONDS: Final = 1.0  # how often paho looks at the keepalive
GOODBYE_SECONDS: Final = 2.0  # for the last PUBACK, and again for the DISCONNECT to leave
ONLINE: Final = b"online"

P = ParamSpec("P")


class Listener(Protocol):
    """Who hears what happens on the connection. Called in the event loop, never after `run` has ended."""

    def accepted(self, session_present: bool, session_expiry: int | None) -> None: ...
    def subscribed(self, codes: Sequence[int]) -> None: ...
    def unsubscribed(self) -> None: ...
    def arrived(
        self, mid: int, qos: int, topic: str, payload: bytes, retain: bool, dup: bool, cut: Cut | None = None
    ) -> None: ...
    def state_refused(self, reason: str) -> None: ...


class Link:
    """`run` lives as long as the connection and returns why it ended."""

    def __init__(
        self,
        target: Target,
        protocol: Literal["5", "3.1.1"],
        listener: Listener,
        *,
        filters: Sequence[tuple[str, int]],
        unwanted: Sequence[str],
        wall_ms: Callable[[], int],
    ) -> None:
        self._target = target
        self._v5 = protocol == "5"
        self._listener = listener
        self._filters = filters
        self._unwanted = unwanted
        self._wall_ms = wall_ms
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[Lost] = self._loop.create_future()
        self._greeted: asyncio.Future[None] = self._loop.create_future()
        self._goodbye_acked: asyncio.Future[None] = self._loop.create_future()
        self._client = new_client(target, self._v5)
        self._fault: BaseException | None = None  # raised by one of our own callbacks
        self._leaving: Lost | None = None
        self._held: socket.socket | None = None
        self._attached = False
        self._fd: int | None = None
        self._messages = 0
        self._heard = False
        self._paused = False
        self._muted = False
        self._subscribe_mid: int | None = None
        self._unsubscribe_mid: int | None = None
        self._online_mid: int | None = None
        self._offline_mid: int | None = None

    @property
    def paused(self) -> bool:
        return self._paused

    async def run(self) -> Lost:
        try:
            try:
                await dial(self._client, self._target, self._v5)
            except Exception as error:  # whatever it is, there is no connection, and we try again
                return self._of_error(error)
            self._attach()
            await self._wait(self._greeted, self._target.connect_timeout)
            if not self._greeted.done():
                self._end(Lost(Why.UNANSWERED, f"{self._target.where} did not answer our CONNECT"))
            while not self._lost.done():
                await asyncio.wait({self._lost}, timeout=TICK_SECONDS)
                self._turn(self._tick)
            await self._linger()
            return self._lost.result()
        finally:
            self._detach()
            if self._held is not None:
                self._held.close()

    def ack(self, mid: int, qos: int) -> None:
        if not self._lost.done():
            self._client.ack(mid, qos)

    def pause(self) -> None:
        """Stop reading; the broker keeps the rest. Pings and acknowledgements go on (see `_tick`)."""
        if not self._paused:
            self._paused = True
            self._watch_reads()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._watch_reads()
            # TLS may hold decrypted bytes that select() does not see.
            self._loop.call_soon(self._on_readable)

    def drop(self, reason: str) -> None:
        """Goodbye to the broker without another message from it, so that it sends again what is unacknowledged."""
        if self._lost.done():
            return
        self._muted = True
        self._watch_reads()
        self._leaving = Lost(Why.DROPPED, reason)
        if not self._greeted.done():
            self._end(self._leaving)
            return
        self._disconnect()
        self._loop.call_later(GOODBYE_SECONDS, self._end, self._leaving)

    async def leave(self) -> None:
        """`offline`, then DISCONNECT, which makes the broker forget the last will but not the session."""
        if not self._greeted.done():
            self._end(Lost(Why.ENDED, "stopped"))
            return
        if self._target.guest is None:
            self._turn(self._say_offline)
        else:
            self._goodbye_acked.set_result(None)
        # While reading is paused the PUBACK cannot be seen; the order of TCP alone does it then.
        if not self._paused:
            await self._wait(self._goodbye_acked, GOODBYE_SECONDS)
        self._leaving = Lost(Why.ENDED, "stopped")
        self._disconnect()
        await asyncio.wait({self._lost}, timeout=GOODBYE_SECONDS)
        self._end(self._leaving)

    def _disconnect(self) -> None:
        if self._fd is not None:
            self._held = socket.socket(fileno=os.dup(self._fd))
            self._turn(self._client.disconnect)

    async def _linger(self) -> None:
        """paho closes the socket behind DISCONNECT. With bytes in it that we have not read (we paused), the kernel
        would answer the broker with a reset, and our last words would be thrown away unread: the broker would speak
        our last will. So we hold the connection by a second handle until the broker has closed it."""
        if self._held is None or self._fd is not None:
            return
        with contextlib.suppress(OSError, TimeoutError):
            self._held.setblocking(False)
            self._held.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(GOODBYE_SECONDS):
                while await self._loop.sock_recv(self._held, 1 << 16):
                    pass

    # --- the event loop's side --------------------------------------------------------------------------------------

    def _attach(self) -> None:
        """From here on the event loop serves the connection, and paho's callbacks run in it."""
        self._attached = True
        client = self._client
        client.on_socket_open = None
        client.on_connect = self._ours(self._on_connect)
        client.on_disconnect = self._ours(self._on_disconnect)
        client.on_subscribe = self._ours(self._on_subscribe)
        client.on_unsubscribe = self._ours(self._on_unsubscribe)
        client.on_publish = self._ours(self._on_publish)
        client.on_message = self._ours(self._on_message)
        client.on_socket_close = lambda *_: self._forget_socket()
        client.on_socket_register_write = lambda *_: self._watch_writes(True)
        client.on_socket_unregister_write = lambda *_: self._watch_writes(False)
        sock = client.socket()
        if sock is None:
            self._end(self._lost_unexpectedly())
            return
        self._fd = sock.fileno()
        self._watch_reads()
        if client.want_write():  # CONNECT did not fit into one write
            self._watch_writes(True)

    def _detach(self) -> None:
        self._end(Lost(Why.ENDED, "closed"))
        self._lost.exception()  # has been seen, also if `run` was cancelled
        if not self._attached:
            return  # the thread that still connects closes what it opens
        client = self._client
        client.on_connect = client.on_disconnect = client.on_subscribe = client.on_unsubscribe = None
        client.on_publish = client.on_message = client.on_socket_close = None
        client.on_socket_register_write = client.on_socket_unregister_write = None
        self._forget_socket()
        client.close_sockets()

    def _watch_reads(self) -> None:
        if self._fd is None:
            return
        if self._paused or self._muted:
            self._loop.remove_reader(self._fd)
        else:
            self._loop.add_reader(self._fd, self._on_readable)

    def _watch_writes(self, wanted: bool) -> None:
        if self._fd is None:
            return
        if wanted:
            self._loop.add_writer(self._fd, self._turn, self._client.loop_write)
        else:
            self._loop.remove_writer(self._fd)

    def _forget_socket(self) -> None:
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._fd = None

    def _on_readable(self) -> None:
        self._turn(self._read_burst)

    def _read_burst(self) -> None:
        self._heard = True
        for _ in range(READ_BURST):
            if self._fd is None or self._paused or self._muted:
                return
            before = self._messages
            self._client.loop_read()
            if self._messages == before and not self._buffered():
                return
        if self._buffered():
            self._loop.call_soon(self._on_readable)

    def _buffered(self) -> int:
        """Bytes that TLS has decrypted and that select() therefore does not see."""
        pending = getattr(self._client.socket(), "pending", None)
        return pending() if pending else 0

    def _tick(self) -> None:
        if self._fd is None:
            return
        if self._heard or self._paused:
            # paho calls a connection dead when a PINGRESP is late, even while other bytes arrive. While we do not read
            # we cannot see the answer, and under a backlog it stands in line; so anything heard counts as the answer,
            # and while paused the pings just go on (the kernel ends a dead connection then: TCP_USER_TIMEOUT).
            # paho has no public name for this.
            self._client._ping_t = 0.0
        self._heard = False
        self._client.loop_misc()

    def _turn(self, step: Callable[[], object]) -> None:
        """Lets paho work. Whatever it raises ends the connection, and `run` if it was our own callback's fault."""
        if self._lost.done():
            return
        try:
            step()
        except Exception as error:
            if error is self._fault:
                self._lost.set_exception(error)
            else:
                self._end(Lost(Why.NETWORK, f"the broker sent something that is not MQTT: {error!r}"))
        if not self._lost.done() and self._client.socket() is None:
            self._end(self._lost_unexpectedly())

    def _ours(self, callback: Callable[P, None]) -> Callable[P, None]:
        def call(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                callback(*args, **kwargs)
            except Exception as error:
                self._fault = error
                raise

        return call

    def _end(self, lost: Lost) -> None:
        if not self._lost.done():
            self._lost.set_result(lost)

    # --- what paho calls --------------------------------------------------------------------------------------------

    def _on_connect(
        self, _: paho.Client, __: Any, flags: paho.ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if self._greeted.done():
            return  # a second CONNACK: nonsense, and no harm
        if reason.is_failure:
            self._end(
                broker_reasons.of_connack(
                    reason.value,
                    reason.getName(),
                    has_password=self._target.username is not None,
                    client_id=self._target.client_id,
                )
            )
            return
        # First of all: what is published before our SUBSCRIBE is lost to a session that the broker did not keep.
        if self._filters:
            self._subscribe_mid = self._client.subscribe(self._subscriptions())[1]
        self._greeted.set_result(None)
        self._listener.accepted(flags.session_present, getattr(properties, "SessionExpiryInterval", None))
        if self._unwanted and flags.session_present:
            self._unsubscribe_mid = self._client.unsubscribe(list(self._unwanted))[1]
        elif self._unwanted:
            self._listener.unsubscribed()
        if self._target.guest is None:
            self._online_mid = self._client.publish(self._target.state_topic, ONLINE, qos=1, retain=True).mid
        if not self._filters:
            self._listener.subscribed(())

    def _subscriptions(self) -> list[tuple[str, int]] | list[tuple[str, SubscribeOptions]]:
        # QoS 1 at most: the broker hands over what was published with 2, and paho tells the broker PUBREC before we
        # have seen the message, so QoS 2 would lose it in a crash (paho.mqtt.python issue 382).
        if self._v5:
            return [(topic, SubscribeOptions(qos=1, retainHandling=handling)) for topic, handling in self._filters]
        return [(topic, 1) for topic, _ in self._filters]

    def _on_disconnect(
        self, _: paho.Client, __: Any, flags: paho.DisconnectFlags, reason: ReasonCode, ___: Properties | None
    ) -> None:
        if self._leaving is not None:
            self._end(self._leaving)
        elif flags.is_disconnect_packet_from_server:
            self._end(broker_reasons.of_disconnect(reason.value, reason.getName(), client_id=self._target.client_id))
        elif reason.value == 0x8D:  # paho's name for its own keepalive timeout
            self._end(Lost(Why.NETWORK, f"{self._target.where} no longer answers (no reply to a ping)"))
        elif reason.value == 0x82:
            why = Why.NETWORK if self._greeted.done() else Why.UNANSWERED
            self._end(Lost(why, f"{self._target.where} sent something that is not MQTT"))
        else:
            self._end(self._lost_unexpectedly())

    def _lost_unexpectedly(self) -> Lost:
        error = self._client.error
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            return self._of_error(error)
        if not self._greeted.done():
            reason = f"{self._target.where} closed the connection without answering our CONNECT"
            if self._target.tls and self._target.cert_file is None:
                # TLS 1.3 tells it after the handshake, and the broker may be gone before we have read it.
                reason += "; perhaps it wants a client certificate (cert_file, key_file)"
            return Lost(Why.UNANSWERED, reason)
        if error is not None:
            return self._of_error(error)
        return Lost(Why.CLOSED, f"{self._target.where} closed the connection")

    def _on_subscribe(self, _: paho.Client, __: Any, mid: int, codes: list[ReasonCode], ___: Properties | None) -> None:
        if mid == self._subscribe_mid:
            self._listener.subscribed([code.value for code in codes])

    def _on_unsubscribe(
        self, _: paho.Client, __: Any, mid: int, ___: list[ReasonCode], ____: Properties | None
    ) -> None:
        if mid == self._unsubscribe_mid:
            self._listener.unsubscribed()

    def _on_publish(self, _: paho.Client, __: Any, mid: int, reason: ReasonCode, ___: Properties | None) -> None:
        if mid == self._online_mid and reason.is_failure:
            self._listener.state_refused(reason.getName())
        if mid == self._offline_mid and not self._goodbye_acked.done():
            self._goodbye_acked.set_result(None)

    def _on_message(self, _: paho.Client, __: Any, message: paho.MQTTMessage) -> None:
        self._messages += 1
        try:
            topic = message.topic
        except UnicodeDecodeError as error:
            # Not allowed (MQTT 5.0, 1.5.4), but refusing it would make the broker send it again for ever.
            topic = error.object.decode("utf-8", "surrogateescape")
        payload = bytes(message.payload)
        cut = self._client.cut(len(payload))
        self._listener.arrived(message.mid, message.qos, topic, payload, message.retain, message.dup, cut)

    # --- small things -----------------------------------------------------------------------------------------------

    def _say_offline(self) -> None:
        self._offline_mid = self._client.publish(self._target.state_topic, OFFLINE, qos=1, retain=True).mid

    async def _wait(self, fact: asyncio.Future[None], seconds: float) -> None:
        either: set[asyncio.Future[Any]] = {fact, self._lost}
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)

    def _of_error(self, error: BaseException) -> Lost:
        return broker_reasons.of_error(error, self._target.host, self._target.port, self._wall_ms())
