"""What can be set: one class for each table of the file, one documented field for each key.

The docstring of a field is its reference: meaning, unit, default, reason. Unknown keys are errors, and so is a value of
another type ("8" is no number). Required keys carry an example. Durations are strings in the file and seconds here,
`"off"` is None; sizes are bytes. What concerns more than one key is checked in `gateway.config.checks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.config.values import (
    AbsolutePath,
    BrokerUrl,
    CloudBase,
    CloudUrl,
    Duration,
    EquipmentName,
    EquipmentNames,
    Id,
    Name,
    OptionalDuration,
    Score,
    SiteId,
    SiteUrl,
    Size,
    TopicPrefix,
    between,
    seconds,
    size,
)

SessionExpiry = Annotated[Duration, between("1s", "365d")]
MediaLimit = Annotated[Size, between("1MiB", "1024GiB")]
Reserve = Annotated[Size, between("0B", "64GiB")]
MessageLimit = Annotated[Size, between("1KiB", "255MiB")]
Keep = Annotated[Duration, between("1h", "3650d")]
GiveUp = Annotated[Duration, between("1m", "365d")]
FirstRetry = Annotated[Duration, between("10ms", "1m")]
RetryCeiling = Annotated[Duration, between("10ms", "15m")]
Refusal = Annotated[Duration, between("1s", "24h")]
Jitter = Annotated[Duration, between("0s", "5m")]
Stale = Annotated[OptionalDuration, between("1s", "30d")]
HoldOff = Annotated[OptionalDuration, between("100ms", "1h")]
Window = Annotated[Duration, between("0s", "120s")]
OpenTime = Annotated[Duration, between("1s", "24h")]
TroubleDelay = Annotated[Duration, between("0s", "1h")]
Silence = Annotated[OptionalDuration, between("30s", "30d")]
DedupeWindow = Annotated[Duration, between("1s", "30d")]
Snapshots = Annotated[int, Field(ge=0, le=10)]


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Site(Table):
    """The protected premises, as CHeKT knows them."""

    location_id: SiteId = Field(examples=["Z6RSOG"])
    """CHeKT's id of this site. Required: a wrong one sends the alarms of this site to another customer."""
    recorder_id: Id | None = None
    """CHeKT's id of the recorder, for all cameras. Not set: events name no recorder. A source or a camera may set its
    own."""
    camera_id: Id | None = None
    """CHeKT's camera that the gateway's own troubles are reported for. Not set: they stay on this machine, because
    CHeKT takes no event without a camera."""
    timezone: Name | None = None
    """Time zone of equipment that sends local time without saying which, such as "America/Chicago". Not set: the time
    zone of this machine."""


class Cloud(Table):
    """How to reach CHeKT, and how to prove who we are."""

    url: CloudBase = Field(examples=["https://api.chekt.com"])
    """Base address of the Event API. Required, without a default, so that no test alarm reaches production by
    accident: https://api.chekt.com, or https://api.chektdev.com for development."""
    token_url: CloudUrl | None = None
    """The token endpoint: "Auth Server URL" of the registration at CHeKT. Needed where there is a token: unless `auth`
    is "api_key" or `event_header` is "x-api-key"."""
    audience: Id | None = None
    """The API that the token is for, as given at the registration. Needed for a token where `auth` is "assertion"."""
    client_id: Id | None = None
    """Who we are, as given at the registration. Needed where there is a token, as `token_url` is."""
    key_id: Id | None = None
    """Id of the registered public key (`kid`). Not set: the assertion names none."""
    private_key_file: Name | None = None
    """The private key (PEM, without passphrase) whose public half CHeKT has registered. Needed for a token where `auth`
    is "assertion", except with `algorithm` "HS256"."""
    client_secret_file: Name | None = None
    """File with the client secret. Needed for a token where `auth` is "client_secret" or `algorithm` is "HS256"."""
    api_key_file: Name | None = None
    """File with the API key. Needed where `auth` is "api_key" or `event_header` is "x-api-key" or "both"."""
    algorithm: Literal["RS256", "RS384", "PS256", "ES256", "HS256"] = "RS256"
    """How the assertion is signed, as registered. HS256 signs with the client secret instead of a private key."""
    auth: Literal["assertion", "client_secret", "api_key"] = "assertion"
    """How we prove who we are: a signed assertion for a token, the client secret for a token, or an API key without a
    token. There is no silent change from one to another, so that a wrong credential shows."""
    event_header: Literal["bearer", "x-api-key", "both"] = "bearer"
    """Where an event carries the credential: `Authorization: Bearer`, `X-API-KEY`, or both. With `auth` "api_key" the
    bearer is the API key. With "x-api-key" there is no token, whatever `auth` says."""
    assertion_audience: Id | None = None
    """Whom the assertion is for (`aud`). Not set: the origin of `token_url` with a "/" at the end."""
    extra_token_fields: dict[str, str] = Field(default_factory=dict)
    """More form fields for the token request, such as a partner claim. None unless CHeKT asks for them."""
    idempotency_key: bool = True
    """Send `Idempotency-Key`, so that a repeated request can be recognised as the same event. On: harmless where it is
    not understood."""
    callback_auth: bool = False
    """Send the credential with the callback after an upload, too. Off: the callback's address is a secret itself."""
    send_details: bool = False
    """Send what the equipment said (labels, zones, score) in the event's payload. Off: the payload is {}."""
    ca_file: Name | None = None
    """Certificates of authorities to trust (PEM), beside this machine's own. For a proxy that inspects TLS."""
    proxy: SiteUrl | None = None
    """HTTP proxy for everything that goes to the cloud. Not set: direct."""

    @property
    def wants_token(self) -> bool:
        """Otherwise the API key is all that is sent."""
        return self.auth != "api_key" and self.event_header != "x-api-key"


