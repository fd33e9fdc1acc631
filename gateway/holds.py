"""Cameras and sites that the cloud does not take: who waits, who may ask again, and when it is over.

A hold never blocks a camera that has not itself been refused. One camera first; a second one of the same site with 403,
and none accepted since, is the site; three different events refused with 400 in a row, none accepted, are everything:
it is us or the cloud, not the events. What is held asks once a minute, together. Pure: ticks come in as arguments.
Source: CHeKT Event API v0.8, "Error Responses".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from gateway.model import Event
from gateway.notice import Condition, Notice
from gateway.retry import HELD_RETRY_MS, LONGEST_WAIT_MS, REFUSALS_TO_DIE, Answer, Verdict

PROBE_MS: Final = HELD_RETRY_MS
ALL_REFUSED: Final = 3  # different events refused in a row, none accepted
REMEMBERED: Final = 10_000  # refused events whose refusals are counted so; the others live longer
EVERYTHING: Final = "*"  # the scope of a hold


@dataclass
class _Hold:
    """Lanes that the cloud refuses, as one: together they may ask once a minute."""

    lanes: set[str]
    probe_at: int
    why: str
    not_before: int  # ticks from which on its lanes may ask at all
    probe: str | None = None  # the event that asks just now
    asked: dict[str, int] = field(default_factory=dict)  # lane -> ticks at which it asked last

    def waiting(self, ticks: int) -> set[str]:
        """Who may not ask now. Who has asked lets the others ask first: the oldest event may be the one at fault."""
        if self.probe is not None or ticks < self.probe_at:
            return self.lanes
        return {lane for lane, at in self.asked.items() if ticks < at + self._turn_ms}

    @property
    def _turn_ms(self) -> int:
        return min(PROBE_MS * len(self.lanes), LONGEST_WAIT_MS)


class Holds:
    def __init__(self) -> None:
        self._holds: dict[str, _Hold] = {}  # lane, location_id or EVERYTHING
        self._site_refusals: dict[str, set[str]] = {}  # location_id -> lanes answered 403 since its last acceptance
        self._refused: dict[str, str] = {}  # event_id -> lane, since the last acceptance
        # event_id -> how often in a row it was refused with others accepted in between, ticks of the last refusal
        self._alone: dict[str, tuple[int, int]] = {}

    @property
    def everything(self) -> bool:
        """Whether the cloud refuses whatever it is sent."""
        return EVERYTHING in self._holds

    def held(self, ticks: int) -> tuple[frozenset[str], bool]:
        """The lanes that wait, and whether one of several may ask now (then only one event at a time is claimed)."""
        held: set[str] = set()
        probing = False
        for hold in self._holds.values():
            waiting = hold.waiting(ticks)
            held |= waiting
            probing = probing or len(hold.lanes) > max(1, len(waiting))
        return frozenset(held), probing

    def changes(self, ticks: int) -> list[int]:
        """Ticks at which somebody may ask again."""
        return [hold.probe_at for hold in self._holds.values() if hold.probe_at > ticks]

    def sent(self, event: Event, ticks: int) -> None:
        for hold in self._holds.values():
            if event.lane in hold.lanes:
                hold.probe, hold.probe_at = event.event_id, ticks + PROBE_MS
                hold.asked[event.lane] = ticks

    def forget(self, event_id: str) -> None:
        for hold in self._holds.values():
            if hold.probe == event_id:
                hold.probe = None

    def try_now(self, ticks: int) -> None:
        for hold in self._holds.values():
            hold.probe_at, hold.not_before = min(hold.probe_at, ticks), min(hold.not_before, ticks)
            hold.asked.clear()

    def proves_refusal(self, event: Event) -> bool:
        """Whether it is this event that the cloud refuses, and not everything.

        Others must have been accepted between its last three refusals, each time: a cloud that refuses everything now
        and then would kill whatever it meets often. Counted anew after a restart.
        """
        times, _ = self._alone.get(event.event_id, (0, 0))
        return times >= REFUSALS_TO_DIE and not self.everything

    def accepted(self, event: Event) -> list[Notice]:
        """What is released by it."""
        self._alone.pop(event.event_id, None)
        self._refused.clear()
        self._site_refusals.pop(event.location_id, None)
        said: list[Notice] = []
        for scope in (event.lane, event.location_id, EVERYTHING):
            hold = self._holds.pop(scope, None)
            if hold is None:
                continue
            said.append(Notice("scope_released", "info", {"scope": scope}))
            if scope == event.location_id:
                # It was not the whole site, or is no longer: each of the others asks for itself, a minute after it
                # asked last, not after the one that was accepted.
                for lane in hold.lanes - {event.lane}:
                    probe_at = max(hold.not_before, hold.asked.get(lane, 0) + PROBE_MS)
                    self._holds[lane] = _Hold({lane}, probe_at, hold.why, hold.not_before)
        return said

    def refused(self, event: Event, answer: Answer, ticks: int, last_accepted: int | None) -> list[Notice]:
        """400 and its kin, in the API's own words."""
        times, before = self._alone.pop(event.event_id, (0, ticks))
        between = last_accepted is not None and last_accepted >= before
        self._alone[event.event_id] = times + 1 if between else 1, ticks
        if len(self._alone) > REMEMBERED:
            del self._alone[next(iter(self._alone))]
        if self.everything:
            self._hold(EVERYTHING, {event.lane}, answer, ticks)
            return []
        self._refused[event.event_id] = event.lane
        if len(self._refused) < ALL_REFUSED:
            return []
        self._hold(EVERYTHING, set(self._refused.values()), answer, ticks)
        remedy = "nothing is lost, it is asked again each minute; send this journal to CHeKT or to us"
        fields = {"why": answer.text, "http_status": answer.http_status, "remedy": remedy}
        return [Notice("everything_refused", "error", fields)]

    def unknown(self, event: Event, answer: Answer, ticks: int) -> list[Notice]:
        """403 or 404."""
        lanes = {event.lane}
        scope = event.lane
        if answer.verdict is Verdict.FORBIDDEN:
            forbidden = self._site_refusals.setdefault(event.location_id, set())
            forbidden.add(event.lane)
            if len(forbidden) > 1:
                scope, lanes = event.location_id, set(forbidden)
                for lane in lanes:
                    self._holds.pop(lane, None)
        known = scope in self._holds
        self._hold(scope, lanes, answer, ticks)
        remedy = "compare its id with CHeKT's, or have it registered there; what waits then goes by itself"
        fields = {"scope": scope, "why": answer.text, "http_status": answer.http_status, "remedy": remedy}
        return [] if known else [Notice("scope_held", "error", fields)]

    def conditions(self) -> list[Condition]:
        found = []
        for scope, hold in self._holds.items():
            if scope == EVERYTHING:
                sentence = f"the cloud refuses every event ({hold.why}), all of them wait"
                found.append(Condition("critical", f"{sentence}; send the journal to CHeKT or to us"))
                continue
            what = f"camera {scope.partition('/')[2]}" if "/" in scope else f"site {scope}"
            sentence = f"the cloud refuses events of {what} ({hold.why}), they wait"
            found.append(Condition("degraded", f"{sentence}; compare its id with CHeKT's, or have it registered there"))
        return found

    def _hold(self, scope: str, lanes: set[str], answer: Answer, ticks: int) -> None:
        wait = max(PROBE_MS, min(answer.retry_after_ms or 0, LONGEST_WAIT_MS))
        hold = self._holds.get(scope)
        if hold is None:
            self._holds[scope] = _Hold(lanes, ticks + wait, answer.text or str(answer.verdict), ticks + wait)
            return
        hold.lanes |= lanes
        if answer.retry_after_ms:
            hold.not_before = max(hold.not_before, ticks + wait)
            hold.probe_at = max(hold.probe_at, hold.not_before)
