"""What happens to rows beside their way to the cloud: brought back at start, woken, given up, revived, pruned."""

# ruff: noqa: S608 - statements are put together from our own words; every value is a parameter

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.outbox.claims import write_hops
from gateway.outbox.rows import NEVER, Mapped, Revived, Row, chunks, flat, marks, places, to_json
from gateway.outbox.writer import Transaction
from gateway.states import EVENT_TRANSITIONS, EventState, require_event

WOKEN_ROWS: Final = 1_000  # in one commit
EXPIRED_ROWS: Final = 500
PRUNED_ROWS: Final = 200
VACUUM_PAGES: Final = 256  # given back in one commit: 1 MiB
UNMAPPED_KEPT: Final = 1_000
SILENT_AFTER_MS: Final = 15 * 60_000  # an older alarm does not send a patrol out by itself

FindCamera = Callable[[str, str | None], Mapped | None]  # source, the equipment's name of the camera


def recover(transaction: Transaction, arguments: Sequence[None]) -> Sequence[int]:
    """What was on the wire when the process ended may have arrived: the same bytes again, and counted as unclear."""
    require_event(EventState.SENDING, EventState.PENDING)
    rows = transaction.db.execute(
        "UPDATE event SET state = 'pending', ready = 1, next_at = received_ticks, unclear = unclear + 1, fixed = 1, "
        "reason = 'the gateway stopped during an attempt' WHERE state = 'sending' RETURNING seq, "
        "attempts, attempt_at, attempt_ticks"
    ).fetchall()
    transaction.count("state_sending", -len(rows))
    transaction.count("state_pending", len(rows))
    for part in chunks([row[0] for row in rows]):
        lost = transaction.db.execute(
            "UPDATE media SET state = 'lost', reason = 'not announced: no file at the time of the first attempt' "
            f"WHERE state = 'waiting' AND announced = 0 AND event_seq IN ({places(part)})",
            part,
        ).rowcount
        transaction.count("media_waiting", -lost)
        transaction.count("media_lost", lost)
    write_hops(
        transaction,
        [
            (seq, "recovered", {"attempt": n, "started_at": at, "started_ticks": ticks, "unclear": True})
            for seq, n, at, ticks in rows
        ],
    )
    return [len(rows)] + [0] * (len(arguments) - 1)


def wake(transaction: Transaction, arguments: Sequence[tuple[frozenset[str], frozenset[str]]]) -> Sequence[int]:
    """Deferred rows become due in the order of their age. At most WOKEN_ROWS; how many. (held lanes, locations)"""
    return [_wake(transaction, lanes, locations) for lanes, locations in arguments]


def _wake(transaction: Transaction, lanes: frozenset[str], locations: frozenset[str]) -> int:
    held = ""
    if lanes or locations:
        held = f"AND lane NOT IN ({places(lanes)}) AND location_id NOT IN ({places(locations)}) "
    return transaction.db.execute(
        "UPDATE event SET ready = 1, next_at = received_ticks WHERE seq IN (SELECT seq FROM event "
        "INDEXED BY event_deferred "
        f"WHERE state = 'pending' AND ready = 0 AND next_at < ? {held}ORDER BY next_at LIMIT ?)",
        [NEVER, *(sorted(lanes) + sorted(locations) if held else ()), WOKEN_ROWS],
    ).rowcount


def expire(transaction: Transaction, befores: Sequence[int]) -> Sequence[int]:
    """Pending since before these ticks -> dead. At most EXPIRED_ROWS; returns how many."""
    require_event(EventState.PENDING, EventState.DEAD)
    results = []
    for before in befores:
        seqs = [
            row[0]
            for rank in (0, 1, 2)
            for row in transaction.db.execute(
                "SELECT seq FROM event INDEXED BY event_unsettled WHERE state IN ('pending', "
                "'sending') AND state = 'pending' "
                "AND rank = ? AND received_ticks < ? AND waits_since_ticks < ? ORDER BY received_ticks LIMIT ?",
                (rank, before, before, EXPIRED_ROWS),
            )
        ][:EXPIRED_ROWS]
        for part in chunks(seqs):
            transaction.db.execute(
                "UPDATE event SET state = 'dead', ready = 0, next_at = ?, reason = 'expired' || "
                "coalesce('; last: ' || reason, '') "
                f"WHERE state = 'pending' AND seq IN ({places(part)})",
                [NEVER, *part],
            )
        transaction.count("state_pending", -len(seqs))
        transaction.count("state_dead", len(seqs))
        write_hops(transaction, [(seq, "expired", {}) for seq in seqs])
        results.append(len(seqs))
    return results


@dataclass(frozen=True, slots=True)
class Revival:
    event_ids: tuple[str, ...]
    signal: bool | None  # None: as before, but silent if older than 15 minutes
    find_camera: FindCamera | None  # for unmapped ones


