"""When to try again: every row of the table of answers, and the bounds of every wait."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.model import Event, EventStatus, EventType, MediaKind, Slot
from gateway.retry import (
    FAULTS_SPAN_MS,
    LONGEST_WAIT_MS,
    Answer,
    Policy,
    Step,
    Verdict,
    backoff_ms,
    half_jitter_ms,
    next_step,
)
from gateway.states import EVENT_TRANSITIONS, EventState

TICKS = 50_000_000
POLICY = Policy()
SLOT = Slot(MediaKind.SNAPSHOT, 0, "https://s3/put", "https://api/callback", TICKS + 1)


def an_event(**changes: Any) -> Event:
    values: dict[str, Any] = {
        "seq": 1,
        "event_id": "e1",
        "state": "sending",
        "event_type": EventType.ALARM,
        "event_status": EventStatus.ACTIVE,
        "source": "nvr",
        "camera": "door",
        "source_camera": "door",
        "location_id": "L",
        "recorder_id": None,
        "camera_id": "c1",
        "signal": True,
        "event_at": 0,
        "received_at": 0,
        "received_ticks": TICKS - 1_000,
        "source_id": None,
        "kind": "person",
        "follows": None,
        "age_unknown_ms": None,
        "details": {},
        "attempts": 1,
        "unclear": 0,
        "refusals": 0,
        "first_refused_ticks": None,
        "faults": 0,
        "first_fault_ticks": None,
        "reason": None,
    }
    return Event(**values | changes)


def step_for(
    answer: Answer, *, jitter: float = 0.5, first_use: bool = True, another_accepted: bool = False, **event: Any
) -> Step:
    return next_step(
        an_event(**event),
        answer,
        ticks=TICKS,
        jitter=jitter,
        policy=POLICY,
        first_use=first_use,
        another_accepted=another_accepted,
    )


def refusal(status: int = 400, *, own: bool = True) -> Answer:
    return Answer(Verdict.REFUSED, http_status=status, own_error=own, text="Bad Request: Invalid input or params")


REFUSED_TWICE: dict[str, Any] = {"refusals": 2, "first_refused_ticks": TICKS - POLICY.refuse_after_ms}
FAULTED_FOUR_TIMES: dict[str, Any] = {"faults": 4, "first_fault_ticks": TICKS - FAULTS_SPAN_MS}


@pytest.mark.parametrize(
    ("answer", "event", "expected"),
    [
        (Answer(Verdict.ACCEPTED, http_status=201), {}, EventState.DELIVERED),
        (Answer(Verdict.DISCARDED, http_status=201), {}, EventState.DISCARDED),
        (Answer(Verdict.NOT_THE_API, http_status=200), {}, EventState.PENDING),
        (Answer(Verdict.NOT_THE_API, http_status=302), {}, EventState.PENDING),
        (Answer(Verdict.CUT_OFF, http_status=201), {}, EventState.PENDING),
        (refusal(400), {}, EventState.PENDING),
        (refusal(400), REFUSED_TWICE, EventState.PENDING),  # nothing else was accepted: it may be us
        (refusal(413, own=False), REFUSED_TWICE, EventState.PENDING),
        (Answer(Verdict.UNAUTHORISED, http_status=401), {}, EventState.PENDING),
        (Answer(Verdict.FORBIDDEN, http_status=403), {}, EventState.PENDING),
        (Answer(Verdict.UNKNOWN, http_status=404), {}, EventState.PENDING),
        (Answer(Verdict.CONFLICT, http_status=409), {}, EventState.DEAD),
        (Answer(Verdict.CONFLICT, http_status=409), {"unclear": 1}, EventState.DELIVERED),
        (Answer(Verdict.THROTTLED, http_status=429), {}, EventState.PENDING),
        (Answer(Verdict.BUSY, http_status=408), {}, EventState.PENDING),
        (Answer(Verdict.BUSY, http_status=503), {"attempts": 100_000}, EventState.PENDING),
        (Answer(Verdict.UNANSWERED), {}, EventState.PENDING),
        (Answer(Verdict.UNREACHABLE, written=False), {}, EventState.PENDING),
        (Answer(Verdict.NO_TOKEN, written=False), {}, EventState.PENDING),
        (Answer(Verdict.TOKEN_REFUSED, written=False), {}, EventState.PENDING),
        (Answer(Verdict.FAULT), {}, EventState.PENDING),
        (Answer(Verdict.FAULT), {"faults": 4, "first_fault_ticks": TICKS - 1_000}, EventState.PENDING),
        (Answer(Verdict.FAULT), FAULTED_FOUR_TIMES, EventState.DEAD),
    ],
)
def test_each_answer_leads_where_the_table_says(answer: Answer, event: dict[str, Any], expected: EventState) -> None:
    step = step_for(answer, **event)
    assert step.target is expected
    assert (step.next_in_ms is not None) == (expected is EventState.PENDING)
    assert step.http_status == answer.http_status


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_an_event_is_refused_for_good_only_when_all_four_conditions_hold(status: int) -> None:
    """The API's own error body, the third time, over refuse_after, and another event accepted meanwhile."""
    assert step_for(refusal(status), another_accepted=True, **REFUSED_TWICE).target is EventState.DEAD
    assert step_for(refusal(status, own=False), another_accepted=True, **REFUSED_TWICE).target is EventState.PENDING
    assert step_for(refusal(status), another_accepted=False, **REFUSED_TWICE).target is EventState.PENDING
    second = REFUSED_TWICE | {"refusals": 1}
    assert step_for(refusal(status), another_accepted=True, **second).target is EventState.PENDING
    soon = REFUSED_TWICE | {"first_refused_ticks": TICKS - POLICY.refuse_after_ms + 1}
    assert step_for(refusal(status), another_accepted=True, **soon).target is EventState.PENDING


