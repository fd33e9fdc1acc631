"""Writing what intake has understood: rows, wanted pictures, memory, digests and counts, in few statements a group."""

# ruff: noqa: S608 - statements are put together from our own words; every value is a parameter

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from gateway.model import NewEvent
from gateway.outbox.rows import NEVER, Added, IntakeGroup, Row, chunks, flat, marks, places, to_json
from gateway.outbox.writer import Transaction
from gateway.states import ENTRANCES, EventState, IllegalTransition, MediaState

FETCH_PATIENCE_MS: Final = 60 * 60_000  # after the window has ended: a recorder that restarts, or is being updated

_MESSAGE_COUNTS: Final = frozenset({"received", "closing", "ignored", "duplicate"})
_ENDS: Final = {EventState.UNMAPPED: "unmapped", EventState.UNREADABLE: "unreadable"}
_CLOSED_ENTRANCES: Final = frozenset({EventState.FOLDED, EventState.UNREADABLE})
_REASONS: Final = {
    EventState.FOLDED: "inside the hold-off of an earlier alarm",
    EventState.UNMAPPED: "its camera is not configured",
    EventState.UNREADABLE: "the message could not be understood",
}

_COLUMNS: Final = (
    "event_id, state, ready, next_at, event_type, event_status, location_id, recorder_id, camera_id, source, camera, "
    "source_camera, source_id, state_key, kind, topic, follows, signal, details, event_at, "
    "received_at, received_ticks, "
    "age_unknown_ms, stored_at, waits_since_ticks, reason, closed_ticks, raw, raw_bytes, raw_sha256, stored_ticks, "
    "away_since_at"
)
_WIDTH: Final = _COLUMNS.count(",") + 1


def add(transaction: Transaction, groups: Sequence[IntakeGroup]) -> Sequence[Added]:
    for group in groups:
        if not group.counts.keys() <= _MESSAGE_COUNTS:
            raise ValueError(f"unknown counts: {sorted(group.counts.keys() - _MESSAGE_COUNTS)}")
    seqs = _insert_events(transaction, [event for group in groups for event in group.events])
    results = [_share(transaction, group, seqs) for group in groups]
    _write_memory(transaction, groups)
    _write_digests(transaction, Counter(digest for group in groups for digest in group.digests))
    _write_seen(transaction, groups)
    return results


def acknowledged(
    transaction: Transaction, notes: Sequence[tuple[Sequence[str], Sequence[bytes], int, int]]
) -> Sequence[None]:
    """Lazy: the broker has been told."""
    told = [(event_id, at, ticks) for event_ids, _, at, ticks in notes for event_id in event_ids]
    for part in chunks(told):
        transaction.db.execute(
            f"WITH told (event_id, at, ticks) AS (VALUES {marks(len(part), 3)}) "
            "UPDATE event SET acknowledged_at = told.at, acknowledged_ticks = told.ticks FROM told "
            "WHERE event.event_id = told.event_id AND event.acknowledged_at IS NULL",
            flat(part),
        )
    counted = Counter(digest for _, digests, *_ in notes for digest in digests)
    for hashes in chunks(list(counted.items())):
        known = f"WITH told (hash, count) AS (VALUES {marks(len(hashes), 2)}) "
        # Those that end go first, since no row may ever count nothing.
        transaction.db.execute(
            known + "DELETE FROM digest WHERE hash IN (SELECT told.hash FROM told JOIN digest AS d USING "
            "(hash) WHERE d.count <= told.count)",
            flat(hashes),
        )
        transaction.db.execute(
            known + "UPDATE digest SET count = digest.count - told.count FROM told WHERE digest.hash = told.hash",
            flat(hashes),
        )
    return [None] * len(notes)


def unacknowledged(transaction: Transaction, arguments: Sequence[None]) -> Sequence[Counter[bytes]]:
    return [Counter(dict(transaction.db.execute("SELECT hash, count FROM digest"))) for _ in arguments]


def memory(transaction: Transaction, arguments: Sequence[None]) -> Sequence[dict[str, str]]:
    return [dict(transaction.db.execute("SELECT key, value FROM memory")) for _ in arguments]