class Broker(Table):
    """The MQTT broker that the equipment publishes to."""

    url: BrokerUrl = "mqtt://127.0.0.1:1883"
    """Address of the broker: mqtt, mqtts, ws or wss. Without TLS only to this machine or a private address."""
    client_id: Id | None = None
    """Our name at the broker, which keeps our messages under it while we are away. Not set:
    chekt-gateway-<location_id>. No other client may use it."""
    username: Name | None = None
    """User name at the broker. Not set: anonymous, which shows as degraded: anyone on the network could raise or
    suppress alarms."""
    password_file: Name | None = None
    """File with the password of `username`."""
    ca_file: Name | None = None
    """Certificates of the authorities to trust (PEM), in place of this machine's own."""
    cert_file: Name | None = None
    """Our client certificate (PEM), with `key_file`."""
    key_file: Name | None = None
    """Private key of `cert_file` (PEM, without passphrase)."""
    protocol: Literal["5", "3.1.1"] = "5"
    """MQTT version to begin with. "5" falls back to 3.1.1 where the broker refuses it, and says so."""
    session_expiry: SessionExpiry = seconds("7d")
    """How long the broker keeps messages for us while we are away (MQTT 5). Longer than the longest outage."""
    receive_maximum: int = Field(200, ge=1, le=65535)
    """How many messages the broker may have under way to us unacknowledged (MQTT 5). 200: enough for one group commit,
    and a bound on what a power cut repeats."""


class Outbox(Table):
    """What is remembered on disk, and for how long."""

    path: AbsolutePath | None = None
    """The database. Not set: outbox.db in $STATE_DIRECTORY, else in /var/lib/chekt-gateway."""
    media_path: AbsolutePath | None = None
    """Folder for pictures and clips until they are uploaded. Not set: media/ beside the database."""
    media_limit: MediaLimit = size("2GiB")
    """Most that pictures and clips may take on disk; beyond it the oldest go first. Events are never given up for
    space."""
    keep_closed: Keep = seconds("30d")
    """How long events are kept for reports after they are finished. Not less than any `dedupe_window`: an event that is
    forgotten cannot be recognised. Dead events are kept until a person decides."""
    give_up_after: GiveUp = seconds("7d")
    """How long an event is tried before it becomes dead and needs a person. Time while sending was paused does not
    count."""
    reserve: Reserve = size("64MiB")
    """Space that is taken beside the database in good times and given up when the disk is full, so that alarms can
    still be stored. Pictures stop while less than this is free. "0B": none."""
    max_message: MessageLimit = size("1MiB")
    """Largest MQTT message that is read. Larger ones are kept as unreadable: no alarm is that long, a picture is."""


