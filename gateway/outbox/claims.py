"""Taking what was chosen: its bytes are fixed in the same commit, so that whatever may be on the wire is known."""

# ruff: noqa: S608 - statements are put together from our own words; every value is a parameter

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import structlog

from gateway.model import ClaimedEvent, Event, MediaKind, MediaOnDisk
from gateway.outbox.choosing import Wish, choose
from gateway.outbox.rows import EVENT_COLUMNS, NEVER, Compose, Row, chunks, event_of, flat, marks, places, to_json
from gateway.outbox.writer import Transaction
from gateway.states import EventState, require_event

log = structlog.get_logger()

PROMOTED_ROWS: Final = 256  # deferred events that become due in one claim; more of them follow in the next
COMPOSE_RETRY_MS: Final = 60_000  # after an error of our own while composing
COMPOSE_FAULTS_TO_DIE: Final = 5
COMPOSE_FAULTS_SPAN_MS: Final = 60 * 60_000

PROMOTE: Final = (
    "UPDATE event SET ready = 1 WHERE seq IN (SELECT seq FROM event INDEXED BY event_deferred "
    "WHERE state = 'pending' AND ready = 0 AND next_at <= ? ORDER BY next_at LIMIT ?)"
)


class Claims:
    """Chooses, and remembers only whose turn it is."""

    def __init__(self) -> None:
        self.compose: Compose | None = None
        self._fresh_in_a_row = 0

    def claim(self, transaction: Transaction, wishes: Sequence[Wish]) -> Sequence[list[ClaimedEvent]]:
        transaction.db.execute(PROMOTE, (transaction.ticks, PROMOTED_ROWS))
        return [self._claim(transaction, wish) for wish in wishes]

    def _claim(self, transaction: Transaction, wish: Wish) -> list[ClaimedEvent]:
        if self.compose is None:
            raise RuntimeError("nobody has said how to compose a request")
        chosen, in_a_row = choose(transaction, wish, self._fresh_in_a_row)
        if not chosen:
            return []
        transaction.after_commit(lambda: setattr(self, "_fresh_in_a_row", in_a_row))
        return take(transaction, chosen, self.compose)


def take(transaction: Transaction, seqs: Sequence[int], compose: Compose) -> list[ClaimedEvent]:
    """pending -> sending, with bytes."""
    require_event(EventState.PENDING, EventState.SENDING)
    db = transaction.db
    rows: dict[int, Row] = {}
    for part in chunks(seqs):
        query = (
            f"SELECT {EVENT_COLUMNS}, body, idempotency_key, sent_at, signalled FROM event "
            f"WHERE seq IN ({places(part)}) AND state = 'pending'"
        )
        rows.update((row[0], row) for row in db.execute(query, part))
    unwritten = [seq for seq in seqs if rows[seq][-4] is None]
    media = _media(transaction, unwritten)
    claimed: list[ClaimedEvent] = []
    updates: list[Row] = []
    for seq in seqs:
        row = rows[seq]
        event = event_of((*row[:2], EventState.SENDING, *row[3:20], row[20] + 1, *row[21:28]))
        body, key, sent_at, signalled = row[-4:]
        first_use = body is None
        if first_use:
            try:
                composed = compose(event, media.get(seq, ()), transaction.at)
            except Exception as error:  # a bug of ours; must not stop the others
                _compose_failed(transaction, event, error)
                continue
            body, key, sent_at, signalled = (
                composed.body,
                composed.idempotency_key,
                transaction.at,
                int(composed.signal),
            )
            _note_announced(transaction, seq, media.get(seq, ()), composed.announced)
        updates.append((seq, body, key, sent_at, signalled))
        claimed.append(ClaimedEvent(event, body, key, sent_at, first_use))
    written: set[int] = set()
    for values in chunks(updates):
        written.update(
            row[0]
            for row in db.execute(
                f"WITH new (seq, body, key, sent_at, signalled) AS (VALUES {marks(len(values), 5)}) "
                "UPDATE event SET state = 'sending', ready = 0, next_at = ?, attempts = attempts + 1, attempt_at = ?, "
                "attempt_ticks = ?, body = new.body, idempotency_key = new.key, sent_at = "
                "new.sent_at, signalled = new.signalled "
                "FROM new WHERE event.seq = new.seq AND event.state = 'pending' RETURNING seq",
                [*flat(values), NEVER, transaction.at, transaction.ticks],
            ).fetchall()
        )
    if len(written) != len(claimed):
        raise RuntimeError(f"{len(claimed)} events were chosen and {len(written)} of them could be claimed")
    transaction.count("state_pending", -len(claimed))
    transaction.count("state_sending", len(claimed))
    return claimed


