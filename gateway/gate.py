"""The sender as a whole: whether anything may be sent now, how much, and which cameras wait.

`Gate` is told of every request before it goes (`sent`) and of every outcome (`answered`); `allowance` says what may be
claimed. It decides about pauses for refused credentials, and about an outage and its end; how fast is decided in
`gateway.pace`, which cameras wait in `gateway.holds`, what becomes of the single event in `gateway.retry`. Source:
CHeKT portal, "Rate limits". Pure: no I/O, ticks and jitter come in as arguments. One object, used by one task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.discards import Discards
from gateway.holds import Holds
from gateway.model import Event
from gateway.notice import Condition, Notice
from gateway.pace import FRESH_SHARE, Pace
from gateway.retry import LONGEST_WAIT_MS, Answer, Policy, Rate, Verdict, half_jitter_ms

FIRST_PAUSE_MS: Final = 60_000  # credentials are mended by people: a minute is soon enough
FAILING: Final = 3  # failures in a row before fewer requests at a time go out
OUTAGE_MS: Final = 10_000  # a shorter failure leaves no backlog worth spreading
WAKE_EVERY_MS: Final = 5_000  # a cloud that fails every other time must not be asked twice as often for it


@dataclass(frozen=True, slots=True)
class Allowance:
    """What may be claimed now. `next_change`: ticks at which to ask again; None: only an answer changes it."""

    limit: int
    fresh_only: bool
    held: frozenset[str]  # lanes
    next_change: int | None
    why: str | None = None


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
        self._holds = Holds()
        self._discards = Discards()
        self._heard = False  # the cloud itself has answered, in this life
        self._failures = 0
        self._failing_since: int | None = None
        self._failing_why = ""
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
        held, probing = self._holds.held(ticks)
        changes = self._holds.changes(ticks)

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
        self._holds.sent(event, ticks)

    def spend(self, ticks: int) -> None:
        """A request that counts for the rate without being an event: a callback (CHeKT portal, "Rate limits")."""
        self._pace.spend(ticks)

    def try_now(self, ticks: int) -> None:
        """A person has changed something (new key, new configuration): pauses and holds may be tried at once."""
        self._pause_until = min(self._pause_until, ticks)
        self._holds.try_now(ticks)

    def forget(self, event_id: str) -> None:
        """The attempt was given up without an outcome (stopping)."""
        self._in_flight.pop(event_id, None)
        if self._pause_probe == event_id:
            self._pause_probe = None
        self._holds.forget(event_id)

    def another_accepted(self, event: Event) -> bool:
        """Whether the cloud accepts others while it refuses this event."""
        return self._holds.proves_refusal(event)

    def give_up_before(self, ticks: int) -> int:
        return self.pauses.give_up_before(ticks, self.policy.give_up_after_ms)

    # What came back

    def answered(self, event: Event, answer: Answer, *, ticks: int, jitter: float) -> Outcome:
        self.forget(event.event_id)
        said: list[Notice] = []
        match answer.verdict:
            case Verdict.ACCEPTED:
                self._accepted(event, ticks, said)
                said += self._discards.accepted(event, ticks)
            case Verdict.DISCARDED:
                self._accepted(event, ticks, said)
                said += self._discards.discarded(event, answer, ticks)
            case Verdict.CONFLICT:
                self._resume(ticks, said)
            case Verdict.REFUSED | Verdict.FORBIDDEN | Verdict.UNKNOWN:
                if answer.own_error:
                    self._resume(ticks, said)
                else:
                    self._failed(answer, ticks, jitter, said)  # a proxy's page: nobody has asked the API
                if answer.verdict is not Verdict.REFUSED:
                    said += self._holds.unknown(event, answer, ticks)
                elif answer.own_error:
                    said += self._holds.refused(event, answer, ticks, self.last_accepted)
                    if self._holds.everything:
                        self.pauses.begin(ticks)
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

        def say(level: str, sentence: str) -> None:
            found.append(Condition(level, sentence))

        if self._pause_why is not None:
            say(
                "critical",
                f"the cloud refuses our credentials ({self._pause_why}), alarms wait; compare client_id, key_id and "
                "the key in [cloud] with the registration, then restart",
            )
        found += self._holds.conditions()
        if self._path_broken:
            say(
                "degraded",
                "somebody other than CHeKT answers at the cloud's address, alarms wait; look for a log-in page or a "
                "filter in this network, and at cloud.url",
            )
        if self._failures >= FAILING:
            sentence = f"the cloud does not answer ({self._failing_why}), alarms wait"
            say("degraded", f"{sentence}; check the line to the internet, its firewall, and the addresses in [cloud]")
        if self._pace.learned is not None:
            say(
                "degraded",
                f"the cloud allows about {self._pace.learned:.0f} requests a minute; if alarms come late, ask CHeKT "
                "for more",
            )
        found += self._discards.conditions()
        return tuple(found)

    @property
    def last_error(self) -> str | None:
        """Why the cloud cannot be reached, while it cannot."""
        return self._failing_why if self.reachable is False else None

    @property
    def reachable(self) -> bool | None:
        """None: not known yet, nothing has been asked of the cloud."""
        if self._failures >= FAILING or self._path_broken:
            return False
        return True if self._heard else None

    # Inside

    def _accepted(self, event: Event, ticks: int, said: list[Notice]) -> None:
        self.last_accepted = ticks
        self._resume(ticks, said)
        released = self._holds.accepted(event)
        if released:
            self._deferred, self._last_wake = True, None
            self._pauses_over(ticks)
        said += released
        self._throttled = 0
        self._pace.accepted(ticks)
        if self._throttled_said and self._pace.learned is None:
            self._throttled_said = False
            said.append(Notice("cloud_unthrottled", "info"))

    def _pause(self, answer: Answer, ticks: int, said: list[Notice]) -> None:
        if self._pause_why is None:
            self._pause_count = 0
            self.pauses.begin(ticks)
            remedy = "compare client_id, key_id and the key in [cloud] with the registration; nothing is lost"
            fields = {"why": answer.text, "http_status": answer.http_status, "remedy": remedy}
            said.append(Notice("cloud_paused", "error", fields))
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
        if self._pause_why is None and not self._holds.everything:
            self.pauses.end(ticks)
            self.pauses.prune(self.give_up_before(ticks))

    def _throttle(self, answer: Answer, ticks: int, jitter: float, said: list[Notice]) -> None:
        self._throttled += 1
        self._deferred = True
        self._pace.throttled(answer.rate, ticks)
        wait = answer.retry_after_ms
        if wait is None and answer.rate is not None and not answer.rate.remaining:
            wait = answer.rate.reset_in_ms or None
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
        self._failing_why = answer.text or f"{answer.verdict.replace('_', ' ')} {answer.http_status or ''}".strip()
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
        self._heard = True
        self._failures, self._failing_since, self._unreachable_said, self._path_broken = 0, None, False, False

    def _wake(self, ticks: int) -> bool:
        due = self._last_wake is None or ticks - self._last_wake >= WAKE_EVERY_MS
        if self._deferred and due:
            self._deferred, self._last_wake = False, ticks
            return True
        return False
