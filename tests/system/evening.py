"""A site with nine kinds of equipment on one broker, what each of them says in an evening, and what befalls them.

An act is what one piece of equipment says, in steps; it tells the house what the cloud has to hear of it. Between two
steps anything may happen to the gateway, the broker, the network or the cloud. What an act expects never depends on
which of these, save for one: a broker that has forgotten everything (`House.lost`).
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.simulator.faults import CutOff, DropBeforeAnswer, Status
from tests.fakes.frigate import encode, review
from tests.fakes.publisher import Publisher
from tests.fakes.waiting import until
from tests.fakes.wire import Wire
from tests.system.conftest import Premises

CONFIG: Final = """
[sources.cctv]
family = "onvif-ej"
[sources.hik]
family = "hikvision"
[sources.bell]
family = "hikvision"
dialect = "doorbell"
[sources.vto]
family = "dahua"
[sources.amcrest]
family = "dahua"
dialect = "amcrest2mqtt"
[sources.zm]
family = "zoneminder"
[sources.house]
family = "panel"
camera_id = "cam-house"
[sources.shed]
family = "panel"
dialect = "dsc"
camera_id = "cam-shed"
[sources.script]
family = "generic"
[sources.fence]
family = "beams"

[rules.beams]
topic_prefix = "beams"
[[rules.beams.rule]]
name = "beam"
topic = "{prefix}/{camera}"
topic_kind = "alarm_state"
decode = "text"
event_type = "alarm"
camera = "topic.camera"
repeats = false
[rules.beams.rule.status]
of = "payload"
words = { broken = "active", whole = "inactive" }
otherwise = "neither broken nor whole"

