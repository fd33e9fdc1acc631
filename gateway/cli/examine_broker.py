"""The checks of `doctor` that concern the broker: is it there, what does it grant, what is said, what would it lose?"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from gateway.cli.finding import Finding
from gateway.host.clock import SystemClock
from gateway.sources import mosquitto_conf
from gateway.sources.broker_filters import Filter, matches
from gateway.sources.broker_probe import MESSAGES, ProbeFailed, Visit, guest, probe, random_id
from gateway.sources.broker_target import PORTS
from gateway.sources.broker_window import Received
from gateway.sources.plans import filters_of, histories_of

if TYPE_CHECKING:
    from gateway.config import Settings

MOSQUITTO_CONF: Final = Path("/etc/mosquitto/mosquitto.conf")
CONNECT_SECONDS: Final = 10.0


def password_of(settings: Settings) -> str | None:
    name = settings.broker.password_file
    return None if name is None else settings.secret(name).decode()


async def broker(settings: Settings, seconds: float) -> list[Finding]:
    """Reached, what it grants, and what is said on our topics for so long."""
    ours = settings.broker.model_copy(update={"client_id": random_id()})
    filters = [Filter(topic, handling) for topic, handling in filters_of(settings)]
    async with guest(ours, filters, clock=SystemClock(0), password=password_of(settings)) as visit:
        if not await visit.begins(CONNECT_SECONDS):
            remedy = "start it, or mend [broker] in the configuration; until then nothing is heard"
            return [Finding("broker", "FAIL", visit.fault, remedy)]
        found = [Finding("broker", "ok", f"{visit.session.url} takes us (MQTT {visit.session.facts()['protocol']})")]
        found += _granted(visit)
        heard = await _listen(visit, seconds)
    return [*found, *_topics(settings, heard, seconds)]


def _granted(visit: Visit) -> Iterator[Finding]:
    facts = visit.session.facts()
    if facts["fell_back"]:
        yield Finding("protocol", "warn", "the broker does not speak MQTT 5", 'set broker.protocol = "3.1.1"')
    for topic, reason in facts["refused_filters"].items():
        yield Finding("topics", "FAIL", f"the broker refuses {topic}: {reason}", "allow our user to read it")
    for topic in facts["filters_without_qos"]:
        yield Finding("topics", "FAIL", f"the broker grants only QoS 0 for {topic}", "allow QoS 1 in the broker")


async def _listen(visit: Visit, seconds: float) -> list[Received]:
    heard: list[Received] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while True:
                got = await visit.session.receive(500)
                heard += got
                visit.session.acknowledge([one.token for one in got])
    return heard


def _topics(settings: Settings, heard: Sequence[Received], seconds: float) -> Iterator[Finding]:
    remembering = histories_of(settings)
    for table, source in settings.sources.items():
        wanted = [topic for topic, _ in filters_of(settings.model_copy(update={"sources": {table: source}}))]
        mine = [one.message for one in heard if any(matches(topic, one.message.topic) for topic in wanted)]
        live = [message for message in mine if not message.retain]
        if not mine:
            remedy = (
                f"is it switched on, and does it publish below {wanted[0].partition('/')[0]}/? Try again for longer"
            )
            yield Finding(f"source {table}", "warn", f"nothing was heard within {seconds:g} s", remedy)
            continue
        yield Finding(f"source {table}", "ok", f"{len(mine)} messages heard within {seconds:g} s")
        careless = Counter(message.topic for message in live if message.qos == 0)
        if careless:
            names = ", ".join(topic for topic, _ in careless.most_common(3))
            yield Finding(
                f"source {table}",
                "warn",
                f"it publishes with QoS 0 ({names}): what it says while we are away is "
                + ("asked of the recorder afterwards" if table in remembering else "lost"),
                "set QoS 1 in the equipment" + (" (Frigate: mqtt.qos: 1)" if source.family == "frigate" else ""),
            )


async def keeping(settings: Settings, conf: Path | None) -> list[Finding]:
    """What the broker would lose of what it keeps for us: from its own configuration, or by trying."""
    host = urlsplit(settings.broker.url).hostname or ""
    path = conf or (MOSQUITTO_CONF if is_this_machine(host) else None)
    if path is not None:
        try:
            known = mosquitto_conf.read_settings(str(path), _read, _list)
        except mosquitto_conf.Unreadable as error:
            if conf is not None:
                return [Finding("broker keeps", "FAIL", str(error), "name a file that can be read")]
        else:
            if conf is not None or _port_of(settings) in mosquitto_conf.ports(known):
                return list(_weaknesses(path, known))
    return [await _try_it(settings)]


def _weaknesses(path: Path, known: dict[str, mosquitto_conf.Setting]) -> Iterator[Finding]:
    weak = mosquitto_conf.weaknesses(known)
    for one in weak:
        yield Finding(
            "broker keeps", "FAIL" if one.fatal else "warn", one.sentence, f"write `{one.line}` into {path.parent}"
        )
    if not weak:
        more = "; QoS 0 is kept, too" if mosquitto_conf.upgrades_qos(known) else ""
        yield Finding("broker keeps", "ok", f"{path}: sessions and queues are kept{more}")


async def _try_it(settings: Settings) -> Finding:
    name = "broker keeps"
    lines = "; write `persistence true` and `max_queued_messages 200000` into its configuration"
    try:
        kept = await probe(settings.broker, clock=SystemClock(0), password=password_of(settings))
    except ProbeFailed as error:
        return Finding(
            name, "warn", f"what it keeps for us cannot be known: {error}", "look into its configuration" + lines
        )
    if not kept.session:
        return Finding(name, "FAIL", "the broker forgets us as soon as we are away", "allow persistent sessions")
    if kept.arrived < kept.published or kept.published < MESSAGES:
        what = f"of {MESSAGES} messages that were published while we were away, {kept.arrived} were kept"
        return Finding(name, "FAIL", what, "raise its queue limit (Mosquitto: max_queued_messages 200000)")
    what = f"{kept.arrived} messages were kept while we were away; whether over its own restart cannot be known"
    return Finding(name, "warn", what, "make sure that it keeps them on disk (Mosquitto: persistence true)")


def _port_of(settings: Settings) -> int:
    parts = urlsplit(settings.broker.url)
    return parts.port or PORTS[parts.scheme]


def is_this_machine(host: str) -> bool:
    """Whether a name or address is our own."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    for family, _, _, _, address in found:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            try:
                sock.bind((address[0], 0))
            except OSError:
                continue
            return True
    return False


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise mosquitto_conf.Unreadable(f"{path} cannot be read: {error.strerror}") from None


def _list(folder: str) -> list[str]:
    try:
        return [str(file) for file in Path(folder).iterdir()]
    except OSError as error:
        raise mosquitto_conf.Unreadable(f"{folder} cannot be read: {error.strerror}") from None
