"""What the journal and `status` hear of a session, each thing once: how it goes, why not, what the broker grants."""

from __future__ import annotations

from typing import Any, Final

import structlog

from gateway.sources import broker_reasons
from gateway.sources.broker_filters import Filter, filter_fault
from gateway.sources.broker_reasons import Lost, Why

log = structlog.get_logger()

_OF_A_PERSON: Final = (Why.REFUSED, Why.TAKEN_OVER)  # somebody must act
DROPS_AGAIN_MS: Final = 5 * 60_000  # while we break off again and again, this often it is said how many times


class Report:
    """Of one session, over all its connections."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._said: set[str] = set()  # reasons told since the outage began
        self._said_connected = False
        self._drops = 0  # since a connection last settled: while the store refuses, each ends like the one before
        self._drops_said_ticks = 0
        self._settled = False
        self.last_error: str | None = None

    def connected(self, **facts: Any) -> None:
        if self._said_connected or (self._drops and not self._settled):
            return
        self._said_connected = True
        if self._drops:
            facts["drops"], self._drops = self._drops, 0
        self._said.clear()
        log.info("mqtt_connected", url=self._url, **facts)

    def settled(self) -> None:
        """The next outage is another one."""
        self._said.clear()
        self._settled = True

    def lost(self, lost: Lost, *, was_connected: bool, failures: int, ticks: int) -> None:
        self.last_error = lost.reason
        self._settled = False
        if lost.why is Why.DROPPED:
            self._dropped(lost, ticks)
            return
        event = "mqtt_lost" if was_connected else "mqtt_connect_failed"
        say = log.debug if lost.reason in self._said else log.error if lost.why in _OF_A_PERSON else log.warning
        self._said.add(lost.reason)
        self._said_connected = False
        say(event, url=self._url, reason=lost.reason, failures=failures)

    def _dropped(self, lost: Lost, ticks: int) -> None:
        self._drops += 1
        self._said_connected = False
        say = log.debug
        if self._drops == 1 or ticks - self._drops_said_ticks >= DROPS_AGAIN_MS:
            self._drops_said_ticks, say = ticks, log.warning
        say("mqtt_dropped", url=self._url, reason=lost.reason, drops=self._drops)


class Grants:
    """What the broker gives us of what we asked for."""

    def __init__(self) -> None:
        self.refused: dict[str, str] = {}
        self.without_qos: set[str] = set()

    def possible(self, filters: tuple[Filter, ...]) -> tuple[Filter, ...]:
        """Those that can be asked for; a malformed one would end the connection."""
        for filter_ in filters:
            fault = filter_fault(filter_.topic)
            if fault is not None:
                self.refused[filter_.topic] = fault
                log.error("mqtt_filter_refused", topic=filter_.topic, reason=fault)
        return tuple(filter_ for filter_ in filters if filter_.topic not in self.refused)

    def answered(self, topic: str, code: int) -> bool:
        """Notes one code of a SUBACK. False: refused."""
        if code >= 0x80:
            reason = broker_reasons.of_suback(code)
            if self.refused.get(topic) != reason:
                log.error("mqtt_filter_refused", topic=topic, reason=reason)
            self.refused[topic] = reason
            return False
        if self.refused.pop(topic, None) is not None:
            log.info("mqtt_filter_accepted", topic=topic)
        if code == 0 and topic not in self.without_qos:
            self.without_qos.add(topic)
            log.warning("mqtt_filter_without_qos", topic=topic, reason="the broker grants QoS 0 only")
        elif code:
            self.without_qos.discard(topic)
        return True
