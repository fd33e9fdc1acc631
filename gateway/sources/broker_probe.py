"""Finds out what a broker keeps for a client that is away, with a client and a topic of its own.

Subscribes under a random id, goes away, publishes more than a broker's usual limit, comes back and counts. Leaves
nothing behind: the session is deleted at the end, and ends by itself soon where that fails. Whether the broker would
remember over its own restart cannot be seen from outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from gateway import config
from gateway.model import Clock
from gateway.sources.broker import Session
from gateway.sources.broker_filters import Filter
from gateway.sources.broker_target import Guest, Timing, target_of
from gateway.sources.paho_publish import publish_all

MESSAGES: Final = 1_200  # Mosquitto's default limit is 1,000, and 100 in versions before 1.6
SESSION_SECONDS: Final = 120
QUIET_SECONDS: Final = 2.0  # nothing more comes
TIMING: Final = Timing(keepalive=10, connect_timeout=5.0, retry_first=0.5, retry_max=2.0, settled=60.0)


@dataclass(frozen=True, slots=True)
class Kept:
    """Of `published` messages so many were there afterwards. `session`: whether the broker remembered us at all."""

    session: bool
    published: int
    arrived: int


class ProbeFailed(Exception):
    """It cannot be found out; `str()` says why."""


@dataclass(frozen=True, slots=True)
class Visit:
    session: Session
    subscribed: asyncio.Event

    async def begins(self, seconds: float) -> bool:
        """Whether the broker has taken us, and answered our subscriptions, within that time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.subscribed.wait()
        return self.session.is_subscribed

    @property
    def fault(self) -> str:
        return str(self.session.facts()["last_error"] or "the broker does not answer")


def random_id() -> str:
    return f"chekt-doctor-{secrets.token_hex(6)}"


@asynccontextmanager
async def guest(
    broker: config.Broker,
    filters: Sequence[Filter],
    *,
    clock: Clock,
    password: str | None,
    kind: Guest = "clean",
    max_message: int = 1 << 20,
) -> AsyncIterator[Visit]:
    """A session that only looks. Connecting may still be under way: wait for `Visit.begins`."""
    subscribed = asyncio.Event()
    session = Session(
        broker,
        location_id="doctor",
        filters=filters,
        clock=clock,
        max_message=max_message,
        password=password,
        timing=TIMING,
        guest=kind,
        on_subscribed=subscribed.set,
    )
    stop = asyncio.Event()
    task = asyncio.create_task(session.run(stop), name="doctor's session")
    try:
        yield Visit(session, subscribed)
    finally:
        stop.set()
        await asyncio.wait({task}, timeout=10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def probe(broker: config.Broker, *, clock: Clock, password: str | None) -> Kept:
    """Raises ProbeFailed."""
    ours = broker.model_copy(update={"client_id": random_id(), "session_expiry": SESSION_SECONDS})
    topic = f"chekt-gateway/doctor/{secrets.token_hex(6)}"
    filters = [Filter(topic, 2)]
    try:
        async with guest(ours, filters, clock=clock, password=password, kind="kept") as visit:
            if not await visit.begins(10):
                raise ProbeFailed(visit.fault)
            facts = visit.session.facts()
            if facts["refused_filters"]:
                raise ProbeFailed(f"our user may not subscribe to {topic}")
            protocol = facts["protocol"]
        other = ours.model_copy(update={"client_id": random_id(), "protocol": protocol})
        target = target_of(other, "doctor", password, TIMING, "clean")
        published = await publish_all(target, protocol == "5", topic, MESSAGES)
        async with guest(ours, filters, clock=clock, password=password, kind="kept") as visit:
            if not await visit.begins(10):
                raise ProbeFailed(visit.fault)
            arrived = await _count(visit.session)
            return Kept(bool(visit.session.facts()["session_present"]), published, arrived)
    except OSError as error:
        raise ProbeFailed(f"cannot publish: {error}") from error
    finally:
        async with guest(ours, [], clock=clock, password=password) as visit:
            await visit.begins(5)


async def _count(session: Session) -> int:
    count = 0
    with contextlib.suppress(TimeoutError):
        while count < MESSAGES:
            async with asyncio.timeout(QUIET_SECONDS):
                got = await session.receive(500)
            session.acknowledge([one.token for one in got])
            count += len(got)
    return count
