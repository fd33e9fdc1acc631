"""The `[broker]` table -> where to connect to, and as whom."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import urlsplit

from gateway import config

TLS: Final = {"mqtt": False, "mqtts": True, "ws": False, "wss": True}
PORTS: Final = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. Tests make them short; production takes them as they are."""

    keepalive: int = 20  # a dead broker is noticed after at most twice this
    connect_timeout: float = 10.0
    retry_first: float = 1.0
    retry_max: float = 30.0
    settled: float = 10.0  # a connection that lived this long was a good one: back-off begins anew
    taken_over: float = 30.0  # to twice this: two gateways with one id shall not throw each other out every second
    suback: float = 30.0


TIMING: Final = Timing()

Guest = Literal["clean", "kept"]
"""Somebody who only looks: no last will and no word on the state topic. `clean`: and leaves no session behind."""


@dataclass(frozen=True)
class Target:
    """Where to and how; everything that CONNECT says."""

    host: str
    port: int
    websocket_path: str | None  # None: plain MQTT
    tls: bool
    client_id: str
    state_topic: str
    keepalive: int
    connect_timeout: float
    session_expiry: int
    receive_maximum: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    guest: Guest | None = None
    max_message: int = 1 << 20  # of a larger one only the beginning is kept

    @property
    def where(self) -> str:
        return f"{self.host}:{self.port}"


def target_of(
    broker: config.Broker,
    location_id: str,
    password: str | None,
    timing: Timing,
    guest: Guest | None = None,
    max_message: int = 1 << 20,
) -> Target:
    parts = urlsplit(broker.url)
    websocket_path = None
    if parts.scheme in ("ws", "wss"):
        websocket_path = (parts.path or "/mqtt") + (f"?{parts.query}" if parts.query else "")
    return Target(
        host=parts.hostname or "",
        port=parts.port or PORTS[parts.scheme],
        websocket_path=websocket_path,
        tls=TLS[parts.scheme],
        client_id=broker.client_id or f"chekt-gateway-{location_id}",
        state_topic=f"chekt-gateway/{location_id}/state",
        keepalive=timing.keepalive,
        connect_timeout=timing.connect_timeout,
        session_expiry=0 if guest == "clean" else min(int(broker.session_expiry), 0xFFFFFFFF),
        receive_maximum=broker.receive_maximum,
        username=broker.username,
        password=password,
        ca_file=broker.ca_file,
        cert_file=broker.cert_file,
        key_file=broker.key_file,
        guest=guest,
        max_message=max_message,
    )


def shown(url: str) -> str:
    """Without user name, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
