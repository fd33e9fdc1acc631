"""After an attempt: the new state of the event, its slots and its restores, in one commit.

Bytes that may have reached the cloud are never set anew, whatever a step says: `fixed` remembers it. A picture that the
final bytes do not announce is lost then, not before.
"""

# ruff: noqa: S608 - statements are put together from our own words; every value is a parameter

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.model import Slot
from gateway.outbox.adding import discard_pending, lose_waiting_media
from gateway.outbox.claims import write_hops
from gateway.outbox.rows import NEVER, Row, chunks, flat, marks, places
from gateway.outbox.writer import Transaction
from gateway.retry import Step
from gateway.states import EventState, IllegalTransition, require_event

NOT_ANNOUNCED: Final = "not announced: no file at the time of the first attempt"
NO_SLOT: Final = "no slot offered"
DISCARDED: Final = "event discarded"

_UPDATE: Final = """
UPDATE event SET
    state = step.target, ready = 0, next_at = step.next_at, reason = step.reason,
    unclear = event.unclear + step.unclear,
    refusals = event.refusals + step.refusal,
    first_refused_ticks = iif(step.refusal, coalesce(event.first_refused_ticks, step.ticks), event.first_refused_ticks),
    faults = event.faults + step.fault,
    first_fault_ticks = iif(step.fault, coalesce(event.first_fault_ticks, step.ticks), event.first_fault_ticks),
    fixed = iif(step.clear_bytes AND NOT event.fixed, 0, 1),
    body = iif(step.clear_bytes AND NOT event.fixed, NULL, event.body),
    idempotency_key = iif(step.clear_bytes AND NOT event.fixed, NULL, event.idempotency_key),
    sent_at = iif(step.clear_bytes AND NOT event.fixed, NULL, event.sent_at),
    signalled = iif(step.clear_bytes AND NOT event.fixed, NULL, event.signalled),
    http_status = coalesce(step.http_status, event.http_status),
    chekt_event_id = coalesce(step.chekt_event_id, event.chekt_event_id),
    response_id = coalesce(step.response_id, event.response_id),
    delivered_at = step.delivered_at, closed_ticks = step.closed_ticks
FROM step WHERE event.seq = step.seq AND event.state = 'sending'
RETURNING seq, event_id, attempts, attempt_at, attempt_ticks, fixed
"""
_STEP_COLUMNS: Final = (
    "seq, ticks, target, next_at, reason, unclear, refusal, fault, clear_bytes, http_status, "
    "chekt_event_id, response_id, "
    "delivered_at, closed_ticks"
)
_WIDTH: Final = _STEP_COLUMNS.count(",") + 1
_CLOSED: Final = frozenset({EventState.DELIVERED, EventState.DISCARDED})


@dataclass(frozen=True, slots=True)
class Settlement:
    seq: int
    step: Step
    answer: Mapping[str, Any] | None  # for the ledger


def settle(transaction: Transaction, settlements: Sequence[Settlement]) -> Sequence[Exception | None]:
    results: list[Exception | None] = [None] * len(settlements)
    asked: dict[int, Settlement] = {}
    rows: list[Row] = []
    for index, settlement in enumerate(settlements):
        try:
            row = _row(transaction, settlement)
            if settlement.seq in asked:
                raise IllegalTransition(f"event {settlement.seq} was settled twice")
        except (IllegalTransition, ValueError) as error:
            results[index] = error
            continue
        asked[settlement.seq] = settlement
        rows.append(row)
    settled: dict[int, Row] = {}
    for part in chunks(rows):
        statement = f"WITH step ({_STEP_COLUMNS}) AS (VALUES {marks(len(part), _WIDTH)}) {_UPDATE}"
        settled.update((row[0], row) for row in transaction.db.execute(statement, flat(part)).fetchall())
    for index, settlement in enumerate(settlements):
        if results[index] is None and settlement.seq not in settled:
            results[index] = IllegalTransition(f"event {settlement.seq} is not being sent")
    done = [asked[seq] for seq in asked if seq in settled]
    _write_attempts(transaction, done, settled)
    transaction.count("state_sending", -len(done))
    for settlement in done:
        transaction.count(f"state_{settlement.step.target}")
    _bring_media_along(transaction, done, settled)
    _bring_restores_along(transaction, done, settled)
    return results


