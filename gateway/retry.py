"""When to try again: the words for what an answer of the cloud means, and the step that follows from it.

`gateway.chekt.wire` reads an answer into an `Answer`; `next_step` turns event and answer into a `Step`, which the store
settles in one commit. What concerns the sender as a whole (pauses, rates, held cameras) is in `gateway.gate`. Promises:
a step is always a legal transition of `gateway.states`; nothing but the cloud's own word, given several times while
others were accepted, makes an event dead; bytes that may have been seen are never set anew.
Sources: CHeKT Event API v0.8 (statuses 201, 400, 401, 403, 404); RFC 9110 for the rest; full jitter as in the AWS
Architecture Blog, "Exponential Backoff And Jitter". Pure: ticks and jitter come in as arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from gateway.model import Event, Slot
from gateway.states import EventState, require_event

LONGEST_WAIT_MS: Final = 15 * 60_000  # a longer Retry-After is taken as this: an alarm must not wait for a typing error
HELD_RETRY_MS: Final = 60_000  # a refused camera or site is asked at most once a minute
FIRST_REFUSED_RETRY_MS: Final = 10_000  # a bad deployment in the cloud is over in seconds or in minutes
REFUSALS_TO_DIE: Final = 3
FAULTS_TO_DIE: Final = 5
FAULTS_SPAN_MS: Final = 60 * 60_000  # five at once may be one bad moment of the machine
_LARGEST_EXPONENT: Final = 30  # attempts count for weeks: clamp first, then raise to a power


class Verdict(StrEnum):
    """What an answer, or its absence, means to us."""

    ACCEPTED = "accepted"
    DISCARDED = "discarded"  # the cloud's word, final
    REFUSED = "refused"  # 400 and its kin: about this event
    UNAUTHORISED = "unauthorised"  # 401, also after one new token
    FORBIDDEN = "forbidden"  # 403: this camera or this site
    UNKNOWN = "unknown"  # 404: this camera or this site
    CONFLICT = "conflict"  # 409
    THROTTLED = "throttled"  # 429
    BUSY = "busy"  # 408, 425, 5xx
    NOT_THE_API = "not_the_api"  # somebody else answered: captive portal, proxy, HTML, redirection
    CUT_OFF = "cut_off"  # a success whose body did not arrive whole
    UNANSWERED = "unanswered"  # bytes were written, no answer came
    UNREACHABLE = "unreachable"  # no byte was written: DNS, connect, TLS
    NO_TOKEN = "no_token"  # noqa: S105  the token endpoint cannot be reached
    TOKEN_REFUSED = "token_refused"  # noqa: S105  the token endpoint refuses our credentials
    FAULT = "fault"  # an exception of our own


@dataclass(frozen=True, slots=True)
class Rate:
    """`X-RateLimit-*` of an answer (CHeKT portal, "Rate limits": Limit is per minute, Reset is a Unix time)."""

    limit: int | None = None
    remaining: int | None = None
    reset_in_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One attempt's outcome, as `wire` understood it. Safe to log and to keep, except for `slots`."""

    verdict: Verdict
    http_status: int | None = None
    text: str = ""  # for people: at most 500 characters, without tokens and queries
    own_error: bool = False  # the API's own error body, not a proxy's page
    written: bool = True  # a byte of the request may have left
    reason: str | None = None  # the cloud's words about `accepted` or `discarded`
    chekt_event_id: str | None = None
    response_id: str | None = None
    slots: tuple[Slot, ...] = ()
    retry_after_ms: int | None = None
    rate: Rate | None = None
    server_date_at: int | None = None
    warnings: tuple[str, ...] = ()
    elapsed_ms: int | None = None

    def for_ledger(self) -> dict[str, Any]:
        """What is worth keeping of it, as plain values without secrets."""
        told: dict[str, Any] = {"verdict": str(self.verdict), "own_error": self.own_error or None}
        told |= {"http_status": self.http_status, "text": self.text or None, "reason": self.reason}
        told |= {"retry_after_ms": self.retry_after_ms, "elapsed_ms": self.elapsed_ms}
        told |= {"warnings": list(self.warnings) or None, "slots": len(self.slots) or None}
        return {name: value for name, value in told.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Policy:
    """`[delivery]` and `[outbox] give_up_after` in milliseconds."""

    retry_first_ms: int = 1_000
    retry_max_ms: int = 30_000
    refuse_after_ms: int = 600_000
    drain_jitter_ms: int = 5_000
    give_up_after_ms: int = 7 * 86_400_000
    parallel: int = 8
    max_per_minute: int = 0  # 0: as fast as the cloud allows


@dataclass(frozen=True, slots=True)
class Step:
    """What the store writes after an attempt."""

    target: EventState
    next_in_ms: int | None
    reason: str | None
    unclear: bool = False
    clear_bytes: bool = False
    refusal: bool = False
    fault: bool = False
    chekt_event_id: str | None = None
    response_id: str | None = None
    slots: tuple[Slot, ...] = ()
    http_status: int | None = None


def backoff_ms(attempt: int, first_ms: int, max_ms: int, jitter: float) -> int:
    """Full jitter: evenly between nothing and `first_ms` doubled with each attempt, at most `max_ms`."""
    return int(_ceiling_ms(attempt, first_ms, max_ms) * jitter)


def half_jitter_ms(attempt: int, first_ms: int, max_ms: int, jitter: float) -> int:
    """As `backoff_ms`, but never less than half: for waits that are also a promise not to ask too often."""
    ceiling = _ceiling_ms(attempt, first_ms, max_ms)
    return ceiling // 2 + int((ceiling - ceiling // 2) * jitter)


def _ceiling_ms(attempt: int, first_ms: int, max_ms: int) -> int:
    return min(max_ms, first_ms << min(max(attempt - 1, 0), _LARGEST_EXPONENT))


def next_step(
    event: Event,
    answer: Answer,
    *,
    ticks: int,
    jitter: float,
    policy: Policy,
    first_use: bool,
    another_accepted: bool,
) -> Step:
    """What becomes of an event in `sending` after this answer.

    `jitter` is in [0, 1). `first_use`: its bytes were composed in this claim, no earlier attempt can have shown them.
    `another_accepted`: the cloud has accepted another event since it first refused this one.
    """
    step = _step(event, answer, ticks, jitter, policy, another_accepted)
    # An answered attempt has reached the cloud; earlier attempts of the same bytes may have too.
    untouched = not answer.written and first_use and event.unclear == 0
    if step.target is EventState.PENDING and untouched:
        step = replace(step, clear_bytes=True)
    require_event(EventState.SENDING, step.target)
    return replace(step, http_status=answer.http_status)


def _step(event: Event, answer: Answer, ticks: int, jitter: float, policy: Policy, another_accepted: bool) -> Step:
    match answer.verdict:
        case Verdict.ACCEPTED:
            return Step(
                EventState.DELIVERED,
                None,
                answer.reason,
                chekt_event_id=answer.chekt_event_id,
                response_id=answer.response_id,
                slots=answer.slots,
            )
        case Verdict.DISCARDED:
            return Step(
                EventState.DISCARDED,
                None,
                answer.reason or "discarded by the cloud, no reason given",
                chekt_event_id=answer.chekt_event_id,
                response_id=answer.response_id,
            )
        case Verdict.CONFLICT:
            # ASSUMED: Q5. After an attempt that may have arrived, "conflict" says that it did. Without one, somebody
            # else's event has our id: a person must look.
            if event.unclear > 0:
                return Step(EventState.DELIVERED, None, "conflict after an unclear attempt: the cloud has it")
            return Step(EventState.DEAD, None, _words("conflict though no earlier attempt was unclear", answer))
        case Verdict.REFUSED:
            return _refused(event, answer, ticks, jitter, policy, another_accepted)
        case Verdict.FORBIDDEN | Verdict.UNKNOWN:
            wait = HELD_RETRY_MS + int(HELD_RETRY_MS * jitter)
            return _later(max(wait, answer.retry_after_ms or 0), _words("held: " + answer.verdict, answer))
        case Verdict.FAULT:
            return _fault(event, answer, ticks, jitter, policy)
        case Verdict.CUT_OFF | Verdict.UNANSWERED:
            return replace(_soon(event, answer, jitter, policy), unclear=True)
        case Verdict.NOT_THE_API:
            # A strange 2xx may still be the API's: it then has the event.
            unclear = answer.http_status is not None and 200 <= answer.http_status < 300
            return replace(_soon(event, answer, jitter, policy), unclear=unclear)
        case Verdict.BUSY:
            # RFC 9110, 15.6.3 and 15.6.5: a gateway had no answer from the API, which may have taken the event.
            return replace(_soon(event, answer, jitter, policy), unclear=answer.http_status in (502, 504))
        case _:
            return _soon(event, answer, jitter, policy)


def _refused(event: Event, answer: Answer, ticks: int, jitter: float, policy: Policy, another_accepted: bool) -> Step:
    since = 0 if event.first_refused_ticks is None else ticks - event.first_refused_ticks
    proven = event.refusals + 1 >= REFUSALS_TO_DIE and since >= policy.refuse_after_ms and another_accepted
    if answer.own_error and proven:
        return Step(EventState.DEAD, None, _words("refused for good", answer), refusal=True)
    # The waits double up to half of refuse_after, so that the last of them falls just behind it.
    longest = max(policy.refuse_after_ms // 2, 1)
    tries = event.refusals + 1 if answer.own_error else event.attempts
    wait = half_jitter_ms(tries, min(FIRST_REFUSED_RETRY_MS, longest), longest, jitter)
    return Step(EventState.PENDING, wait, _words("refused", answer), refusal=answer.own_error)


def _fault(event: Event, answer: Answer, ticks: int, jitter: float, policy: Policy) -> Step:
    since = 0 if event.first_fault_ticks is None else ticks - event.first_fault_ticks
    if event.faults + 1 >= FAULTS_TO_DIE and since >= FAULTS_SPAN_MS:
        reason = _words("an error inside the gateway, again and again", answer)
        return Step(EventState.DEAD, None, reason, fault=True, unclear=answer.written)
    wait = half_jitter_ms(event.faults + 1, policy.retry_first_ms, LONGEST_WAIT_MS, jitter)
    reason = _words("an error inside the gateway", answer)
    return Step(EventState.PENDING, wait, reason, fault=True, unclear=answer.written)


def _soon(event: Event, answer: Answer, jitter: float, policy: Policy) -> Step:
    wait = backoff_ms(event.attempts, policy.retry_first_ms, policy.retry_max_ms, jitter)
    if answer.retry_after_ms is not None:
        # Behind what was asked for, spread, so that a site's events do not all come back in the same instant.
        wait = max(wait, min(answer.retry_after_ms, LONGEST_WAIT_MS) + int(policy.retry_first_ms * jitter))
    return _later(wait, _words(answer.verdict.replace("_", " "), answer))


def _later(wait_ms: int, reason: str) -> Step:
    return Step(EventState.PENDING, wait_ms, reason)


def _words(what: str, answer: Answer) -> str:
    status = "" if answer.http_status is None else f" ({answer.http_status})"
    return f"{what}{status}: {answer.text}" if answer.text else f"{what}{status}"