def _insert_events(transaction: Transaction, events: Sequence[NewEvent]) -> dict[str, int]:
    """Returns event_id -> seq of those that are new. They belong to the first who brought them."""
    seqs: dict[str, int] = {}
    for part in chunks(events):
        seqs.update(
            transaction.db.execute(
                f"INSERT INTO event ({_COLUMNS}) VALUES {marks(len(part), _WIDTH)} "
                "ON CONFLICT (event_id) DO NOTHING RETURNING event_id, seq",
                flat([_row(transaction, event) for event in part]),
            ).fetchall()
        )
    fresh: dict[str, NewEvent] = {}
    for event in events:
        if event.event_id in seqs:
            fresh.setdefault(event.event_id, event)
    transaction.count("events", len(fresh))
    for state, count in Counter(EventState(event.state) for event in fresh.values()).items():
        transaction.count(f"state_{state}", count)
    _insert_media(transaction, fresh, seqs)
    _follow(transaction, [event for event in fresh.values() if event.follows and event.state == EventState.PENDING])
    return seqs


def _row(transaction: Transaction, event: NewEvent) -> Row:
    state = EventState(event.state)
    if state not in ENTRANCES:
        raise IllegalTransition(f"event: nothing enters as {state}")
    waits = event.follows is not None
    ready = state is EventState.PENDING and not waits
    return (
        event.event_id,
        state,
        int(ready),
        event.received_ticks if ready else NEVER,
        event.event_type,
        event.event_status,
        event.location_id,
        event.recorder_id,
        event.camera_id,
        event.source,
        event.camera,
        event.source_camera,
        event.source_id,
        event.state_key,
        event.kind,
        event.topic,
        event.follows,
        int(event.signal),
        to_json(dict(event.details)),
        event.event_at,
        event.received_at,
        event.received_ticks,
        event.age_unknown_ms,
        transaction.at,
        event.received_ticks,
        event.reason or _REASONS.get(state),
        transaction.ticks if state in _CLOSED_ENTRANCES else None,
        event.raw,
        event.raw_bytes,
        event.raw_sha256,
        transaction.ticks,
        event.away_since_at,
    )


def _insert_media(transaction: Transaction, fresh: dict[str, NewEvent], seqs: dict[str, int]) -> None:
    rows: list[Row] = []
    for event in fresh.values():
        for media in event.media:
            # A picture can be had now, a clip when its window has passed: at the latest one window's length after the
            # alarm, however far the equipment's clock runs ahead.
            wait = min(media.to_at - event.received_at, media.to_at - media.from_at)
            begin = event.received_ticks + max(0, wait)
            rows.append(
                (
                    seqs[event.event_id],
                    media.kind,
                    media.seq,
                    MediaState.WAITING,
                    media.from_at,
                    media.to_at,
                    to_json(dict(media.recipe)),
                    begin,
                    begin + FETCH_PATIENCE_MS,
                    event.received_ticks,
                )
            )
    for part in chunks(rows):
        transaction.db.execute(
            "INSERT INTO media (event_seq, kind, seq, state, from_at, to_at, recipe, fetch_next_at, "
            "fetch_until_ticks, next_at) "
            f"VALUES {marks(len(part), 10)}",
            flat(part),
        )
    transaction.count(f"media_{MediaState.WAITING}", len(rows))


def _follow(transaction: Transaction, restores: Sequence[NewEvent]) -> None:
    """An end is sent only after its beginning was delivered; it may be so already."""
    if not restores:
        return
    beginnings: dict[str, str] = {}
    for part in chunks([restore.follows for restore in restores]):
        beginnings.update(
            transaction.db.execute(f"SELECT event_id, state FROM event WHERE event_id IN ({places(part)})", part)
        )
    due: list[str] = []
    for restore in restores:
        state = beginnings.get(str(restore.follows))
        # Known no more: it was closed so long ago that it has been pruned.
        if state is None or state == EventState.DELIVERED:
            due.append(restore.event_id)
        elif state == EventState.DISCARDED:
            discard_pending(transaction, [restore.event_id], "its beginning was discarded")
        elif state in (EventState.FOLDED, EventState.UNREADABLE):
            discard_pending(transaction, [restore.event_id], "its beginning was never sent")
    for ids in chunks(due):
        transaction.db.execute(
            "UPDATE event SET ready = 1, next_at = received_ticks WHERE state = 'pending' AND "
            f"event_id IN ({places(ids)})",
            ids,
        )