def _media(transaction: Transaction, seqs: Sequence[int]) -> dict[int, list[MediaOnDisk]]:
    found: dict[int, list[MediaOnDisk]] = {}
    for part in chunks(seqs):
        rows = transaction.db.execute(
            "SELECT event_seq, kind, seq, path IS NOT NULL FROM media "
            f"WHERE state = 'waiting' AND event_seq IN ({places(part)}) ORDER BY event_seq, kind, seq",
            part,
        )
        for event_seq, kind, seq, on_disk in rows:
            found.setdefault(event_seq, []).append(MediaOnDisk(MediaKind(kind), seq, bool(on_disk)))
    return found


def _note_announced(
    transaction: Transaction, seq: int, media: Sequence[MediaOnDisk], announced: Collection[tuple[MediaKind, int]]
) -> None:
    """What is not announced is lost only when the bytes are final: they may be composed anew, with its file there."""
    if not media:
        return
    transaction.db.execute("UPDATE media SET announced = 1 WHERE event_seq = ? AND state = 'waiting'", (seq,))
    for one in media:
        if (one.kind, one.seq) not in announced:
            transaction.db.execute(
                "UPDATE media SET announced = 0 WHERE event_seq = ? AND kind = ? AND seq = ?", (seq, one.kind, one.seq)
            )


def _compose_failed(transaction: Transaction, event: Event, error: Exception) -> None:
    """Stays pending for a while; dead only after five such errors over at least an hour."""
    reason = f"an error inside the gateway while composing the request: {type(error).__name__}: {error}"[:500]
    first = transaction.ticks if event.first_fault_ticks is None else event.first_fault_ticks
    dead = event.faults + 1 >= COMPOSE_FAULTS_TO_DIE and transaction.ticks - first >= COMPOSE_FAULTS_SPAN_MS
    target = EventState.DEAD if dead else EventState.PENDING
    if dead:
        require_event(EventState.PENDING, target)
        transaction.count("state_pending", -1)
        transaction.count("state_dead")
    wait = COMPOSE_RETRY_MS << min(event.faults, 4)
    transaction.db.execute(
        "UPDATE event SET state = ?, ready = 0, next_at = ?, faults = faults + 1, first_fault_ticks = ?, reason = ? "
        "WHERE seq = ? AND state = 'pending'",
        (target, NEVER if dead else transaction.ticks + wait, first, reason, event.seq),
    )
    write_hops(transaction, [(event.seq, "fault", {"reason": reason})])
    log.error("event_compose_failed", event_id=event.event_id, error=reason, state=target.value)


def give_back(transaction: Transaction, groups: Sequence[Sequence[tuple[int, bool]]]) -> Sequence[None]:
    """A claim whose caller went away: nothing was sent, so it is as if it had not been. (seq, first_use)"""
    pairs = [pair for group in groups for pair in group]
    for part in chunks(pairs):
        given = transaction.db.execute(
            f"WITH old (seq, first_use) AS (VALUES {marks(len(part), 2)}) "
            "UPDATE event SET state = 'pending', ready = 1, next_at = received_ticks, attempts = attempts - 1, "
            "body = iif(old.first_use, NULL, body), idempotency_key = iif(old.first_use, NULL, idempotency_key), "
            "sent_at = iif(old.first_use, NULL, sent_at), signalled = iif(old.first_use, NULL, signalled) "
            "FROM old WHERE event.seq = old.seq AND event.state = 'sending' RETURNING seq",
            flat((seq, int(first_use)) for seq, first_use in part),
        ).fetchall()
        transaction.count("state_sending", -len(given))
        transaction.count("state_pending", len(given))
    return [None] * len(groups)


def write_hops(transaction: Transaction, hops: Sequence[tuple[int, str, dict[str, Any]]]) -> None:
    for part in chunks(hops):
        transaction.db.execute(
            f"INSERT INTO hop (event_seq, at, ticks, what, detail) VALUES {marks(len(part), 5)}",
            flat((seq, transaction.at, transaction.ticks, what, to_json(detail)) for seq, what, detail in part),
        )


def next_due(transaction: Transaction, arguments: Sequence[None]) -> Sequence[int | None]:
    row = transaction.db.execute(
        "SELECT next_at FROM event INDEXED BY event_deferred WHERE state = 'pending' AND ready = 0 "
        "AND next_at < ? ORDER BY next_at LIMIT 1",
        (NEVER,),
    ).fetchone()
    return [row[0] if row else None] * len(arguments)