class Delivery(Table):
    """How events go to the cloud."""

    parallel: int = Field(8, ge=1, le=64)
    """How many events may be on the way at once; one at a time for each camera."""
    max_per_minute: int = Field(0, ge=0, le=100_000)
    """Most events in a minute. 0: as fast as the cloud allows; its own limits are always obeyed."""
    retry_first: FirstRetry = seconds("1s")
    """Longest wait before the second attempt of an event; it doubles with each further one, up to `retry_max`."""
    retry_max: RetryCeiling = seconds("30s")
    """Longest wait between two attempts of an event. 30 s: an alarm goes soon after the cloud is back."""
    refuse_after: Refusal = seconds("10m")
    """Over how long an event must be refused before it is given up as dead. 10 min: longer than a bad deployment."""
    drain_jitter: Jitter = seconds("5s")
    """Longest random wait before a backlog is sent, so that all gateways of a region do not come back in the same
    second."""
    stale_after: Stale = None
    """An alarm older than this is still sent, but does not signal the monitoring station any more. "off": however late,
    it signals. `check` warns until one of both is chosen: it is the customer's decision."""
    never_signal: bool = False
    """No event signals the monitoring station: for commissioning. Shows as degraded."""


class Uploads(Table):
    """How pictures and clips go to the cloud."""

    parallel: int = Field(2, ge=1, le=16)
    """How many files may be on the way at once. 2: a site's uplink is narrow, and an event must never wait for it."""
    max_bytes_per_second: int = Field(0, ge=0)
    """Most bytes in a second for all uploads together. 0: no limit."""


class CameraDefaults(Table):
    """For every camera; a camera may set its own."""

    signal: bool = True
    """Alarms signal the monitoring station. Off where a panel already does, or every alarm would arrive twice."""
    snapshots: Snapshots = 1
    """Pictures for an alarm, 0 to 10."""
    short_mp4: bool = False
    """A short clip around the alarm: `short_before` and `short_after`."""
    event_mp4: bool = False
    """A longer clip of the event: `clip_before` and `clip_after`."""
    hold_off: HoldOff = seconds("10s")
    """After an alarm, another one of the same kind of this camera is folded into it for so long. 10 s: what a CHeKT
    Bridge does. "off": every alarm is sent. Fire, panic and tamper alarms are never folded."""
    send_restore: bool = False
    """Tell the end of an alarm, too. Off: a camera's alarm is a moment. Troubles always tell their end."""
    short_before: Window = seconds("2s")
    """Where the short clip begins, before the alarm. With `short_after` at most 60 s, or it would not be short."""
    short_after: Window = seconds("4s")
    """Where the short clip ends, after the alarm."""
    clip_before: Window = seconds("10s")
    """Where the event clip begins, before the alarm. With `clip_after` at most 120 s: the upload must end before the
    cloud's permission does."""
    clip_after: Window = seconds("20s")
    """Where the event clip ends, after the alarm. It never waits for the end of the event, which may be hours away."""
    max_open: OpenTime = seconds("15m")
    """An alarm without an end counts as over so long after its last message, so that the next one is a new alarm."""
    trouble_delay: TroubleDelay = seconds("60s")
    """A trouble is reported when it has lasted so long: a camera that restarts is none."""
    silence_after: Silence = None
    """A camera of which nothing at all was heard for so long is a trouble. "off": many say nothing between their
    alarms, and would be reported on every quiet day. Several times the period of its sign of life (`chekt-gateway
    families`); without one, longer than the longest time in which nothing happens. Time in which we could not hear
    does not count."""
    dedupe_window: DedupeWindow = seconds("24h")
    """How long an event id of the equipment without a start time means the same event: some count from 1 again."""


