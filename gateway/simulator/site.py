"""A fake site: a Frigate recorder that raises alarms over MQTT and has the pictures to them.

Publishes what Frigate publishes (documentation, "MQTT"): `reviews` and `events` for every alarm, `available` with a
last will, the status of each camera every 10 s. Knows which of its messages the broker has acknowledged (QoS 1). paho
runs in its own thread; everything else belongs to the event loop that called `start`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import string
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from gateway.simulator.recorder import Recorder, SeenObject

HEARTBEAT_SECONDS: Final = 10.0  # Frigate 0.17, `<camera>/status/<role>`
OBJECT_BEFORE_REVIEW_SECONDS: Final = 0.4  # the first object is seen before the review opens
_LETTERS: Final = string.ascii_lowercase + string.digits


@dataclass
class Alarm:
    """One review with one object, as Frigate tells it."""

    review_id: str
    object_id: str
    camera: str
    label: str
    severity: str
    started: float
    zones: tuple[str, ...] = ()
    ended: float | None = None

    @property
    def started_at(self) -> int:
        """Wall milliseconds."""
        return int(self.started * 1000)


@dataclass
class Published:
    """One message of the site. `acknowledged_at` is None until the broker's PUBACK (QoS 0: until it was sent)."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    mid: int
    published_at: int
    acknowledged_at: int | None = None


