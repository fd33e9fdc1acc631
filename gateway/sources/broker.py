"""The session with the broker: connected for ever, each message handed out with a token, acknowledged only on demand.

Promises: a message of QoS 1 is acknowledged after `acknowledge` and never before; nothing is dropped here, reading
pauses instead; a token of an older connection is worth nothing on the next; a session that the broker has lost, or may
have lost a part of, is reported by `on_gap`. What waited when a connection ended is still handed out: the broker may
have forgotten it. Twice is for the steps to notice, never is for nobody.

How bytes travel is `paho_link.py`; sources: OASIS MQTT 5.0 and 3.1.1.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final, Literal

import structlog

from gateway import config
from gateway.model import Clock, Message
from gateway.sources import broker_reasons
from gateway.sources.broker_filters import Filter, ReplayJudge, unique
from gateway.sources.broker_reasons import Lost, Why
from gateway.sources.broker_report import Grants, Report
from gateway.sources.broker_target import TIMING, Guest, Timing, shown, target_of
from gateway.sources.broker_window import AckToken, Cut, Received, Window
from gateway.sources.paho_link import Link

log = structlog.get_logger()

QUICK_SECONDS: Final = 5.0  # a connection that the broker ends this soon was not wanted
HURRY_SECONDS: Final = 10.0  # a store that accepts and refuses in turn shall not make us reconnect all the time
QUICK_ENDS: Final = 3  # in a row, until we name the likely cause
UNANSWERED_TRIES: Final = 2  # of MQTT 5, until we try 3.1.1


class Session:
    """`run` keeps the connection; `receive` and `acknowledge` are for intake."""

    def __init__(
        self,
        broker: config.Broker,
        *,
        location_id: str,
        filters: Sequence[Filter],
        clock: Clock,
        max_message: int,
        known_filters: Collection[str] = (),
        had_session: bool = False,
        on_gap: Callable[[str], None] = lambda reason: None,
        on_connected: Callable[[bool], None] = lambda session_present: None,
        on_subscribed: Callable[[], None] = lambda: None,
        on_filters: Callable[[frozenset[str]], None] = lambda topics: None,
        password: str | None = None,
        timing: Timing = TIMING,
        uniform: Callable[[float, float], float] = random.uniform,
        guest: Guest | None = None,
    ) -> None:
        """`on_connected` hears of each connection, before its first message, whether the session was resumed.
        `on_subscribed` hears when everything that is published from then on reaches us.
        `on_filters` hears which filters the broker may hold for us, to be `known_filters` of the next process."""
        self.target = target_of(broker, location_id, password, timing, guest, max_message)
        self.url = shown(broker.url)
        self._wanted_protocol: Literal["5", "3.1.1"] = broker.protocol
        self._protocol: Literal["5", "3.1.1"] = broker.protocol
        self._unanswered = 0
        self._fell_back = False
        self._filters = unique(filters)
        self._clock = clock
        self._max_message = max_message
        self._on_gap = on_gap
        self._on_connected = on_connected
        self._on_subscribed = on_subscribed
        self._on_filters = on_filters
        self._timing = timing
        self._uniform = uniform
        self._window = Window(broker.receive_maximum)
        self._link: Link | None = None
        self._judge = ReplayJudge(())

        self._had_session = had_session
        self._in_session = set(known_filters)
        self._grants = Grants()
        self._broke_off = False  # the last connection ended without a goodbye of the broker
        self._restarted = False  # and then nothing listened there
        self._hurried: asyncio.Future[None] | None = None  # while we wait after a connection that we dropped
        self._hurried_at = -math.inf

        self.connected = False
        self._subscribed = False
        self._session_present: bool | None = None
        self._session_expiry: int | None = None
        self._since = clock.ticks_ms()
        self._report = Report(self.url)
        self._failures = 0  # since the last connection that settled
        self._quick_ends = 0
        self._connections = 0
        self._timers: list[asyncio.TimerHandle] = []
        self._accepted_at: float | None = None

    # --- for intake and status --------------------------------------------------------------------------------------

    async def receive(self, limit: int) -> list[Received]:
        """Waits for at least one message; everything that is there, up to `limit`, in order of receipt."""
        taken = await self._window.take(limit)
        self._resume_when_low()
        return taken

    def hand_in(self, messages: Iterable[Received]) -> None:
        """For `receive` to hand out like any other: what was asked of a recorder. Connected or not."""
        for received in messages:
            self._window.hand_in(received)

    def acknowledge(self, tokens: Iterable[AckToken]) -> None:
        """In the order given, which is the order of receipt (MQTT 5.0, 4.6). Older connections' tokens are ignored:
        packet ids begin again, and the acknowledgement would be for another message."""
        if self._link is None:
            return
        for token in tokens:
            qos = self._window.done(token, self._clock.ticks_ms())
            if qos:
                self._link.ack(token.mid, qos)
        self._judge.acknowledged(self._clock.ticks_ms())
        self._resume_when_low()

    def is_current(self, token: AckToken) -> bool:
        """Whether the broker can still be told, on the connection that the message came by (QoS 0: nothing to tell)."""
        return token.mid == 0 or token.generation == self._window.generation

    def drop(self, reason: str) -> None:
        """A deliberate reconnect, so that the broker sends again, in order, what is not acknowledged.

        What waits here goes too (it will come again), or it would overtake what failed. QoS 0 never comes again.
        """
        self._window.next_connection(self._clock.ticks_ms(), sends_again=True)
        if self._link is not None and self.connected:
            self._link.drop(reason)

    def hurry(self) -> None:
        """What we dropped the connection for is over: the next one need not wait, though not more often than now."""
        now = asyncio.get_running_loop().time()
        if self._hurried is None or self._hurried.done() or now - self._hurried_at < HURRY_SECONDS:
            return
        self._hurried_at = now
        self._hurried.set_result(None)

    @property
    def subscribed_filters(self) -> frozenset[str]:
        """What the broker may hold for our client id."""
        return frozenset(self._in_session)

    @property
    def is_subscribed(self) -> bool:
        """Connected, and what is published now reaches us."""
        return self._subscribed

    @property
    def paused(self) -> bool:
        return self._link is not None and self._link.paused

    def facts(self) -> dict[str, Any]:
        """For `status`."""
        return {
            "connected": self.connected,
            "subscribed": self._subscribed,
            "url": self.url,
            "client_id": self.target.client_id,
            "protocol": self._protocol,
            "fell_back": self._fell_back,
            # Reckoned back, or a clock that was set meanwhile would make it years.
            "since": self._clock.wall_ms() - (self._clock.ticks_ms() - self._since),
            "last_error": self._report.last_error,
            "session_present": self._session_present,
            "session_expiry_seconds": self._session_expiry,
            "unacknowledged": self._window.unacknowledged,
            "waiting": self._window.waiting,
            "paused": self.paused,
            "refused_filters": dict(self._grants.refused),
            "filters_without_qos": sorted(self._grants.without_qos),
            "connections": self._connections,
            "failures": self._failures,
        }

    # --- the life of the session ------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Connects for ever. Returns after a clean DISCONNECT once `stop` is set; raises only what is our own fault."""
        self._filters = self._grants.possible(self._filters)
        stopped = asyncio.create_task(stop.wait(), name="mqtt-stop")
        try:
            while not stop.is_set():
                lost = await self._live(stopped)
                if lost is not None:
                    await self._rest(lost, stopped)
        finally:
            stopped.cancel()

    async def _live(self, stopped: asyncio.Task[Any]) -> Lost | None:
        """One connection. Returns why it ended, or None if we were told to stop."""
        self._judge = ReplayJudge([f.topic for f in self._filters])
        link = self._link = Link(
            self.target,
            self._protocol,
            self,
            filters=[(f.topic, f.retain_handling) for f in self._filters],
            unwanted=sorted(self._in_session - {f.topic for f in self._filters}),
            wall_ms=self._clock.wall_ms,
        )
        life = asyncio.create_task(link.run(), name="mqtt-link")
        try:
            await asyncio.wait({life, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not life.done() and not self.connected:
                return None  # nobody has heard of us yet
            if not life.done():
                await link.leave()
                await asyncio.wait({life})
            lost = life.result()
            return None if stopped.done() else lost
        finally:
            life.cancel()
            await asyncio.wait({life})
            if not life.cancelled():
                life.exception()  # raised above, unless we were cancelled ourselves
            self._link = None
            self._disconnected()

    def _disconnected(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self.connected:
            self._since = self._clock.ticks_ms()
        self.connected = self._subscribed = False
        self._window.next_connection(self._clock.ticks_ms())

    async def _rest(self, lost: Lost, stopped: asyncio.Task[Any]) -> None:
        seconds = self._after(lost)
        hurried = self._hurried = asyncio.get_running_loop().create_future() if lost.why is Why.DROPPED else None
        await asyncio.wait(
            {stopped} if hurried is None else {stopped, hurried}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        self._hurried = None

    def _after(self, lost: Lost) -> float:
        """Says why, if it has not been said, and how long to wait."""
        accepted_at, self._accepted_at = self._accepted_at, None
        lived = None if accepted_at is None else asyncio.get_running_loop().time() - accepted_at
        if lived is not None and lived < QUICK_SECONDS and lost.why is Why.CLOSED:
            self._quick_ends += 1
            if self._quick_ends >= QUICK_ENDS:
                lost = broker_reasons.perhaps_taken_over(self.target.client_id)
        elif lost.why is not Why.TAKEN_OVER:
            self._quick_ends = 0
        if lived is not None:
            self._broke_off = lost.why in (Why.NETWORK, Why.CLOSED)
        elif lost.why is Why.UNREACHABLE:
            self._restarted = self._broke_off
        ticks = self._clock.ticks_ms()
        self._report.lost(lost, was_connected=lived is not None, failures=self._failures, ticks=ticks)
        self._failures += 1
        if self._switch_protocol(lost):
            return 0.0
        if lost.why is Why.TAKEN_OVER:
            return self._uniform(self._timing.taken_over, 2 * self._timing.taken_over)
        # Full jitter: gateways that lost their broker together shall not come back together.
        most = min(self._timing.retry_max, self._timing.retry_first * 2.0 ** min(self._failures - 1, 20))
        return self._uniform(0.0, most)

    def _switch_protocol(self, lost: Lost) -> bool:
        """MQTT 5 where it is spoken. A broker of 3.1.1 refuses it, closes, or waits for ever (it takes the properties
        for a long client id: amqtt); so does one that is just starting, hence twice, and 3.1.1 must then succeed."""
        if self._wanted_protocol != "5" or self._fell_back:
            return False
        if self._protocol == "3.1.1":
            self._protocol = "5"
            self._unanswered = 0
            return False
        if lost.why is Why.PROTOCOL:
            self._fall_back()
            return True
        self._unanswered = self._unanswered + 1 if lost.why is Why.UNANSWERED else 0
        if self._unanswered < UNANSWERED_TRIES:
            return False
        self._protocol = "3.1.1"
        return True

    def _fall_back(self) -> None:
        self._protocol = "3.1.1"
        self._fell_back = True
        log.warning("mqtt_protocol_fell_back", url=self.url, wanted="5", used="3.1.1")

    # --- what the link tells us -------------------------------------------------------------------------------------

    def accepted(self, session_present: bool, session_expiry: int | None) -> None:
        loop = asyncio.get_running_loop()
        self._accepted_at = loop.time()
        if self._protocol != self._wanted_protocol and not self._fell_back:
            self._fall_back()
        self.connected = True
        self._since = self._clock.ticks_ms()
        self._connections += 1
        self._session_present = session_present
        self._session_expiry = session_expiry
        self._on_connected(session_present)
        if self._had_session and not session_present:
            self._gap("the broker has lost our session; what was published while we were not connected is lost")
        elif self._broke_off and self._restarted:
            self._gap("the broker broke off and was started again; what it had not yet saved may be lost")
        self._had_session = True
        self._broke_off = self._restarted = False
        if not session_present:
            self._in_session.clear()
            self._window.session_lost()
        self._in_session.update(f.topic for f in self._filters)
        self._on_filters(self.subscribed_filters)
        self._timers.append(loop.call_later(self._timing.settled, self._settle))
        self._timers.append(loop.call_later(self._timing.suback, self._expect_suback))

    def subscribed(self, codes: Sequence[int]) -> None:
        self._subscribed = True
        self._judge.subscribed(self._clock.ticks_ms())
        for filter_, code in zip(self._filters, codes, strict=False):
            if not self._grants.answered(filter_.topic, code):
                self._in_session.discard(filter_.topic)
        self._on_filters(self.subscribed_filters)
        self._on_subscribed()
        if self._quick_ends < QUICK_ENDS:
            self._say_connected()

    def unsubscribed(self) -> None:
        gone = self._in_session - {f.topic for f in self._filters}
        self._in_session -= gone
        for topic in sorted(gone):
            log.info("mqtt_filter_removed", topic=topic)
        self._on_filters(self.subscribed_filters)

    def arrived(
        self, mid: int, qos: int, topic: str, payload: bytes, retain: bool, dup: bool, cut: Cut | None = None
    ) -> None:
        now = self._clock.ticks_ms()
        replay = self._judge.arrived(topic, retain, now, self._window.load)
        message = Message(topic, payload, qos, retain, dup, replay, self._clock.wall_ms(), now)
        self._window.put(mid, message, self._max_message, cut)
        if self._link is not None and self._window.full:
            # Mosquitto 2.0.11 (Debian 12) ignores Receive Maximum after the first acknowledgements (its issue 2301):
            # the bound must be ours.
            self._link.pause()

    def state_refused(self, reason: str) -> None:
        log.warning("mqtt_state_refused", topic=self.target.state_topic, reason=reason)

    # --- small things -----------------------------------------------------------------------------------------------

    def _resume_when_low(self) -> None:
        if self._link is not None and self._link.paused and self._window.low:
            self._link.resume()

    def _gap(self, reason: str) -> None:
        log.warning("mqtt_gap_possible", url=self.url, reason=reason)
        self._on_gap(reason)

    def _settle(self) -> None:
        self._failures = self._quick_ends = self._unanswered = 0
        self._report.settled()
        if self._subscribed:
            self._say_connected()

    def _expect_suback(self) -> None:
        if self._subscribed or self._link is None:
            return
        if self._window.load:  # it may stand behind a backlog
            self._timers.append(asyncio.get_running_loop().call_later(self._timing.suback, self._expect_suback))
        else:
            self._link.drop("the broker did not answer our SUBSCRIBE")

    def _say_connected(self) -> None:
        self._report.connected(
            client_id=self.target.client_id,
            protocol=self._protocol,
            session_present=self._session_present,
            failures=self._failures,
        )