[arming]
enabled = true
camera_id = "cam-arming"
"""

CAMERAS: Final = (  # table, source, the equipment's name
    ("front", "nvr", "front"),
    ("back", "nvr", "back yard"),
    ("yard", "cctv", "yard"),
    ("roof", "cctv", "site/roof"),
    ("hall", "hik", "nvr/1"),
    ("cellar", "hik", "nvr/2"),
    ("door", "bell", "Haustür links"),
    ("gate", "vto", "6F0123/3"),
    ("ramp", "vto", "6F0123/4"),
    ("lane", "amcrest", "AMC0001"),
    ("garage", "zm", "5"),
    ("relay", "script", "relay"),
    ("porch", "script", "porch"),
    ("north", "fence", "north"),
)


@dataclass
class House:
    premises: Premises
    wire: Wire
    dice: random.Random
    equipment: Publisher | None = None
    lost: int = 0
    """How often the broker has forgotten its sessions and its retained messages."""
    expected: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # camera_id, type, status
    times: dict[tuple[str, str, str], list[int]] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)  # folded, unmapped, unreadable
    down: bool = False
    retained: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = field(default_factory=dict)
    panels: dict[str, str] = field(default_factory=dict)  # topic -> the last word of arming
    told: str | None = None
    arming: list[str] = field(default_factory=list)
    suffered: list[str] = field(default_factory=list)

    def configure(self) -> None:
        place = self.premises
        cameras = "".join(
            f'\n[cameras.{table}]\ncamera_id = "cam-{table}"\nname = "{name}"\nsource = "{source}"\n'
            + ('hold_off = "1h"\n' if table == "porch" else "")
            for table, source, name in CAMERAS
        )
        place.configure(
            broker_url=f"mqtt://127.0.0.1:{self.wire.port}",
            delivery='retry_max = "2s"',
            defaults='snapshots = 0\nsend_restore = true\nhold_off = "off"\ntrouble_delay = "1s"',
            source='camera_id = "cam-nvr"\nignore = ["cam7"]',
            cameras=(),
            extra=CONFIG + cameras,
        )
        secret = place.folder / "password"
        secret.write_text("secret\n")
        secret.chmod(0o600)
        file = place.gateway.config
        named = f'[broker]\nusername = "gateway"\npassword_file = "{secret}"\n'
        file.write_text(file.read_text().replace("[broker]\n", named))

    # What equipment does

    def says(self, topic: str, payload: str | bytes | dict[str, Any], *, retain: bool = False) -> None:
        assert self.equipment is not None
        content = json.dumps(payload) if isinstance(payload, dict) else payload
        self.equipment.publish(topic, content, retain=retain)

    def keeps(self, topic: str, payload: str, *again: tuple[str, str]) -> None:
        """A retained state. `again`: what comes of it when the broker has forgotten it and it is said anew."""
        self.retained[topic] = (payload, again)
        self.says(topic, payload, retain=True)

    def panel_says(self, topic: str, word: str, *again: tuple[str, str]) -> None:
        """A site is armed while any of its panels is; it is told when that changes, or was forgotten."""
        self.keeps(topic, word, *again)
        if word.startswith("armed") or word == "disarmed":
            self.panels[topic] = word
            armed = any(said != "disarmed" for said in self.panels.values())
            state = "active" if armed else "inactive"
            if state != self.told:
                self.told = state
                self.arming.append(state)

    # What is expected of it

    def expect(self, camera: str, kind: str, *states: str, at: float | None = None) -> None:
        for state in states:
            what = (f"cam-{camera}", kind, state)
            self.expected[what] += 1
            if at is not None:
                self.times.setdefault(what, []).append(round(at * 1000))

    def rows(self, camera: str, kind: str, state: str) -> int:
        query = "SELECT count(*) FROM event WHERE camera_id = ? AND event_type = ? AND event_status = ?"
        [(count,)] = self.premises.gateway.rows(query, f"cam-{camera}", kind, state) or [(0,)]
        return int(count)

    async def stored(self, camera: str, kind: str, state: str) -> None:
        """All of this that is expected until now is in the store."""
        await self.up()
        what = f"{camera} {kind} {state}"
        count = self.expected[f"cam-{camera}", kind, state]
        await until(lambda: self.rows(camera, kind, state) >= count, timeout=20, what=what)

    async def heard(self) -> None:
        """The gateway has committed everything that was said until now."""
        await self.up()
        assert self.equipment is not None
        self.others["unreadable"] += 1
        marker = f"marker {self.others['unreadable']}".encode()
        self.says("frigate/reviews", marker)
        query = "SELECT 1 FROM event WHERE state = 'unreadable' AND raw = ?"
        await until(lambda: self.premises.gateway.rows(query, marker), timeout=30, what="the marker")

    # What befalls it

    async def move_in(self) -> None:
        self.equipment = await Publisher(self.premises.broker.port).start()
        await self.premises.gateway.start()
        await self.premises.gateway.subscribed()

    async def up(self) -> None:
        if self.down:
            await self.premises.gateway.start()
            await self.premises.gateway.subscribed()
            self.down = False

    async def gateway_killed(self) -> None:
        await self.up()
        await self.premises.gateway.kill()
        self.down = True

    async def gateway_stopped(self) -> None:
        await self.up()
        assert await self.premises.gateway.stop() == 0
        self.down = True

    async def gateway_back(self) -> None:
        await self.up()

    async def _broker(self, change: Callable[[], Awaitable[None]]) -> None:
        assert self.equipment is not None
        await self.equipment.confirmed()
        await self.equipment.stop()
        before = self._connections()
        await change()
        self.equipment = await Publisher(self.premises.broker.port).start()
        if not self.down:
            await until(lambda: self._connections() > before, timeout=30, what="connected again")

    def _connections(self) -> int:
        return self.premises.broker.log_text().count("Sending SUBACK to chekt-gateway-Z6RSOG")

    async def broker_restarted(self) -> None:
        """With everything that it knew: what waits for us is still there."""
        await self._broker(self.premises.broker.restart)

    async def broker_forgot(self) -> None:
        """A new disk: equipment says its states anew, as it does at each connection."""
        await self.heard()

        async def replaced() -> None:
            await self.premises.broker.kill()
            self.premises.broker.forget()
            await self.premises.broker.start()

        await self._broker(replaced)
        await self.heard()
        self.lost += 1
        self.told = None
        for topic, (payload, again) in list(self.retained.items()):
            if topic in self.panels:
                self.panel_says(topic, payload, *again)
            else:
                self.says(topic, payload, retain=True)
            for camera, state in again:
                self.expect(camera, "alarm", state)
        await self.heard()

    async def network_cut(self) -> None:
        before = self._connections()
        self.wire.cut()
        if not self.down:
            await until(lambda: self._connections() > before, timeout=30, what="connected again")

    async def cloud_dark(self) -> None:
        await self.premises.cloud.go_dark()

    async def cloud_back(self) -> None:
        await self.premises.cloud.come_back()

    async def cloud_stumbles(self) -> None:
        self.premises.cloud.script([Status(503), DropBeforeAnswer(), CutOff(), Status(429, retry_after="1")])

    def plan_of_faults(self) -> list[str]:
        """Together what belongs together; which of them, and in which order, is the seed's.

        At most two that break a connection: after three in a row that ended at once the gateway waits, since it may be
        another client that uses its id.
        """
        breaks = self.dice.sample(["broker_restarted", "broker_forgot", "network_cut"], 2)
        others = [
            ("cloud_stumbles",),
            ("cloud_dark", "cloud_back"),
            ("gateway_killed", "gateway_back"),
            ("gateway_stopped", "gateway_back"),
            ("gateway_killed", "broker_restarted", "gateway_back"),
        ]
        chosen = [*((one,) for one in breaks), *self.dice.sample(others, 4)]
        self.dice.shuffle(chosen)
        return [name for group in chosen for name in group]

    async def suffer(self, name: str) -> None:
        self.suffered.append(name)
        await getattr(self, name)()

    # The evening

    async def live(self, acts: list[AsyncIterator[None]]) -> None:
        faults = self.plan_of_faults()
        often = len(faults) / (3 * len(acts))
        while acts:
            act = self.dice.choice(acts)
            try:
                await anext(act)
            except StopAsyncIteration:
                acts.remove(act)
            if faults and self.dice.random() < often:
                await self.suffer(faults.pop(0))
        for name in faults:
            await self.suffer(name)
        await self.heard()


Act = AsyncIterator[None]


async def a_review_that_grows(house: House) -> Act:
    """Begins as a detection, is raised by an update, floods, ends late; and then speaks on."""
    start = round(time.time() - 90, 3)
    first = review("front", start=start, severity="detection")
    number = first["after"]["id"]
    house.says("frigate/reviews", encode(first))
    yield
    raised = review("front", phase="update", start=start, review_id=number)
    raised["before"] = first["after"]
    house.says("frigate/reviews", encode(raised))
    house.expect("front", "alarm", "active", at=start)
    yield
    again = encode(review("front", phase="update", start=start, review_id=number))
    for _ in range(40):
        house.says("frigate/reviews", again)
    yield
    end = review("front", phase="end", start=start, end=start + 30, review_id=number)
    house.says("frigate/reviews", encode(end))
    house.expect("front", "alarm", "inactive", at=start + 30)
    yield
    for late in (raised, end, {**end, "type": "genai"}, {**first, "type": "new"}):
        house.says("frigate/reviews", encode(late))


async def an_end_without_its_beginning(house: House) -> Act:
    start = round(time.time() - 120, 3)
    house.says("frigate/reviews", encode(review("back yard", phase="end", start=start, end=start + 60)))
    house.expect("back", "alarm", "active", at=start)
    house.expect("back", "alarm", "inactive", at=start + 60)
    yield
    detection = review("back yard", severity="detection")
    house.says("frigate/reviews", encode(detection))
    house.says("frigate/reviews", encode({**detection, "type": "end"}))


async def a_recorder_without_power(house: House) -> Act:
    """Its last will is one trouble, whatever its cameras say meanwhile."""
    recorder = Publisher(house.premises.broker.port, will=("frigate/available", "offline"))
    await recorder.start()
    recorder.publish("frigate/available", "online", retain=True)
    recorder.publish("frigate/front/status/detect", "online")
    await recorder.confirmed()
    await recorder.vanish()
    house.expect("nvr", "trouble", "active")
    house.says("frigate/front/status/detect", "offline")
    await house.stored("nvr", "trouble", "active")
    yield
    await house.up()
    house.says("frigate/available", "online", retain=True)
    house.says("frigate/front/status/detect", "online")
    house.expect("nvr", "trouble", "inactive")
    yield
    # A bridge that says `offline` at each start, and takes it back at once.
    house.says("frigate/back yard/status/record", "offline")
    house.says("frigate/back yard/status/record", "online")


def onvif(data: dict[str, Any]) -> str:
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
    return json.dumps({"UtcTime": stamp, "Source": {"VideoSourceToken": "1"}, "Data": data})


async def motion_as_a_property(house: House) -> Act:
    """Retained, repeated, said anew after a reconnection: one alarm, until the broker has forgotten it."""
    topic = "yard/onvif-ej/VideoSource/MotionAlarm/&1"
    began = time.monotonic()
    house.keeps(topic, onvif({"State": "true"}), ("yard", "inactive"), ("yard", "active"))
    house.expect("yard", "alarm", "active")
    yield
    if time.monotonic() - began < 20:  # what comes half a minute later is another alarm
        for _ in range(3):
            house.says(topic, onvif({"State": True}), retain=True)
    yield
    house.keeps(topic, onvif({"State": "false"}))
    house.expect("yard", "alarm", "inactive")
    yield
    house.says(topic, onvif({"State": "0"}), retain=True)


async def a_video_loss(house: House) -> Act:
    topic = "site/roof/onvif-ej/tns1:VideoSource/tns1:SignalLoss/&1"
    house.keeps(topic, onvif({"State": "true"}))
    house.expect("roof", "trouble", "active")
    await house.stored("roof", "trouble", "active")
    yield
    house.says(topic, onvif({"State": "true"}), retain=True)
    yield
    house.keeps(topic, onvif({"State": "false"}))
    house.expect("roof", "trouble", "inactive")


def isapi(kind: str, state: str, channel: int, count: int) -> str:
    at = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    return (
        f'<EventNotificationAlert version="2.0" xmlns="http://www.hikvision.com/ver20/XMLSchema">'
        f"<channelID>{channel}</channelID><dateTime>{at}</dateTime>"
        f"<activePostCount>{count}</activePostCount><eventType>{kind}</eventType><eventState>{state}</eventState>"
        "</EventNotificationAlert>"
    )


async def a_stream_of_alerts(house: House) -> Act:
    """Ten of them are one motion; the heartbeat of a healthy stream is nothing."""
    topic = "hikvision/nvr/alertStream"
    house.says(topic, isapi("videoloss", "inactive", 1, 0))
    yield
    for count in range(1, 11):
        house.says(topic, isapi("VMD", "active", 1, count))
    house.says(topic, isapi("VMD", "inactive", 1, 0))
    house.expect("hall", "alarm", "active", "inactive")
    yield
    house.says(topic, isapi("videoloss", "inactive", 1, 0))


async def a_lost_channel(house: House) -> Act:
    topic = "hikvision/nvr/alertStream"
    await house.up()
    for count in range(1, 4):
        house.says(topic, isapi("videoloss", "active", 2, count))
    house.expect("cellar", "trouble", "active")
    await house.stored("cellar", "trouble", "active")
    house.says(topic, isapi("videoloss", "inactive", 2, 0))
    house.expect("cellar", "trouble", "inactive")
    yield


async def a_door_station(house: House) -> Act:
    """A ring is no alarm; tampering is a trouble."""
    house.says("hmd/sensor/Haustür links/call-state/state", "ringing", retain=True)
    house.keeps("hmd/binary_sensor/Haustür links/tamper/state", "ON")
    house.expect("door", "trouble", "active")
    await house.stored("door", "trouble", "active")
    yield
    house.keeps("hmd/binary_sensor/Haustür links/tamper/state", "OFF")
    house.expect("door", "trouble", "inactive")


def dahua(action: str, **more: Any) -> dict[str, Any]:
    return {"Action": action, "Data": {"UTC": int(time.time())}, "serialNumber": "6F0123", **more}


async def a_line_that_is_crossed(house: House) -> Act:
    house.says("DahuaVTO/CallNoAnswered/Event", dahua("Start"))
    house.says("DahuaVTO/CrossLineDetection/Event", dahua("Start", Index=3))
    house.expect("gate", "alarm", "active")
    yield
    house.says("DahuaVTO/CrossLineDetection/Event", dahua("Stop", Index=3))
    house.expect("gate", "alarm", "inactive")
    yield
    house.says("DahuaVTO/VideoLoss/Event", dahua("Start", Index=4))
    house.expect("ramp", "trouble", "active")
    await house.stored("ramp", "trouble", "active")
    yield
    house.says("DahuaVTO/VideoLoss/Event", dahua("Stop", Index=4))
    house.expect("ramp", "trouble", "inactive")


async def everything_retained(house: House) -> Act:
    topic = "amcrest2mqtt/AMC0001/motion"
    house.keeps(topic, "on", ("lane", "inactive"), ("lane", "active"))
    house.expect("lane", "alarm", "active")
    yield
    house.keeps(topic, "off")
    house.expect("lane", "alarm", "inactive")
    yield
    house.says(topic, "off", retain=True)


async def a_state_that_is_always_alarm(house: House) -> Act:
    def event(kind: str) -> dict[str, Any]:
        return {"monitor": "5", "name": "Garage:(77) Motion", "state": "alarm", "eventid": "77", "eventtype": kind}

    house.says("zoneminder/5", event("event_start"))
    house.expect("garage", "alarm", "active")
    yield
    house.says("zoneminder/5", event("event_start"))
    yield
    house.says("zoneminder/5", event("event_end"))
    house.expect("garage", "alarm", "inactive")
    yield
    house.says("zoneminder/5", event("event_end"))


async def a_house_that_is_armed(house: House) -> Act:
    """Away, an alarm, home again."""
    topic = "alarmo/state"
    house.panel_says(topic, "arming")
    yield
    house.panel_says(topic, "armed_away")
    yield
    house.panel_says(topic, "pending")
    house.panel_says(topic, "triggered", ("house", "inactive"), ("house", "active"))
    house.expect("house", "alarm", "active")
    yield
    house.panel_says(topic, "disarmed")
    house.expect("house", "alarm", "inactive")
    yield
    house.panel_says(topic, "disarmed")


async def a_shed_with_a_panel_of_its_own(house: House) -> Act:
    """Its disarming must not disarm the house; its fire is an alarm in any case."""
    house.panel_says("dsc/Get/Partition1", "armed_home")
    yield
    house.says("dsc/Get/Fire1", "1")
    house.expect("shed", "alarm", "active")
    yield
    house.says("dsc/Get/Fire1", "0")
    house.expect("shed", "alarm", "inactive")
    house.says("dsc/Get/Zone3", "1")
    yield
    house.panel_says("dsc/Get/Partition1", "disarmed")


async def a_script(house: House) -> Act:
    house.says("site/relay/alarm", {"state": "ON", "id": "17", "kind": "person"})
    house.expect("relay", "alarm", "active")
    yield
    house.says("site/relay/alarm", {"state": "ON", "id": "17"})
    house.says("site/relay/alarm", {"state": "OFF", "id": "17"})
    house.expect("relay", "alarm", "inactive")


async def a_porch_that_is_held_off(house: House) -> Act:
    """The second alarm within the hold-off is folded, and has no end of its own."""
    house.says("site/porch/alarm", "ON")
    house.expect("porch", "alarm", "active")
    yield
    house.says("site/porch/alarm", "OFF")
    house.expect("porch", "alarm", "inactive")
    yield
    house.says("site/porch/alarm", "ON")
    house.others["folded"] += 1
    yield
    house.says("site/porch/alarm", "OFF")


async def a_beam(house: House) -> Act:
    house.says("beams/north", "broken")
    house.expect("north", "alarm", "active")
    yield
    house.says("beams/north", "dusty")
    house.says("beams/north", "whole")
    house.expect("north", "alarm", "inactive")


async def noise(house: House) -> Act:
    house.says("frigate/front/person/snapshot", b"\xff\xd8\xff\xe0")
    house.says("zigbee2mqtt/lamp", {"state": "ON"})
    house.says("frigate/reviews", encode(review("cam7")))
    yield
    house.says("frigate/reviews", encode(review("attic")))
    house.others["unmapped"] += 1
    yield
    house.says("zoneminder/5", '{"eventid": "9", "name": ')
    house.others["unreadable"] += 1
    house.says("hikvision/nvr/alertStream", b"<EventNotificationAlert><eventType>VMD")
    house.others["unreadable"] += 1


ACTS: Final = (
    a_review_that_grows,
    an_end_without_its_beginning,
    a_recorder_without_power,
    motion_as_a_property,
    a_video_loss,
    a_stream_of_alerts,
    a_lost_channel,
    a_door_station,
    a_line_that_is_crossed,
    everything_retained,
    a_state_that_is_always_alarm,
    a_house_that_is_armed,
    a_shed_with_a_panel_of_its_own,
    a_script,
    a_porch_that_is_held_off,
    a_beam,
    noise,
)