def _row(transaction: Transaction, settlement: Settlement) -> Row:
    step = settlement.step
    target = EventState(step.target)
    require_event(EventState.SENDING, target)
    if (step.next_in_ms is None) is (target is EventState.PENDING):
        raise ValueError(f"a step to {target} with next_in_ms={step.next_in_ms}")
    return (
        settlement.seq,
        transaction.ticks,
        target,
        NEVER if step.next_in_ms is None else min(transaction.ticks + max(0, step.next_in_ms), NEVER - 1),
        step.reason or (None if target in (EventState.DELIVERED, EventState.PENDING) else "no reason given"),
        int(step.unclear),
        int(step.refusal),
        int(step.fault),
        int(step.clear_bytes and target is EventState.PENDING),
        step.http_status,
        step.chekt_event_id,
        step.response_id,
        transaction.at if target is EventState.DELIVERED else None,
        transaction.ticks if target in _CLOSED else None,
    )


def _write_attempts(transaction: Transaction, done: Sequence[Settlement], settled: Mapping[int, Row]) -> None:
    """One row of the ledger tells start, answer and verdict: a third of the writing of three."""
    hops = []
    for settlement in done:
        step, (_, _, attempts, attempt_at, attempt_ticks, _) = settlement.step, settled[settlement.seq]
        detail: dict[str, Any] = {"attempt": attempts, "started_at": attempt_at, "started_ticks": attempt_ticks}
        if settlement.answer is not None:
            detail["answer"] = dict(settlement.answer)
        detail["verdict"] = step.target
        known = {"reason": step.reason, "next_in_ms": step.next_in_ms, "http_status": step.http_status}
        known |= {"chekt_event_id": step.chekt_event_id, "response_id": step.response_id}
        detail |= {key: value for key, value in known.items() if value is not None}
        detail |= {key: True for key in ("unclear", "refusal", "fault") if getattr(step, key)}
        hops.append((settlement.seq, "attempt", detail))
    write_hops(transaction, hops)


def _bring_media_along(transaction: Transaction, done: Sequence[Settlement], settled: Mapping[int, Row]) -> None:
    lose_waiting_media(transaction, [s.seq for s in done if s.step.target is EventState.DISCARDED], DISCARDED)
    final = [s.seq for s in done if settled[s.seq][-1] and s.step.target is not EventState.DISCARDED]
    lose_waiting_media(transaction, final, NOT_ANNOUNCED, "AND announced = 0")
    delivered = [s for s in done if s.step.target is EventState.DELIVERED]
    slots = [(s.seq, slot) for s in delivered for slot in s.step.slots]
    for part in chunks(slots):
        transaction.db.execute(
            f"WITH slot (event_seq, kind, seq, put_url, callback_url, deadline) AS (VALUES {marks(len(part), 6)}) "
            "UPDATE media SET put_url = slot.put_url, callback_url = slot.callback_url, "
            "deadline_ticks = slot.deadline, "
            "next_at = ? FROM slot WHERE media.event_seq = slot.event_seq AND media.kind = slot.kind "
            "AND media.seq = slot.seq "
            "AND media.state = 'waiting'",
            [*flat(_slot_row(seq, slot) for seq, slot in part), transaction.ticks],
        )
    lose_waiting_media(transaction, [s.seq for s in delivered], NO_SLOT, "AND put_url IS NULL")


def _slot_row(seq: int, slot: Slot) -> Row:
    return (seq, slot.kind, slot.seq, slot.put_url, slot.callback_url, slot.deadline_ticks)


def _bring_restores_along(transaction: Transaction, done: Sequence[Settlement], settled: Mapping[int, Row]) -> None:
    release_restores(transaction, [settled[s.seq][1] for s in done if s.step.target is EventState.DELIVERED])
    discarded = [settled[s.seq][1] for s in done if s.step.target is EventState.DISCARDED]
    restores = [
        row[0]
        for part in chunks(discarded)
        for row in transaction.db.execute(
            "SELECT event_id FROM event INDEXED BY event_follows "
            f"WHERE follows IS NOT NULL AND state = 'pending' AND follows IN ({places(part)})",
            part,
        )
    ]
    discard_pending(transaction, restores, "its beginning was discarded")


def release_restores(transaction: Transaction, beginnings: Sequence[str]) -> None:
    """Their beginnings were delivered: they are due now."""
    for part in chunks(beginnings):
        transaction.db.execute(
            "UPDATE event INDEXED BY event_follows SET ready = 1, next_at = ? "
            f"WHERE follows IS NOT NULL AND state = 'pending' AND next_at = ? AND follows IN ({places(part)})",
            [transaction.ticks, NEVER, *part],
        )
