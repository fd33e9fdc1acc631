"""What can be set: one class for each table of the TOML file, one field with a docstring for each key.

Unknown keys are errors. Durations are strings in the file and seconds here; `"off"` is None. Sizes are bytes here.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SIZE: Final = re.compile(r"(\d+)(B|KiB|MiB|GiB)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def parse_duration(text: Any) -> Any:
    """`"200ms"`, `"10s"`, `"5m"`, `"2h"`, `"7d"` -> seconds. Raises ValueError naming what is allowed."""
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        raise ValueError('a duration is a string with a unit, such as "10s"')
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError('not a duration; allowed are strings such as "200ms", "10s", "5m", "2h", "7d"')
    return float(match[1]) * _SECONDS[match[2]]


def parse_optional_duration(text: Any) -> Any:
    """As `parse_duration`, and `"off"` -> None."""
    return None if text in ("off", None) else parse_duration(text)


def parse_size(text: Any) -> Any:
    """`"64MiB"` -> bytes."""
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError('not a size; allowed are strings such as "512KiB", "64MiB", "2GiB"')
    return int(match[1]) * _BYTES[match[2]]


Duration = Annotated[float, BeforeValidator(parse_duration)]
OptionalDuration = Annotated[float | None, BeforeValidator(parse_optional_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


class Site(Table):
    location_id: str
    recorder_id: str | None = None
    camera_id: str | None = None
    timezone: str | None = None


class Cloud(Table):
    url: str
    token_url: str | None = None
    audience: str | None = None
    client_id: str | None = None
    key_id: str | None = None
    private_key_file: str | None = None
    client_secret_file: str | None = None
    api_key_file: str | None = None
    algorithm: Literal["RS256", "RS384", "PS256", "ES256", "HS256"] = "RS256"
    auth: Literal["assertion", "client_secret", "api_key"] = "assertion"
    event_header: Literal["bearer", "x-api-key", "both"] = "bearer"
    assertion_audience: str | None = None
    extra_token_fields: dict[str, str] = Field(default_factory=dict)
    idempotency_key: bool = True
    callback_auth: bool = False
    send_details: bool = False
    ca_file: str | None = None
    proxy: str | None = None


class Broker(Table):
    url: str = "mqtt://127.0.0.1:1883"
    client_id: str | None = None
    username: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    protocol: Literal["5", "3.1.1"] = "5"
    session_expiry: Duration = "7d"  # type: ignore[assignment]
    receive_maximum: int = Field(200, ge=1, le=65535)


class Outbox(Table):
    path: str | None = None
    media_path: str | None = None
    media_limit: Size = "2GiB"  # type: ignore[assignment]
    keep_closed: Duration = "30d"  # type: ignore[assignment]
    give_up_after: Duration = "7d"  # type: ignore[assignment]
    max_message: Size = "1MiB"  # type: ignore[assignment]


class Delivery(Table):
    parallel: int = Field(8, ge=1, le=64)
    max_per_minute: int = Field(0, ge=0)
    retry_first: Duration = "1s"  # type: ignore[assignment]
    retry_max: Duration = "30s"  # type: ignore[assignment]
    refuse_after: Duration = "10m"  # type: ignore[assignment]
    drain_jitter: Duration = "5s"  # type: ignore[assignment]
    stale_after: OptionalDuration = None
    never_signal: bool = False


class Uploads(Table):
    parallel: int = Field(2, ge=1, le=16)
    max_bytes_per_second: int = Field(0, ge=0)


class CameraDefaults(Table):
    signal: bool = True
    snapshots: int = Field(1, ge=0, le=10)
    short_mp4: bool = False
    event_mp4: bool = False
    hold_off: OptionalDuration = "10s"  # type: ignore[assignment]
    send_restore: bool = False
    short_before: Duration = "2s"  # type: ignore[assignment]
    short_after: Duration = "4s"  # type: ignore[assignment]
    clip_before: Duration = "10s"  # type: ignore[assignment]
    clip_after: Duration = "20s"  # type: ignore[assignment]
    max_open: Duration = "15m"  # type: ignore[assignment]
    trouble_delay: Duration = "60s"  # type: ignore[assignment]
    dedupe_window: Duration = "24h"  # type: ignore[assignment]


class Source(Table):
    family: str
    dialect: str | None = None
    topic_prefix: str | None = None
    url: str | None = None
    username: str | None = None
    password_file: str | None = None
    camera_id: str | None = None
    recorder_id: str | None = None
    ignore: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    min_score: float | None = None


class Camera(Table):
    """`camera_id` and any key of `[defaults]`; None: the default."""

    camera_id: str
    name: str | None = None
    source: str | None = None
    recorder_id: str | None = None
    signal: bool | None = None
    snapshots: int | None = Field(None, ge=0, le=10)
    short_mp4: bool | None = None
    event_mp4: bool | None = None
    hold_off: OptionalDuration = None
    send_restore: bool | None = None
    short_before: OptionalDuration = None
    short_after: OptionalDuration = None
    clip_before: OptionalDuration = None
    clip_after: OptionalDuration = None
    max_open: OptionalDuration = None
    trouble_delay: OptionalDuration = None
    dedupe_window: OptionalDuration = None


class Log(Table):
    level: Literal["debug", "info", "warning", "error"] = "info"