@dataclass
class Site:
    """`site = Site(); await site.start(broker_port); alarm = site.raise_alarm("front_door"); await site.stop()`."""

    cameras: tuple[str, ...] = ("front_door", "driveway", "warehouse")
    prefix: str = "frigate"
    qos: int = 0  # Frigate's default
    recorder: Recorder = field(default_factory=lambda: Recorder(()))
    now: Callable[[], float] = time.time
    heartbeat_seconds: float = HEARTBEAT_SECONDS
    published: list[Published] = field(default_factory=list)
    status: dict[str, str] = field(default_factory=dict)  # camera -> online, offline, disabled
    _open: dict[int, Published] = field(default_factory=dict)
    _awaited: dict[tuple[str, bytes], asyncio.Event] = field(default_factory=dict)
    _client: mqtt.Client | None = None
    _heartbeat: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.recorder.cameras = self.cameras
        self._connected = asyncio.Event()
        self._nothing_open = asyncio.Event()

    async def start(
        self,
        broker_port: int,
        *,
        broker_host: str = "127.0.0.1",
        http_port: int = 0,
        username: str | None = None,
        password: str | None = None,
        timeout: float = 10.0,
    ) -> None:
        """Starts the recorder and connects to the broker. Raises TimeoutError where there is none."""
        await self.recorder.start(http_port)
        loop = asyncio.get_running_loop()
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"frigate-{secrets.token_hex(3)}")
        client.username_pw_set(username, password)
        client.will_set(f"{self.prefix}/available", "offline", qos=1, retain=True)
        client.reconnect_delay_set(1, 5)

        def on_connect(_client: Any, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
            if not reason.is_failure:
                loop.call_soon_threadsafe(self._on_connect)

        def on_disconnect(*_: Any) -> None:
            loop.call_soon_threadsafe(self._connected.clear)

        def on_publish(_client: Any, _userdata: Any, mid: int, _reason: Any, _properties: Any) -> None:
            loop.call_soon_threadsafe(self._on_publish, mid)

        def on_message(_client: Any, _userdata: Any, message: mqtt.MQTTMessage) -> None:
            loop.call_soon_threadsafe(self._on_message, message.topic, bytes(message.payload))

        client.on_connect, client.on_disconnect, client.on_publish = on_connect, on_disconnect, on_publish
        client.on_message = on_message
        self._client = client
        client.connect_async(broker_host, broker_port, keepalive=30)
        client.loop_start()
        try:
            async with asyncio.timeout(timeout):
                await self._connected.wait()
        except TimeoutError:
            await self.stop()
            raise TimeoutError(f"no broker answers at {broker_host}:{broker_port}") from None
        self._heartbeat = asyncio.create_task(self._beat(), name="site heartbeat")

    async def stop(self) -> None:
        """Says goodbye and closes everything."""
        if self._client is not None and self._connected.is_set():
            self.publish("available", "offline", qos=1, retain=True)
        await self._end_session(lambda client: client.disconnect())
        await self.recorder.stop()

    async def vanish(self) -> None:
        """The recorder loses power: no goodbye, the broker publishes the last will."""

        def pull(client: mqtt.Client) -> None:
            if isinstance(sock := client.socket(), socket.socket):
                sock.shutdown(socket.SHUT_RDWR)

        await self._end_session(pull)
        await self.recorder.stop()

    async def _end_session(self, end: Callable[[mqtt.Client], object]) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            await asyncio.gather(self._heartbeat, return_exceptions=True)
            self._heartbeat = None
        if self._client is not None:
            client, self._client = self._client, None
            end(client)
            await asyncio.to_thread(client.loop_stop)

    @property
    def url(self) -> str:
        """Of the recorder's HTTP API."""
        return self.recorder.url

    # Alarms

    def raise_alarm(
        self,
        camera: str,
        label: str = "person",
        *,
        severity: str = "alert",
        zones: tuple[str, ...] = (),
        qos: int | None = None,
    ) -> Alarm:
        """A new object is seen, and a review opens. The messages are on their way when this returns."""
        started = round(self.now(), 6)
        seen = SeenObject(
            _new_id(started - OBJECT_BEFORE_REVIEW_SECONDS), camera, started - OBJECT_BEFORE_REVIEW_SECONDS
        )
        alarm = Alarm(_new_id(started), seen.id, camera, label, severity, started, zones)
        self.recorder.objects[seen.id] = seen
        self._remember(alarm, seen)
        self._publish_json("events", _object_message("new", alarm, seen), qos)
        self._publish_json("reviews", _review_message("new", alarm, alarm.severity), qos)
        return alarm

    def update(self, alarm: Alarm, *, severity: str | None = None, qos: int | None = None) -> None:
        """The same alarm once more: an update, perhaps from `detection` to `alert`."""
        before, alarm.severity = alarm.severity, severity or alarm.severity
        self._remember(alarm, self.recorder.objects[alarm.object_id])
        self._publish_json("events", _object_message("update", alarm, self.recorder.objects[alarm.object_id]), qos)
        self._publish_json("reviews", _review_message("update", alarm, before), qos)

    def end(self, alarm: Alarm, *, qos: int | None = None) -> None:
        """The object has gone. (Frigate says so 30 to 120 s later; here it comes at once.)"""
        alarm.ended = round(self.now(), 6)
        seen = self.recorder.objects[alarm.object_id]
        seen.ended = alarm.ended
        self._remember(alarm, seen)
        self._publish_json("events", _object_message("end", alarm, seen), qos)
        self._publish_json("reviews", _review_message("end", alarm, alarm.severity), qos)

    def _remember(self, alarm: Alarm, seen: SeenObject) -> None:
        """In the recorder's database, for whoever asks later."""
        review = _review_message("new", alarm, alarm.severity)["after"]
        self.recorder.reviews[alarm.review_id] = {**review, "has_been_reviewed": False}
        self.recorder.tracked[seen.id] = _object_row(alarm, seen)

    def set_status(self, camera: str, status: str) -> None:
        """`online`, `offline` or `disabled`, said now and with every heartbeat."""
        self.status[camera] = status
        self.publish(f"{camera}/status/detect", status)

    # Messages

    def publish(self, topic: str, payload: str | bytes, *, qos: int | None = None, retain: bool = False) -> Published:
        """One message below the prefix; kept in `published`."""
        if self._client is None:
            raise RuntimeError("the site is not started")
        body = payload.encode() if isinstance(payload, str) else payload
        wanted = self.qos if qos is None else qos
        sent = self._client.publish(f"{self.prefix}/{topic}", body, qos=wanted, retain=retain)
        if sent.rc not in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_NO_CONN):
            raise RuntimeError(f"cannot publish: {mqtt.error_string(sent.rc)}")
        record = Published(f"{self.prefix}/{topic}", body, wanted, retain, sent.mid, self._now_ms())
        self.published.append(record)
        # The acknowledgement is reported through the loop, so it cannot come before this line.
        self._open[sent.mid] = record
        self._nothing_open.clear()
        return record

    def _publish_json(self, topic: str, message: dict[str, Any], qos: int | None) -> None:
        self.publish(topic, json.dumps(message), qos=qos)

    @property
    def acknowledged(self) -> list[Published]:
        """Messages that the broker has answered for (QoS 1)."""
        return [one for one in self.published if one.qos > 0 and one.acknowledged_at is not None]

    async def all_acknowledged(self, timeout: float = 10.0) -> None:
        """Until everything that was published is acknowledged (QoS 0: sent)."""
        async with asyncio.timeout(timeout):
            await self._nothing_open.wait()

    async def hear(self, topic: str, payload: bytes, timeout: float = 30.0) -> None:
        """Until somebody says `payload` on `topic`; a retained message counts. Raises TimeoutError."""
        if self._client is None:
            raise RuntimeError("the site is not started")
        heard = self._awaited.setdefault((topic, payload), asyncio.Event())
        self._client.subscribe(topic, qos=1)
        async with asyncio.timeout(timeout):
            await heard.wait()

    def _on_message(self, topic: str, payload: bytes) -> None:
        if (heard := self._awaited.get((topic, payload))) is not None:
            heard.set()

    def _now_ms(self) -> int:
        return int(self.now() * 1000)

    def _on_connect(self) -> None:
        if self._client is None:
            return  # stopped meanwhile
        self._connected.set()
        self.publish("available", "online", qos=1, retain=True)
        self._say_status()

    def _on_publish(self, mid: int) -> None:
        record = self._open.pop(mid, None)
        if record is not None:
            record.acknowledged_at = self._now_ms()
        if not self._open:
            self._nothing_open.set()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.heartbeat_seconds)
            if self._connected.is_set():
                self._say_status()

    def _say_status(self) -> None:
        for camera in self.cameras:
            self.publish(f"{camera}/status/detect", self.status.get(camera, "online"))