def revive(transaction: Transaction, revivals: Sequence[Revival]) -> Sequence[Revived]:
    return [_revive(transaction, revival) for revival in revivals]


def dead_ids(transaction: Transaction, arguments: Sequence[None]) -> Sequence[list[str]]:
    query = (
        "SELECT event_id FROM event INDEXED BY event_for_people "
        "WHERE state IN ('dead', 'unmapped', 'unreadable', 'discarded') AND state = 'dead' ORDER BY seq"
    )
    ids = [event_id for (event_id,) in transaction.db.execute(query)]
    return [ids for _ in arguments]


def note(transaction: Transaction, notes: Sequence[tuple[str, int, int, str, dict[str, Any]]]) -> Sequence[None]:
    """Lines of the ledger; one about an event that is gone is forgotten."""
    for part in chunks(notes):
        transaction.db.execute(
            f"WITH said (event_id, at, ticks, what, detail) AS (VALUES {marks(len(part), 5)}) "
            "INSERT INTO hop (event_seq, at, ticks, what, detail) "
            "SELECT event.seq, said.at, said.ticks, said.what, said.detail FROM said CROSS JOIN event USING (event_id)",
            flat((event_id, at, ticks, what, to_json(detail)) for event_id, at, ticks, what, detail in part),
        )
    return [None] * len(notes)


_REVIVED_COLUMNS: Final = (
    "seq, event_id, state, signal, received_at, received_ticks, unclear, source, source_camera, "
    "camera, camera_id, recorder_id, "
    "follows, signalled"
)


def _revive(transaction: Transaction, revival: Revival) -> Revived:
    rows: dict[str, Row] = {}
    for part in chunks(revival.event_ids):
        query = f"SELECT {_REVIVED_COLUMNS} FROM event WHERE event_id IN ({places(part)})"
        rows.update((row[1], row) for row in transaction.db.execute(query, part))
    revived, silent, unchanged, unmapped = [], [], [], []
    refused: dict[str, str] = {}
    for event_id in dict.fromkeys(revival.event_ids):
        if event_id not in rows:
            continue
        (
            seq,
            _,
            state,
            signal,
            at,
            ticks,
            unclear,
            source,
            source_camera,
            camera,
            camera_id,
            recorder_id,
            follows,
            said,
        ) = rows[event_id]
        if EventState.PENDING not in EVENT_TRANSITIONS[EventState(state)] or state == EventState.SENDING:
            refused[event_id] = state
            continue
        if state == EventState.UNMAPPED:
            mapped = revival.find_camera(source, source_camera) if revival.find_camera else None
            if mapped is None:
                unmapped.append(event_id)
                continue
            camera, camera_id, recorder_id, signal = (
                mapped.camera,
                mapped.camera_id,
                mapped.recorder_id,
                int(mapped.signal),
            )
        if unclear:
            # The cloud may have it: only the same bytes can be recognised there.
            unchanged.append(event_id)
            signal = signal if said is None else said
        elif revival.signal is not None:
            signal = int(revival.signal)
        elif max(transaction.at - at, transaction.ticks - ticks) > SILENT_AFTER_MS:
            signal = 0
        if not signal:
            silent.append(event_id)
        resolved = camera, camera_id, recorder_id, int(revival.signal is True), int(signal)
        _bring_back(transaction, seq, state, resolved, bool(unclear), follows)
        revived.append(event_id)
    unknown = [event_id for event_id in dict.fromkeys(revival.event_ids) if event_id not in rows]
    return Revived(tuple(revived), tuple(silent), tuple(unchanged), tuple(unmapped), tuple(unknown), refused)


def _bring_back(
    transaction: Transaction, seq: int, state: str, resolved: Row, same_bytes: bool, follows: str | None
) -> None:
    require_event(EventState(state), EventState.PENDING)
    waits = False
    if follows is not None:
        beginning = transaction.db.execute("SELECT state FROM event WHERE event_id = ?", (follows,)).fetchone()
        waits = beginning is not None and beginning[0] != EventState.DELIVERED
    anew = "" if same_bytes else "body = NULL, idempotency_key = NULL, sent_at = NULL, signalled = NULL, fixed = 0, "
    changed = transaction.db.execute(
        f"UPDATE event SET state = 'pending', ready = ?, next_at = ?, {anew}waits_since_ticks = ?, refusals = 0, "
        "first_refused_ticks = NULL, faults = 0, first_fault_ticks = NULL, looked_at = NULL, camera "
        "= ?, camera_id = ?, "
        "recorder_id = ?, signal_anyway = ?, signal = ?, reason = 'revived by a person' WHERE seq = ? AND state = ?",
        (int(not waits), NEVER if waits else transaction.ticks, transaction.ticks, *resolved, seq, state),
    ).rowcount
    if changed != 1:
        raise RuntimeError(f"event {seq} could not be revived")
    transaction.count(f"state_{state}", -1)
    transaction.count("state_pending")
    detail: dict[str, Any] = {"from": state, "signal": bool(resolved[-1])}
    write_hops(transaction, [(seq, "revived", detail | ({"same_bytes": True} if same_bytes else {}))])


