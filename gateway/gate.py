"""The sender as a whole: whether anything may be sent now, how much, and which cameras wait.

`Gate` is told of every request before it goes (`sent`) and of every outcome (`answered`); `allowance` says what may be
claimed. It decides about pauses for refused credentials, the rate, cameras and sites that the cloud does not know, and
an outage and its end. A hold never blocks a camera that has not itself been refused. What becomes of the single event
is decided in `gateway.retry`. Sources: CHeKT portal, "Rate limits"; CHeKT Event API v0.8, "Error Responses".
Pure: no I/O, ticks and jitter come in as arguments. One object, used by one task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.model import Event
from gateway.pace import FRESH_SHARE, Pace
from gateway.retry import HELD_RETRY_MS, LONGEST_WAIT_MS, Answer, Policy, Rate, Verdict, half_jitter_ms

FIRST_PAUSE_MS: Final = 60_000  # credentials are mended by people: a minute is soon enough
PROBE_MS: Final = HELD_RETRY_MS
ALL_REFUSED: Final = 3  # different events refused in a row, none accepted: it is us or the cloud, not the events
FAILING: Final = 3  # failures in a row before fewer requests at a time go out
OUTAGE_MS: Final = 10_000  # a shorter failure leaves no backlog worth spreading
WAKE_EVERY_MS: Final = 5_000  # a cloud that fails every other time must not be asked twice as often for it
EVERYTHING: Final = "*"  # the scope of a hold


@dataclass(frozen=True, slots=True)
class Allowance:
    """What may be claimed now. `next_change`: ticks at which to ask again; None: only an answer changes it."""

    limit: int
    fresh_only: bool
    held: frozenset[str]  # lanes
    next_change: int | None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """A change that the journal shall tell, once on entering and once on leaving."""

    name: str
    level: str  # "error", "warning", "info"
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Condition:
    """What `status` says while it lasts."""

    level: str  # "critical", "degraded"
    sentence: str


@dataclass(frozen=True, slots=True)
class Outcome:
    wake: bool  # bring deferred rows forward: the cloud is back
    notices: tuple[Notice, ...]


@dataclass
class Pauses:
    """When the sender was paused: that time does not count towards `give_up_after`. Kept over restarts as pairs."""

    spans: list[tuple[int, int]] = field(default_factory=list)
    since: int | None = None

    def begin(self, ticks: int) -> None:
        if self.since is None:
            self.since = ticks

    def end(self, ticks: int) -> None:
        if self.since is not None:
            self.spans.append((self.since, ticks))
            self.since = None

    def as_of(self, ticks: int) -> list[tuple[int, int]]:
        return [*self.spans, (self.since, ticks)] if self.since is not None else list(self.spans)

    def give_up_before(self, ticks: int, give_up_after_ms: int) -> int:
        """Whatever was received before these ticks has waited `give_up_after_ms` without counting the pauses."""
        left, at = give_up_after_ms, ticks
        for begin, end in reversed(self.as_of(ticks)):
            if at - end >= left:
                break
            left -= at - end
            at = begin
        return at - left

    def prune(self, before_ticks: int) -> None:
        self.spans = [(begin, end) for begin, end in self.spans if end > before_ticks]


@dataclass
class _Hold:
    """Lanes that the cloud refuses, as one: together they may ask once a minute."""

    lanes: set[str]
    probe_at: int
    why: str
    probe: str | None = None  # the event that asks just now


class Gate:
    def __init__(self, policy: Policy, *, ticks: int, jitter: float, pauses: Sequence[tuple[int, int]] = ()) -> None:
        """`jitter` in [0, 1): a fleet that starts after one power cut must not come all at once."""
        self.policy = policy
        self.pauses = Pauses([(begin, end) for begin, end in pauses])
        self.last_accepted: int | None = None
        self._in_flight: dict[str, str] = {}  # event_id -> lane
        self._pace = Pace(policy.max_per_minute, policy.parallel, ticks)
        self._throttled = 0  # 429s in a row
        self._throttled_said = False
        self._not_before = ticks
        self._backlog_not_before = ticks + int(policy.drain_jitter_ms * jitter)
        self._pause_why: str | None = None
        self._pause_until = 0
        self._pause_count = 0
        self._pause_probe: str | None = None
        self._holds: dict[str, _Hold] = {}
        self._site_refusals: dict[str, set[str]] = {}  # location_id -> lanes answered 403 since its last acceptance
        self._refused: dict[str, str] = {}  # event_id -> lane, since the last acceptance
        self._failures = 0
        self._failing_since: int | None = None
        self._retry_at = ticks  # while the cloud fails: when the backlog may try again
        self._unreachable_said = False
        self._path_broken = False
        self._deferred = False  # rows were deferred for the cloud's sake since the last wake
        self._last_wake: int | None = None

    # What may be sent

    def allowance(self, ticks: int) -> Allowance:
        if self._pause_why is not None:
            if self._pause_probe is not None:
                return Allowance(0, False, frozenset(), None, self._pause_why)
            if ticks < self._pause_until:
                return Allowance(0, False, frozenset(), self._pause_until, self._pause_why)
        if ticks < self._not_before:
            return Allowance(0, False, frozenset(), self._not_before, "slowed down by the cloud")
        held, probing = self._held(ticks)
        changes = [hold.probe_at for hold in self._holds.values() if hold.probe_at > ticks]

        limit = self.policy.parallel
        why = None
        if self._failures >= FAILING:
            limit, why = max(1, self.policy.parallel // 4), "the cloud does not answer"
        limit = max(0, limit - len(self._in_flight))
        if probing or self._pause_why is not None:
            limit = min(limit, 1)

        backlog_at = max(self._backlog_not_before, self._retry_at)
        fresh_only = ticks < backlog_at
        if fresh_only:
            changes.append(backlog_at)
        paced = self._pace.tokens(ticks)
        if paced is not None:
            tokens, reserve = paced
            if tokens < 1.0:
                return Allowance(0, False, held, ticks + self._pace.wait_for(1.0), "the rate is used up")
            if tokens < 1.0 + reserve:
                fresh_only, why = True, "the rest of the rate is for fresh alarms"
                changes.append(ticks + self._pace.wait_for(1.0 + reserve))
                limit = min(limit, int(tokens))
            else:
                limit = min(limit, max(1, int(tokens - reserve)))
        return Allowance(limit, fresh_only, held, min(changes, default=None), why)

    def sent(self, event: Event, ticks: int) -> None:
        """A claimed event is about to be sent. Each is followed by exactly one `answered` or `forget`."""
        self._in_flight[event.event_id] = event.lane
        self.spend(ticks)
        if self._pause_why is not None:
            self._pause_probe = event.event_id
        for hold in self._holds.values():
            if event.lane in hold.lanes:
                hold.probe, hold.probe_at = event.event_id, ticks + PROBE_MS

    def spend(self, ticks: int) -> None:
        """A request that counts for the rate without being an event: a callback (CHeKT portal, "Rate limits")."""
        self._pace.spend(ticks)

    def try_now(self, ticks: int) -> None:
        """A person has changed something (new key, new configuration): pauses and holds may be tried at once."""
        self._pause_until = min(self._pause_until, ticks)
        for hold in self._holds.values():
            hold.probe_at = min(hold.probe_at, ticks)

    def forget(self, event_id: str) -> None:
        """The attempt was given up without an outcome (stopping)."""
        self._in_flight.pop(event_id, None)
        if self._pause_probe == event_id:
            self._pause_probe = None
        for hold in self._holds.values():
            if hold.probe == event_id:
                hold.probe = None

    def another_accepted(self, event: Event) -> bool:
        """Whether the cloud has accepted something since it first refused this event."""
        first = event.first_refused_ticks
        return first is not None and self.last_accepted is not None and self.last_accepted >= first

    def give_up_before(self, ticks: int) -> int:
        return self.pauses.give_up_before(ticks, self.policy.give_up_after_ms)

    # What came back

    def answered(self, event: Event, answer: Answer, *, ticks: int, jitter: float) -> Outcome:
        self.forget(event.event_id)
        said: list[Notice] = []
        match answer.verdict:
            case Verdict.ACCEPTED | Verdict.DISCARDED:
                self._accepted(event, ticks, said)
            case Verdict.CONFLICT:
                self._resume(ticks, said)
            case Verdict.REFUSED | Verdict.FORBIDDEN | Verdict.UNKNOWN:
                if answer.own_error:
                    self._resume(ticks, said)
                else:
                    self._failed(answer, ticks, jitter, said)  # a proxy's page: nobody has asked the API
                if answer.verdict is not Verdict.REFUSED:
                    self._hold_scope(event, answer, ticks, said)
                elif answer.own_error:
                    self._was_refused(event, answer, ticks, said)
            case Verdict.UNAUTHORISED | Verdict.TOKEN_REFUSED:
                self._pause(answer, ticks, said)
            case Verdict.THROTTLED:
                self._throttle(answer, ticks, jitter, said)
            case Verdict.FAULT:
                pass  # says nothing about the cloud
            case _:
                self._failed(answer, ticks, jitter, said)
        if answer.verdict not in (Verdict.THROTTLED, Verdict.FAULT) and answer.rate is not None:
            self._obey(answer.rate, ticks)
        answers = (Verdict.ACCEPTED, Verdict.DISCARDED, Verdict.CONFLICT)
        speaks = answer.verdict in answers or (answer.own_error and answer.verdict is not Verdict.BUSY)
        if speaks:
            self._alive(ticks, jitter, said)
        wake = answer.verdict in answers and self._wake(ticks)
        return Outcome(wake, tuple(said))

    def conditions(self) -> tuple[Condition, ...]:
        found: list[Condition] = []
        if self._pause_why is not None:
            found.append(Condition("critical", f"the cloud refuses our credentials: {self._pause_why}"))
        for scope, hold in self._holds.items():
            if scope == EVERYTHING:
                found.append(Condition("critical", f"the cloud refuses every event: {hold.why}"))
            else:
                what = f"camera {scope.partition('/')[2]}" if "/" in scope else f"site {scope}"
                found.append(Condition("degraded", f"the cloud refuses events of {what}: {hold.why}"))
        if self._path_broken:
            found.append(Condition("degraded", "somebody other than CHeKT answers at the cloud's address"))
        if self._failures >= FAILING:
            found.append(Condition("degraded", "the cloud does not answer"))
        if self._pace.learned is not None:
            found.append(Condition("degraded", f"the cloud allows about {self._pace.learned:.0f} requests a minute"))
        return tuple(found)

    @property
    def reachable(self) -> bool:
        return self._failures < FAILING and not self._path_broken

    # Inside

    def _held(self, ticks: int) -> tuple[frozenset[str], bool]:
        """The lanes that wait, and whether one of several may ask now (then only one event at a time is claimed)."""
        held: set[str] = set()
        probing = False
        for hold in self._holds.values():
            if hold.probe is not None or ticks < hold.probe_at:
                held |= hold.lanes
            else:
                probing = probing or len(hold.lanes) > 1
        return frozenset(held), probing

    def _accepted(self, event: Event, ticks: int, said: list[Notice]) -> None:
        self.last_accepted = ticks
        self._resume(ticks, said)
        self._refused.clear()
        self._site_refusals.pop(event.location_id, None)
        for scope in (event.lane, event.location_id, EVERYTHING):
            hold = self._holds.pop(scope, None)
            if hold is None:
                continue
            self._deferred, self._last_wake = True, None
            said.append(Notice("scope_released", "info", {"scope": scope}))
            if scope == event.location_id:
                # It was not the whole site: each of the other cameras goes on waiting for itself.
                for lane in hold.lanes - {event.lane}:
                    self._holds[lane] = _Hold({lane}, hold.probe_at, hold.why)
            elif scope == EVERYTHING:
                self._pauses_over(ticks)
        self._throttled = 0
        self._pace.accepted(ticks)
        if self._throttled_said and self._pace.learned is None:
            self._throttled_said = False
            said.append(Notice("cloud_unthrottled", "info"))

    def _pause(self, answer: Answer, ticks: int, said: list[Notice]) -> None:
        if self._pause_why is None:
            self._pause_count = 0
            self.pauses.begin(ticks)
            said.append(Notice("cloud_paused", "error", {"why": answer.text, "http_status": answer.http_status}))
        elif ticks < self._pause_until:
            return  # answers to requests that were on their way when the pause began
        wait = min(LONGEST_WAIT_MS, FIRST_PAUSE_MS << min(self._pause_count, 10))
        self._pause_why = answer.text or answer.verdict.replace("_", " ")
        self._pause_count += 1
        self._pause_until = ticks + max(wait, min(answer.retry_after_ms or 0, LONGEST_WAIT_MS))

    def _resume(self, ticks: int, said: list[Notice]) -> None:
        if self._pause_why is not None:
            self._pause_why = None
            self._deferred, self._last_wake = True, None
            self._pauses_over(ticks)
            said.append(Notice("cloud_resumed", "info"))

    def _pauses_over(self, ticks: int) -> None:
        if self._pause_why is None and EVERYTHING not in self._holds:
            self.pauses.end(ticks)
            self.pauses.prune(self.give_up_before(ticks))

    def _was_refused(self, event: Event, answer: Answer, ticks: int, said: list[Notice]) -> None:
        if EVERYTHING in self._holds:
            self._hold(EVERYTHING, {event.lane}, answer, ticks)
            return
        self._refused[event.event_id] = event.lane
        if len(self._refused) >= ALL_REFUSED:
            self.pauses.begin(ticks)
            said.append(Notice("everything_refused", "error", {"why": answer.text, "http_status": answer.http_status}))
            self._hold(EVERYTHING, set(self._refused.values()), answer, ticks)

    def _hold_scope(self, event: Event, answer: Answer, ticks: int, said: list[Notice]) -> None:
        """One camera first. A second one of the same site with 403, and none accepted since: it is the site."""
        lanes = {event.lane}
        scope = event.lane
        if answer.verdict is Verdict.FORBIDDEN:
            forbidden = self._site_refusals.setdefault(event.location_id, set())
            forbidden.add(event.lane)
            if len(forbidden) > 1:
                scope, lanes = event.location_id, set(forbidden)
                for lane in lanes:
                    self._holds.pop(lane, None)
        if scope not in self._holds:
            fields = {"scope": scope, "why": answer.text, "http_status": answer.http_status}
            said.append(Notice("scope_held", "error", fields))
        self._hold(scope, lanes, answer, ticks)

    def _hold(self, scope: str, lanes: set[str], answer: Answer, ticks: int) -> None:
        wait = max(PROBE_MS, min(answer.retry_after_ms or 0, LONGEST_WAIT_MS))
        hold = self._holds.get(scope)
        if hold is None:
            self._holds[scope] = _Hold(lanes, ticks + wait, answer.text or str(answer.verdict))
        else:
            hold.lanes |= lanes
            hold.probe_at = max(hold.probe_at, ticks + wait) if answer.retry_after_ms else hold.probe_at

    def _throttle(self, answer: Answer, ticks: int, jitter: float, said: list[Notice]) -> None:
        self._throttled += 1
        self._deferred = True
        self._pace.throttled(answer.rate, ticks)
        wait = answer.retry_after_ms
        if wait is None:
            wait = half_jitter_ms(self._throttled, max(self.policy.retry_first_ms, 1_000), 60_000, jitter)
        self._not_before = max(self._not_before, ticks + min(wait, LONGEST_WAIT_MS))
        if not self._throttled_said:
            self._throttled_said = True
            said.append(Notice("cloud_throttled", "warning", {"retry_in_ms": self._not_before - ticks}))

    def _obey(self, rate: Rate, ticks: int) -> None:
        if rate.remaining is None or rate.reset_in_ms is None or rate.reset_in_ms <= 0:
            return
        until = ticks + min(rate.reset_in_ms, LONGEST_WAIT_MS)
        if rate.remaining <= 0:
            self._not_before = max(self._not_before, until)
        elif rate.limit is not None and rate.remaining <= rate.limit // FRESH_SHARE:
            self._backlog_not_before = max(self._backlog_not_before, until)

    def _failed(self, answer: Answer, ticks: int, jitter: float, said: list[Notice]) -> None:
        self._failures += 1
        self._deferred = True
        if self._failures >= FAILING:
            # Each event has its own back-off, but ten thousand of them would still ask all the time: the backlog asks
            # as one. Fresh alarms are not held up.
            tries = self._failures - FAILING + 1
            wait = half_jitter_ms(tries, self.policy.retry_first_ms, self.policy.retry_max_ms, jitter)
            self._retry_at = max(self._retry_at, ticks + wait)
            self._pause_until = max(self._pause_until, self._retry_at)
        if self._failing_since is None:
            self._failing_since = ticks
        pages = (Verdict.NOT_THE_API, Verdict.REFUSED, Verdict.FORBIDDEN, Verdict.UNKNOWN)
        strange = answer.verdict in pages and not answer.own_error
        if strange and not self._path_broken:
            self._path_broken = True
            said.append(Notice("path_broken", "warning", {"why": answer.text, "http_status": answer.http_status}))
        if self._failures == FAILING:
            self._unreachable_said = True
            fields = {"why": answer.text, "http_status": answer.http_status}
            said.append(Notice("cloud_unreachable", "warning", fields))

    def _alive(self, ticks: int, jitter: float, said: list[Notice]) -> None:
        long = self._failing_since is not None and ticks - self._failing_since >= OUTAGE_MS
        self._retry_at = ticks + int(self.policy.drain_jitter_ms * jitter) if long else min(self._retry_at, ticks)
        if self._path_broken:
            said.append(Notice("path_mended", "info"))
        if self._unreachable_said:
            said.append(Notice("cloud_reachable", "info", {"outage_ms": ticks - (self._failing_since or ticks)}))
        self._failures, self._failing_since, self._unreachable_said, self._path_broken = 0, None, False, False

    def _wake(self, ticks: int) -> bool:
        due = self._last_wake is None or ticks - self._last_wake >= WAKE_EVERY_MS
        if self._deferred and due:
            self._deferred, self._last_wake = False, ticks
            return True
        return False