def test_a_refusal_counts_only_with_the_apis_own_error_body() -> None:
    assert step_for(refusal()).refusal
    assert not step_for(refusal(own=False)).refusal


@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999])
def test_a_refused_event_is_tried_often_enough_to_die_soon_after_refuse_after(jitter: float) -> None:
    ticks, first, refusals = TICKS, TICKS, 0
    while True:
        event = an_event(attempts=refusals + 1, refusals=refusals, first_refused_ticks=first if refusals else None)
        step = next_step(
            event, refusal(), ticks=ticks, jitter=jitter, policy=POLICY, first_use=False, another_accepted=True
        )
        if step.target is EventState.DEAD:
            break
        assert step.next_in_ms is not None
        ticks += step.next_in_ms
        refusals += 1
    assert POLICY.refuse_after_ms <= ticks - first <= POLICY.refuse_after_ms * 1.6
    assert 3 <= refusals + 1 <= 12


@pytest.mark.parametrize("answer", [Answer(Verdict.CUT_OFF, http_status=201), Answer(Verdict.UNANSWERED)])
def test_an_attempt_without_an_answer_is_unclear_and_keeps_its_bytes(answer: Answer) -> None:
    step = step_for(answer)
    assert step.unclear
    assert not step.clear_bytes


def test_a_gateway_that_had_no_answer_leaves_it_unclear_but_an_overload_does_not() -> None:
    assert step_for(Answer(Verdict.BUSY, http_status=504)).unclear
    assert step_for(Answer(Verdict.BUSY, http_status=502)).unclear
    assert not step_for(Answer(Verdict.BUSY, http_status=503)).unclear
    assert not step_for(Answer(Verdict.BUSY, http_status=500)).unclear


def test_a_strange_success_may_have_been_the_api_all_the_same() -> None:
    assert step_for(Answer(Verdict.NOT_THE_API, http_status=200)).unclear
    assert not step_for(Answer(Verdict.NOT_THE_API, http_status=302)).unclear


@pytest.mark.parametrize("verdict", [Verdict.UNREACHABLE, Verdict.NO_TOKEN, Verdict.TOKEN_REFUSED, Verdict.FAULT])
def test_bytes_are_set_anew_only_if_nobody_can_have_seen_them(verdict: Verdict) -> None:
    unwritten = Answer(verdict, written=False)
    assert step_for(unwritten, first_use=True).clear_bytes
    assert not step_for(unwritten, first_use=False).clear_bytes
    assert not step_for(unwritten, first_use=True, unclear=1).clear_bytes
    assert not step_for(Answer(verdict, written=True), first_use=True).clear_bytes


@pytest.mark.parametrize(
    "answer",
    [
        Answer(Verdict.UNAUTHORISED, http_status=401),
        Answer(Verdict.THROTTLED, http_status=429),
        Answer(Verdict.BUSY, http_status=500),
        refusal(),
    ],
)
def test_an_answered_attempt_has_reached_the_cloud_and_keeps_its_bytes(answer: Answer) -> None:
    assert not step_for(answer, first_use=True).clear_bytes