def look_at(transaction: Transaction, groups: Sequence[Sequence[str]]) -> Sequence[int]:
    """A person has seen these dead events. Returns how many of them nobody had seen before."""
    results = []
    for event_ids in groups:
        seen = 0
        for part in chunks(event_ids):
            seen += transaction.db.execute(
                "UPDATE event SET looked_at = ? WHERE state = 'dead' AND looked_at IS NULL AND "
                f"event_id IN ({places(part)})",
                [transaction.at, *part],
            ).rowcount
        results.append(seen)
    return results


@dataclass(frozen=True, slots=True)
class Pruned:
    events: int
    paths: tuple[str, ...]  # files that belonged to them, relative to the media folder


def prune(transaction: Transaction, befores: Sequence[int]) -> Sequence[Pruned]:
    """Closed before these ticks, and unmapped beyond the newest: at most PRUNED_ROWS. Dead ones stay at any age."""
    return [_prune(transaction, before) for before in befores]


def _prune(transaction: Transaction, before: int) -> Pruned:
    db = transaction.db
    rows = db.execute(
        "SELECT seq, state FROM event INDEXED BY event_closed WHERE closed_ticks IS NOT NULL AND closed_ticks < ? "
        "ORDER BY closed_ticks LIMIT ?",
        (before, PRUNED_ROWS),
    ).fetchall()
    rows += db.execute(
        "SELECT seq, state FROM event INDEXED BY event_for_people WHERE state IN ('dead', "
        "'unmapped', 'unreadable', 'discarded') "
        "AND state = 'unmapped' ORDER BY seq DESC LIMIT ? OFFSET ?",
        (PRUNED_ROWS, UNMAPPED_KEPT),
    ).fetchall()
    paths: list[str] = []
    for part in chunks(rows):
        seqs = [row[0] for row in part]
        marked = places(seqs)
        for state, path, size in db.execute(
            f"SELECT state, path, bytes FROM media WHERE event_seq IN ({marked})", seqs
        ):
            transaction.count(f"media_{state}", -1)
            if path is not None:
                transaction.count("media_bytes", -size)
                paths.append(path)
        db.execute(f"DELETE FROM event WHERE seq IN ({marked})", seqs)
    for _, state in rows:
        transaction.count(f"state_{state}", -1)
        transaction.count(f"pruned_{state}")
    return Pruned(len(rows), tuple(paths))


def give_space_back(transaction: Transaction, arguments: Sequence[None]) -> Sequence[int]:
    """Some empty pages go back to the file system; returns how many are left."""
    transaction.db.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
    left = transaction.db.execute("PRAGMA freelist_count").fetchone()[0]
    return [left] * len(arguments)


def carry_over(transaction: Transaction, arguments: Sequence[None]) -> Sequence[None]:
    """The journal goes into the file after this commit, and both get as short as they can be.

    A reader that is just looking may keep it from that; then it happens the next time.
    """

    def truncate() -> None:
        with contextlib.suppress(sqlite3.Error):  # the next commit will tell what is wrong
            transaction.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    transaction.after_commit(truncate)
    return arguments


def counters(transaction: Transaction, arguments: Sequence[None]) -> Sequence[dict[str, int]]:
    """As they will be after this commit."""
    found = dict(transaction.db.execute("SELECT name, value FROM counter"))
    for name, change in transaction.deltas.items():
        found[name] = found.get(name, 0) + change
    return [dict(found) for _ in arguments]


def get_meta(transaction: Transaction, keys: Sequence[str]) -> Sequence[str | None]:
    found = dict(transaction.db.execute("SELECT key, value FROM meta"))
    return [found.get(key) for key in keys]


def set_meta(transaction: Transaction, pairs: Sequence[tuple[str, str | None]]) -> Sequence[None]:
    for key, value in pairs:
        if value is None:
            transaction.db.execute("DELETE FROM meta WHERE key = ?", (key,))
        else:
            transaction.db.execute(
                "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, value),
            )
    return [None] * len(pairs)


def last_heard_at(transaction: Transaction, names: Sequence[str | None]) -> Sequence[int | None]:
    heard = dict(transaction.db.execute("SELECT name, last_message_at FROM camera_seen"))
    latest = max((at for at in heard.values() if at is not None), default=None)
    return [latest if name is None else heard.get(name) for name in names]