class Source(Table):
    """One recorder, family of cameras or panel that publishes to the broker."""

    family: Name = Field(examples=["frigate"])
    """What kind of equipment it is. `chekt-gateway families` lists them."""
    dialect: Name | None = None
    """Which of its family's ways of speaking. Not set: the family's most common one."""
    topic_prefix: TopicPrefix | None = None
    """Beginning of its topics. Not set: the family's own."""
    url: SiteUrl | None = None
    """Address of the recorder, for pictures and clips, and to ask for what it said while nobody listened. Not set:
    alarms go without pictures, and what is said unheard is lost. Of use where docs/families.md says so."""
    username: Name | None = None
    """User name at the recorder."""
    password_file: Name | None = None
    """File with the password of `username`."""
    camera_id: Id | None = None
    """CHeKT's camera for what has none: a panel, or the recorder itself. Not set: the camera of the site."""
    recorder_id: Id | None = None
    """CHeKT's id of this recorder. Not set: the recorder of the site."""
    ignore: EquipmentNames = ()
    """Cameras, in the equipment's names, that are left out on purpose and shall not be shown as forgotten."""
    labels: EquipmentNames = ()
    """Only these kinds of objects raise an alarm, such as "person". Empty: all. Where the family knows them."""
    zones: EquipmentNames = ()
    """Only objects in one of these image zones raise an alarm. Empty: all. Where the family knows them."""
    min_score: Score | None = None
    """Only objects of at least this score raise an alarm. Not set: all. Where the family knows it."""
    timezone: Name | None = None
    """Time zone of this equipment, where it sends local time without saying which. Not set: the one of the site."""
    time_format: Name | None = None
    """How this equipment writes times, where its owner chooses that, as strptime(3) has it. Not set: its times are not
    read, and the time of receipt counts. Where the family knows it."""


class Camera(Table):
    """One camera. Any key of `[defaults]` may be set here, too; None: the default."""

    camera_id: Id = Field(examples=["2fe519b4-2438-4aa1-b051-87cf22bb"])
    """CHeKT's id of the camera. Required, and no two cameras may have the same: a wrong one shows the station another
    camera."""
    name: EquipmentName | None = None
    """How the equipment calls it: name, serial, channel or MAC, as its family does. Not set: the name of this table."""
    source: Name | None = None
    """The source that it belongs to. May be left out where one source is configured; with more of them, a camera
    without it is looked for in all."""
    recorder_id: Id | None = None
    """CHeKT's id of its recorder. Not set: the recorder of its source, else of the site."""
    signal: bool | None = None
    snapshots: Snapshots | None = None
    short_mp4: bool | None = None
    event_mp4: bool | None = None
    hold_off: HoldOff = None
    send_restore: bool | None = None
    short_before: Window | None = None
    short_after: Window | None = None
    clip_before: Window | None = None
    clip_after: Window | None = None
    max_open: OpenTime | None = None
    trouble_delay: TroubleDelay | None = None
    silence_after: Silence = None
    dedupe_window: DedupeWindow | None = None


class OwnFamily(Table):
    """A family of equipment that this site describes itself, in the language of the built-in ones (docs/rules.md)."""

    title: str | None = None
    """What it is, for people. Not set: the name of this table."""
    needs: str = ""
    """What the equipment needs to be told, for people."""
    topic_prefix: str | list[str] | None = None
    """Beginning of its topics, where a source sets none. Not set: the rules name no prefix, or every source sets it."""
    dialect: str | None = None
    """The dialect of a source that names none. Not set: there are no dialects."""
    dialects: dict[str, dict[str, Any]] = {}
    """Ways of speaking, each with a title."""
    options: list[str] = []
    """Which of labels, zones, min_score and time_format its rules use."""
    maps: dict[str, dict[str, Any]] = {}
    """Tables that the rules look words up in."""
    rule: list[dict[str, Any]] = []
    """The rules, in the order in which they are tried."""


class Arming(Table):
    """Tell CHeKT when an alarm panel is armed and disarmed. A wrong "disarmed" makes CHeKT discard every alarm."""

    enabled: bool = False
    """Arming is told. Off: it is ignored. Refused on a broker without password or client certificate, where anyone
    could disarm."""
    camera_id: Id | None = None
    """CHeKT's camera that arming is reported under (ASSUMED: Q15). Not set: that of the panel's source, else of the
    site; without any, arming is reported without a camera."""
    trust_retained: bool = False
    """A retained "disarmed" is sent at once. Off: it waits until the panel says it live; a retained "armed" is sent."""


class Log(Table):
    """What is said in the journal."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is worth a line."""


@dataclass(frozen=True, slots=True)
class ResolvedCamera:
    """A camera with everything filled in: from its own table, else its source, the site, the defaults."""

    table: str  # the gateway's name for it
    name: str  # the equipment's
    source: str | None  # None: any of several
    camera_id: str
    recorder_id: str | None
    signal: bool
    snapshots: int
    short_mp4: bool
    event_mp4: bool
    hold_off: float | None
    send_restore: bool
    short_before: float
    short_after: float
    clip_before: float
    clip_after: float
    max_open: float
    trouble_delay: float
    silence_after: float | None
    dedupe_window: float
