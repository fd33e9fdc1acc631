"""Making one connection with paho-mqtt: name lookup, TCP, TLS, websocket handshake, CONNECT.

All of that blocks inside paho, so it has a thread; what happens on the connection afterwards is `paho_link.py`. The
files `paho_*.py` are the only ones that know the MQTT library (Eclipse Public License 2.0 / EDL 1.0).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, Final, ParamSpec

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.sources.broker_target import Target
from gateway.sources.broker_window import Cut
from gateway.sources.paho_frames import Frames
from gateway.sources.paho_packet import HEADER_BYTES, Beginning

OFFLINE: Final = b"offline"  # the last will, and the last word
RECV_BYTES: Final = 64 << 10

P = ParamSpec("P")


class Client(paho.Client):
    """paho's client, with the sockets and the exceptions that paho keeps to itself."""

    raw: socket.socket | None = None
    context: _Context | None = None
    error: BaseException | None = None  # the last one that paho only logged
    user_timeout_ms = 0
    max_message = 1 << 20

    def _sock_recv(self, bufsize: int) -> bytes:
        packet = self._in_packet
        if (
            packet["have_remaining"]
            and packet["remaining_length"] > self.max_message + HEADER_BYTES
            and not isinstance(packet["packet"], Beginning)
        ):
            v5 = self._protocol == MQTTProtocolVersion.MQTTv5
            packet["packet"] = Beginning(qos=(packet["command"] & 0x06) >> 1, v5=v5)
        # Not as much at once as the packet has: Python would set aside that much for it.
        return super()._sock_recv(min(bufsize, RECV_BYTES))

    # QoS 2, of a session in which somebody else has subscribed with it. paho says PUBREC before anybody has seen the
    # message (its issue 382), and with manual acknowledgement leaves a PUBREL unanswered that it does not know, so that
    # the broker's window fills up for good. Here `ack` says PUBREC, and every PUBREL is answered (MQTT 5.0, 4.3.3).

    def _handle_publish(self) -> MQTTErrorCode:
        code = super()._handle_publish()
        while self._in_messages:
            self._handle_on_message(self._in_messages.popitem()[1])
        return code

    def _send_pubrec(self, mid: int) -> MQTTErrorCode:
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def ack(self, mid: int, qos: int) -> MQTTErrorCode:
        return super()._send_pubrec(mid) if qos == 2 else super().ack(mid, qos)

    def _handle_pubrel(self) -> MQTTErrorCode:
        return self._send_pubcomp(int.from_bytes(self._in_packet["packet"][:2], "big"))

    def cut(self, kept: int) -> Cut | None:
        """In `on_message`: what is known of the message if only its beginning was kept."""
        packet = self._in_packet["packet"]
        return packet.cut(kept) if isinstance(packet, Beginning) else None

    def _create_socket(self) -> Any:
        if self._transport != "websockets":
            return super()._create_socket()
        raw = self._create_socket_connection()
        sock = self._ssl_wrap_socket(raw) if self._ssl else raw
        sock.settimeout(self._connect_timeout)
        headers = self._websocket_extra_headers
        return Frames(sock, self._host, self._port, self._ssl, self._websocket_path, headers)

    def _create_socket_connection(self) -> socket.socket:
        raw = self.raw = super()._create_socket_connection()
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # tcp(7): what we sent (pings, for one) and nobody confirmed for this long ends the connection.
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self.user_timeout_ms)
        return raw

    def close_sockets(self) -> None:
        """paho leaves its socket open when the TLS or websocket handshake fails."""
        for sock in (self.socket(), self.context.made if self.context else None, self.raw):
            if sock is not None:
                sock.close()


class _Context(ssl.SSLContext):
    """Remembers the socket that it wrapped, for closing it when the handshake fails."""

    made: ssl.SSLSocket | None = None

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        self.made = super().wrap_socket(*args, **kwargs)
        return self.made