def discard_pending(transaction: Transaction, event_ids: Sequence[str], reason: str) -> None:
    for part in chunks(event_ids):
        seqs = [
            row[0]
            for row in transaction.db.execute(
                "UPDATE event SET state = 'discarded', ready = 0, next_at = ?, closed_ticks = ?, reason = ? "
                f"WHERE state = 'pending' AND event_id IN ({places(part)}) RETURNING seq",
                [NEVER, transaction.ticks, reason, *part],
            ).fetchall()
        ]
        transaction.count("state_pending", -len(seqs))
        transaction.count("state_discarded", len(seqs))
        lose_waiting_media(transaction, seqs, "event discarded")


def lose_waiting_media(transaction: Transaction, seqs: Sequence[int], reason: str, where: str = "") -> None:
    """`where` is a further condition in our own words."""
    for part in chunks(seqs):
        lost = transaction.db.execute(
            "UPDATE media SET state = 'lost', put_url = NULL, callback_url = NULL, reason = ? "
            f"WHERE state = 'waiting' AND event_seq IN ({places(part)}) {where}",
            [reason, *part],
        ).rowcount
        transaction.count("media_waiting", -lost)
        transaction.count("media_lost", lost)


def _share(transaction: Transaction, group: IntakeGroup, seqs: dict[str, int]) -> Added:
    """Which of the new rows are this group's, and in what each of its messages ended."""
    new: set[str] = set()
    duplicates: set[str] = set()
    for event in group.events:
        is_new = seqs.pop(event.event_id, None) is not None
        (new if is_new else duplicates).add(event.event_id)
        if event.event_id not in group.uncounted:
            transaction.count(_ENDS.get(EventState(event.state), "stored") if is_new else "duplicate")
    for name, count in group.counts.items():
        transaction.count(name, count)
    return Added(frozenset(new), frozenset(duplicates - new))


def _write_memory(transaction: Transaction, groups: Sequence[IntakeGroup]) -> None:
    changes: dict[str, str | None] = {}
    for group in groups:
        changes.update(group.memory)
    for gone in chunks([key for key, value in changes.items() if value is None]):
        transaction.db.execute(f"DELETE FROM memory WHERE key IN ({places(gone)})", gone)
    for part in chunks([pair for pair in changes.items() if pair[1] is not None]):
        transaction.db.execute(
            f"INSERT INTO memory (key, value) VALUES {marks(len(part), 2)} ON CONFLICT (key) DO "
            "UPDATE SET value = excluded.value",
            flat(part),
        )


def _write_digests(transaction: Transaction, digests: Counter[bytes]) -> None:
    for part in chunks(list(digests.items())):
        transaction.db.execute(
            f"INSERT INTO digest (hash, count) VALUES {marks(len(part), 2)} ON CONFLICT (hash) DO "
            "UPDATE SET count = count + excluded.count",
            flat(part),
        )


def _write_seen(transaction: Transaction, groups: Sequence[IntakeGroup]) -> None:
    seen: dict[str, list[Any]] = {}
    for group in groups:
        for name, at in group.seen_cameras.items():
            seen.setdefault(name, [None, None])[0] = at
        for event in group.events:
            if event.camera is not None:
                seen.setdefault(event.camera, [None, None])[1] = event.received_at
    for part in chunks([(name, *times) for name, times in seen.items()]):
        transaction.db.execute(
            f"INSERT INTO camera_seen (name, last_message_at, last_event_at) VALUES {marks(len(part), 3)} "
            "ON CONFLICT (name) DO UPDATE SET last_message_at = coalesce(excluded.last_message_at, last_message_at), "
            "last_event_at = coalesce(excluded.last_event_at, last_event_at)",
            flat(part),
        )