def _new_id(moment: float) -> str:
    return f"{moment:.6f}-" + "".join(secrets.choice(_LETTERS) for _ in range(6))


def _review_message(kind: str, alarm: Alarm, severity_before: str) -> dict[str, Any]:
    def side(severity: str, end: float | None) -> dict[str, Any]:
        return {
            "id": alarm.review_id,
            "camera": alarm.camera,
            "start_time": alarm.started,
            "end_time": end,
            "severity": severity,
            "thumb_path": f"/media/frigate/clips/review/thumb-{alarm.camera}-{alarm.review_id}.webp",
            "data": {
                "detections": [alarm.object_id],
                "objects": [alarm.label],
                "sub_labels": [],
                "zones": list(alarm.zones),
                "audio": [],
            },
        }

    return {"type": kind, "before": side(severity_before, None), "after": side(alarm.severity, alarm.ended)}


def _object_message(kind: str, alarm: Alarm, seen: SeenObject) -> dict[str, Any]:
    def side(*, false_positive: bool, end: float | None) -> dict[str, Any]:
        return {
            "id": seen.id,
            "camera": seen.camera,
            "frame_time": seen.started,
            "snapshot": None,
            "label": alarm.label,
            "sub_label": None,
            "top_score": 0.87,
            "false_positive": false_positive,
            "start_time": seen.started,
            "end_time": end,
            "score": 0.87,
            "box": [432, 196, 544, 354],
            "area": 17696,
            "ratio": 0.71,
            "region": [218, 40, 640, 360],
            "current_zones": list(alarm.zones),
            "entered_zones": list(alarm.zones),
            "thumbnail": None,
            "has_snapshot": seen.has_snapshot,
            "has_clip": seen.has_clip,
            "active": True,
            "stationary": False,
            "motionless_count": 0,
            "position_changes": 1,
            "attributes": {},
            "current_attributes": [],
            "pending_loitering": False,
            "max_severity": alarm.severity,
            "path_data": [],
        }

    new = kind == "new"
    return {
        "type": kind,
        "before": side(false_positive=new, end=None),
        "after": side(false_positive=False, end=seen.ended),
    }


def _object_row(alarm: Alarm, seen: SeenObject) -> dict[str, Any]:
    """As the table of events has it: score and box have moved into `data`, their old columns are empty."""
    return {
        "id": seen.id,
        "camera": seen.camera,
        "label": alarm.label,
        "zones": list(alarm.zones),
        "start_time": seen.started,
        "end_time": seen.ended,
        "has_clip": seen.has_clip,
        "has_snapshot": seen.has_snapshot,
        "plus_id": None,
        "retain_indefinitely": False,
        "sub_label": None,
        "top_score": None,
        "false_positive": None,
        "box": None,
        "data": {
            "box": [0.34, 0.27, 0.09, 0.22],
            "region": [0.17, 0.06, 0.5, 1.0],
            "score": 0.87,
            "top_score": 0.87,
            "attributes": [],
            "type": "object",
            "max_severity": alarm.severity,
            "path_data": [],
        },
    }