class _Trap(logging.Handler):
    """paho swallows the exception of a failed read or write and logs it; this is how we come by it."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client

    def emit(self, record: logging.LogRecord) -> None:
        for arg in record.args or ():
            if isinstance(arg, BaseException):
                self._client.error = arg


def new_client(target: Target, v5: bool) -> Client:
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id=target.client_id,
        clean_session=None if v5 else target.guest == "clean",
        protocol=MQTTProtocolVersion.MQTTv5 if v5 else MQTTProtocolVersion.MQTTv311,
        transport="tcp" if target.websocket_path is None else "websockets",
        reconnect_on_failure=False,  # paho's own downgrade to 3.1 would block the event loop
        manual_ack=True,
    )
    client.user_timeout_ms = 2 * target.keepalive * 1000
    client.connect_timeout = target.connect_timeout
    client.max_message = target.max_message
    if target.websocket_path is not None:
        client.ws_set_options(path=target.websocket_path)
    if target.username is not None:
        client.username_pw_set(target.username, target.password)
    if target.guest is None:
        client.will_set(target.state_topic, OFFLINE, qos=1, retain=True)
    logger = logging.Logger("mqtt", level=logging.ERROR)  # noqa: LOG001  outside the tree: nothing else shall hear it
    logger.addHandler(_Trap(client))
    client.enable_logger(logger)
    return client


async def dial(client: Client, target: Target, v5: bool) -> None:
    """Returns when CONNECT is on its way. Raises whatever stood in the way, mostly OSError.

    A daemon thread: a name lookup can hang for half a minute, and neither a stop nor the end of the process shall
    wait for it. One that was given up must not send CONNECT any more: with our id it would end the connection that
    was made since.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    abandoned = threading.Event()

    def settle(error: BaseException | None) -> None:
        if done.done():
            client.close_sockets()
        elif error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def before_connect_packet(*_: object) -> None:
        if abandoned.is_set():
            raise ConnectionAbortedError

    def work() -> None:
        error: BaseException | None = None
        try:
            connect(client, target, v5)
        except BaseException as caught:
            client.close_sockets()
            error = caught
        try:
            loop.call_soon_threadsafe(settle, error)
        except RuntimeError:  # the event loop has ended
            client.close_sockets()

    client.on_socket_open = before_connect_packet
    threading.Thread(target=work, name="mqtt-connect", daemon=True).start()
    try:
        # Each step inside has the timeout by itself; this bounds their sum, and a peer that trickles.
        async with asyncio.timeout(3 * target.connect_timeout):
            await done
    finally:
        abandoned.set()
        done.cancel()


def connect(client: Client, target: Target, v5: bool) -> None:
    """Blocking. Certificates are read anew each time: they are renewed while we run."""
    if target.tls:
        # PROTOCOL_TLS_CLIENT verifies certificate and host name; that cannot be switched off here.
        context = client.context = _Context(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if target.ca_file is not None:
            _naming(target.ca_file, context.load_verify_locations, target.ca_file)
        else:
            context.load_default_certs()
        if target.cert_file is not None:
            _naming(target.cert_file, context.load_cert_chain, target.cert_file, target.key_file)
        client.tls_set_context(context)
    if not v5:
        client.connect(target.host, target.port, target.keepalive)
        return
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = target.session_expiry
    properties.ReceiveMaximum = target.receive_maximum
    # No Maximum Packet Size: the broker would throw a larger message away without telling anybody (MQTT 5.0,
    # 3.1.2.11.4). We take it whole, and what is too large is kept as unreadable.
    # Not paho's default for clean_start: that one deletes the session at the first connect of each process.
    clean = target.guest == "clean"
    client.connect(target.host, target.port, target.keepalive, clean_start=clean, properties=properties)


def _naming(path: str, load: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    """The ssl module does not say which file it could not use."""
    try:
        load(*args, **kwargs)
    except ssl.SSLError as error:
        raise OSError(error.errno, f"not a usable PEM certificate or key ({error.reason})", path) from error
    except OSError as error:
        raise type(error)(error.errno, error.strerror, path) from error