def test_an_acceptance_carries_slots_and_ids_into_the_commit() -> None:
    answer = Answer(
        Verdict.ACCEPTED, http_status=201, chekt_event_id="eve-56", response_id="r", slots=(SLOT,), reason="why not"
    )
    step = step_for(answer)
    assert (step.chekt_event_id, step.response_id, step.slots, step.reason) == ("eve-56", "r", (SLOT,), "why not")


def test_a_discarded_event_keeps_the_clouds_reason_and_takes_no_slots() -> None:
    answer = Answer(Verdict.DISCARDED, http_status=201, reason="Event discarded: device is disarmed", slots=(SLOT,))
    step = step_for(answer)
    assert step.reason == "Event discarded: device is disarmed"
    assert step.slots == ()


def test_a_refused_camera_is_asked_at_most_once_a_minute() -> None:
    for verdict in (Verdict.FORBIDDEN, Verdict.UNKNOWN):
        wait = step_for(Answer(verdict, http_status=403), jitter=0.0).next_in_ms
        assert wait is not None
        assert wait >= 60_000


@given(jitter=st.floats(0, 1, exclude_max=True), wait=st.integers(0, 10 * LONGEST_WAIT_MS))
def test_retry_after_is_obeyed_up_to_a_quarter_of_an_hour(jitter: float, wait: int) -> None:
    for verdict, status in ((Verdict.BUSY, 503), (Verdict.THROTTLED, 429)):
        step = step_for(Answer(verdict, http_status=status, retry_after_ms=wait), jitter=jitter)
        assert step.next_in_ms is not None
        assert min(wait, LONGEST_WAIT_MS) <= step.next_in_ms <= LONGEST_WAIT_MS + POLICY.retry_max_ms


@given(
    attempt=st.integers(0, 10**9),
    first=st.integers(1, 60_000),
    longest=st.integers(1, LONGEST_WAIT_MS),
    jitter=st.floats(0, 1, exclude_max=True),
)
def test_a_backoff_stays_between_nothing_and_its_ceiling(attempt: int, first: int, longest: int, jitter: float) -> None:
    ceiling = min(longest, first * 2 ** min(max(attempt - 1, 0), 30))
    assert 0 <= backoff_ms(attempt, first, longest, jitter) <= ceiling
    assert ceiling // 2 <= half_jitter_ms(attempt, first, longest, jitter) <= ceiling


def test_a_backoff_doubles_from_attempt_to_attempt() -> None:
    waits = [backoff_ms(attempt, 1_000, 30_000, 0.999_999) for attempt in range(1, 8)]
    assert waits == [999, 1999, 3999, 7999, 15_999, 29_999, 29_999]


answers = st.builds(
    Answer,
    verdict=st.sampled_from(Verdict),
    http_status=st.none() | st.integers(100, 599),
    text=st.text(max_size=20),
    own_error=st.booleans(),
    written=st.booleans(),
    reason=st.none() | st.text(max_size=20),
    retry_after_ms=st.none() | st.integers(0, LONGEST_WAIT_MS),
)


@given(
    answer=answers,
    jitter=st.floats(0, 1, exclude_max=True),
    first_use=st.booleans(),
    another=st.booleans(),
    attempts=st.integers(1, 10**6),
    unclear=st.integers(0, 3),
    refusals=st.integers(0, 5),
    faults=st.integers(0, 10),
    ago=st.integers(0, 10**8),
)
def test_no_answer_leads_to_an_illegal_transition_or_an_endless_wait(
    answer: Answer,
    jitter: float,
    first_use: bool,
    another: bool,
    attempts: int,
    unclear: int,
    refusals: int,
    faults: int,
    ago: int,
) -> None:
    step = step_for(
        answer,
        jitter=jitter,
        first_use=first_use,
        another_accepted=another,
        attempts=attempts,
        unclear=unclear,
        refusals=refusals,
        first_refused_ticks=TICKS - ago if refusals else None,
        faults=faults,
        first_fault_ticks=TICKS - ago if faults else None,
    )
    assert step.target in EVENT_TRANSITIONS[EventState.SENDING]
    if step.target is EventState.PENDING:
        assert step.next_in_ms is not None
        assert 0 <= step.next_in_ms <= LONGEST_WAIT_MS + POLICY.retry_max_ms
    if step.clear_bytes:
        assert not answer.written
        assert unclear == 0
    if step.target is EventState.DEAD:
        assert answer.verdict in (Verdict.CONFLICT, Verdict.REFUSED, Verdict.FAULT)
