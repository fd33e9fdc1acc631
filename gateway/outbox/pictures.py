"""The rows of pictures and clips: what is to be fetched, to be put, to be confirmed; and what became of it.

What is in hand has no state of its own: after a crash it is simply done again (the same file to the same slot). A note
about a picture that was lost meanwhile (its event was discarded) is answered with False, not with an error.
"""

# ruff: noqa: S608 - statements are put together from our own words; every value is a parameter

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.model import Media, MediaKind
from gateway.outbox.claims import write_hops
from gateway.outbox.rows import MEDIA_COLUMNS, Row, chunks, flat, marks, media_of, places
from gateway.outbox.writer import Transaction
from gateway.states import IllegalTransition, MediaState, require_media

_FROM: Final = "FROM media INDEXED BY {index} JOIN event ON event.seq = media.event_seq"

TO_FETCH: Final = (
    f"SELECT {MEDIA_COLUMNS} {_FROM.format(index='media_to_fetch')} "
    "WHERE media.state = 'waiting' AND media.path IS NULL AND media.fetch_next_at <= ? ORDER BY "
    "media.fetch_next_at LIMIT ?"
)
TO_PUT: Final = (
    f"SELECT {MEDIA_COLUMNS} {_FROM.format(index='media_to_put')} WHERE media.state = 'waiting' "
    "AND media.path IS NOT NULL AND media.put_url IS NOT NULL AND media.next_at <= ? ORDER BY media.next_at LIMIT ?"
)
TO_CONFIRM: Final = (
    f"SELECT {MEDIA_COLUMNS} {_FROM.format(index='media_to_confirm')} "
    "WHERE media.state = 'uploaded' AND media.next_at <= ? ORDER BY media.next_at LIMIT ?"
)
# Slots that close before a time, the first to close first; whether or not there is a file.
CLOSING: Final = (
    f"SELECT {MEDIA_COLUMNS} {_FROM.format(index='media_slot')} "
    "WHERE media.state = 'waiting' AND media.put_url IS NOT NULL AND media.deadline_ticks < ? ORDER "
    "BY media.deadline_ticks LIMIT ?"
)
_NEXT: Final = {
    TO_FETCH: "SELECT min(fetch_next_at) FROM media INDEXED BY media_to_fetch WHERE state = 'waiting' AND path IS NULL",
    TO_PUT: (
        "SELECT min(next_at) FROM media INDEXED BY media_to_put "
        "WHERE state = 'waiting' AND path IS NOT NULL AND put_url IS NOT NULL"
    ),
    TO_CONFIRM: "SELECT min(next_at) FROM media INDEXED BY media_to_confirm WHERE state = 'uploaded'",
    CLOSING: (
        "SELECT min(deadline_ticks) FROM media INDEXED BY media_slot WHERE state = 'waiting' AND put_url IS NOT NULL"
    ),
}


@dataclass(frozen=True, slots=True)
class Search:
    query: str  # one of the four above
    limit: int
    excluding: Collection[int]  # ids that are in hand
    until_ticks: int | None = None  # None: now


@dataclass(frozen=True, slots=True)
class Fetched:
    id: int
    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Later:
    id: int
    next_at: int
    reason: str
    fetching: bool  # of the file; else of PUT or callback


@dataclass(frozen=True, slots=True)
class Noted:
    id: int
    state: MediaState
    reason: str | None


@dataclass(frozen=True, slots=True)
class MediaFile:
    id: int
    event_id: str
    kind: MediaKind
    state: MediaState
    path: str
    bytes: int


def search(transaction: Transaction, searches: Sequence[Search]) -> Sequence[list[Media]]:
    results = []
    for one in searches:
        until = transaction.ticks if one.until_ticks is None else one.until_ticks
        rows = transaction.db.execute(one.query, (until, one.limit + len(one.excluding))).fetchall()
        results.append([media_of(row) for row in rows if row[0] not in one.excluding][: one.limit])
    return results


def next_due(transaction: Transaction, queries: Sequence[str]) -> Sequence[int | None]:
    return [transaction.db.execute(_NEXT[query]).fetchone()[0] for query in queries]


def of_event(transaction: Transaction, seqs: Sequence[int]) -> Sequence[list[Media]]:
    query = (
        f"SELECT {MEDIA_COLUMNS} FROM media JOIN event ON event.seq = media.event_seq "
        "WHERE media.event_seq = ? ORDER BY media.id"
    )
    return [[media_of(row) for row in transaction.db.execute(query, (seq,))] for seq in seqs]


def fetched(transaction: Transaction, files: Sequence[Fetched]) -> Sequence[bool]:
    first: dict[int, Fetched] = {}
    for file in files:
        first.setdefault(file.id, file)  # of two files for one picture the first is kept
    written: dict[int, Row] = {}
    for part in chunks(list(first.values())):
        written.update(
            (row[0], row)
            for row in transaction.db.execute(
                f"WITH file (id, path, bytes, sha256) AS (VALUES {marks(len(part), 4)}) "
                "UPDATE media SET path = file.path, bytes = file.bytes, sha256 = file.sha256, "
                "fetched_at = ?, next_at = ?, reason = NULL "
                "FROM file WHERE media.id = file.id AND media.state = 'waiting' AND media.path IS NULL "
                "RETURNING id, event_seq, kind, seq, bytes",
                [*flat((one.id, one.path, one.bytes, one.sha256) for one in part), transaction.at, transaction.ticks],
            ).fetchall()
        )
    transaction.count("media_bytes", sum(row[4] for row in written.values()))
    write_hops(
        transaction,
        [
            (seq, "media_fetched", {"kind": kind, "seq": number, "bytes": size})
            for _, seq, kind, number, size in written.values()
        ],
    )
    return [written.pop(one.id, None) is not None for one in files]


def later(transaction: Transaction, delays: Sequence[Later]) -> Sequence[bool]:
    before = _known(transaction, [delay.id for delay in delays])
    hops = []
    for delay in delays:
        row = before.get(delay.id)
        if row is not None and row[4] != delay.reason:  # a fault that repeats is told once
            hops.append((row[1], "media_deferred", {"kind": row[2], "seq": row[3], "reason": delay.reason}))
    changed: set[int] = set()
    for fetching in (True, False):
        columns = ("fetch_attempts", "fetch_next_at") if fetching else ("attempts", "next_at")
        state = "state = 'waiting' AND path IS NULL" if fetching else "state IN ('waiting', 'uploaded')"
        for part in chunks([delay for delay in delays if delay.fetching is fetching]):
            changed.update(
                row[0]
                for row in transaction.db.execute(
                    f"WITH late (id, at, reason) AS (VALUES {marks(len(part), 3)}) "
                    f"UPDATE media SET {columns[0]} = {columns[0]} + 1, {columns[1]} = late.at, reason = late.reason "
                    f"FROM late WHERE media.id = late.id AND media.{state} RETURNING id",
                    flat((delay.id, delay.next_at, delay.reason) for delay in part),
                ).fetchall()
            )
    write_hops(transaction, hops)
    return [delay.id in changed for delay in delays]


def noted(transaction: Transaction, notes: Sequence[Noted]) -> Sequence[bool | Exception]:
    """waiting -> uploaded -> done, or lost. False: it was lost already."""
    before = _known(transaction, [note.id for note in notes])
    states = {row[0]: MediaState(row[5]) for row in before.values()}
    results: list[bool | Exception] = []
    hops = []
    words = {MediaState.UPLOADED: "media_put", MediaState.DONE: "media_confirmed", MediaState.LOST: "media_lost"}
    for note in notes:
        target = MediaState(note.state)
        if note.id not in states:
            results.append(False)  # pruned with its event
            continue
        if states[note.id] is target or states[note.id] is MediaState.LOST:
            results.append(False)
            continue
        try:
            require_media(states[note.id], target)
        except IllegalTransition as error:
            results.append(error)
            continue
        _move(transaction, note.id, states[note.id], target, note.reason)
        states[note.id] = target
        _, event_seq, kind, number, *_ = before[note.id]
        hops.append(
            (event_seq, words[target], {"kind": kind, "seq": number} | ({"reason": note.reason} if note.reason else {}))
        )
        results.append(True)
    write_hops(transaction, hops)
    return results


def _move(transaction: Transaction, media_id: int, source: MediaState, target: MediaState, reason: str | None) -> None:
    if target is MediaState.UPLOADED:
        changes = "put_at = :at, next_at = :ticks, attempts = 0"
    elif target is MediaState.DONE:
        # The addresses have served: they are secrets.
        changes = "confirmed_at = :at, put_url = NULL, callback_url = NULL"
    else:
        changes = "put_url = NULL, callback_url = NULL"
    row = {
        "at": transaction.at,
        "ticks": transaction.ticks,
        "id": media_id,
        "source": source,
        "target": target,
        "reason": reason or ("no reason given" if target is MediaState.LOST else None),
    }
    changed = transaction.db.execute(
        f"UPDATE media SET state = :target, reason = :reason, {changes} WHERE id = :id AND state = :source", row
    ).rowcount
    if changed != 1:
        raise IllegalTransition(f"media {media_id}: {source} -> {target}, the row is in another state")
    transaction.count(f"media_{source}", -1)
    transaction.count(f"media_{target}")


def remove_files(transaction: Transaction, removals: Sequence[tuple[Sequence[int], str]]) -> Sequence[list[str]]:
    """The files make room (or have gone): what still waited with one is lost. Returns the paths to delete."""
    return [_remove(transaction, ids, reason) for ids, reason in removals]


def _remove(transaction: Transaction, ids: Sequence[int], reason: str) -> list[str]:
    paths: list[str] = []
    for part in chunks(ids):
        marked = places(part)
        rows = transaction.db.execute(
            "SELECT id, event_seq, kind, seq, state, path, bytes FROM media WHERE path IS NOT NULL "
            f"AND id IN ({marked})",
            part,
        ).fetchall()
        for media_id, event_seq, kind, number, state, path, size in rows:
            paths.append(path)
            transaction.count("media_bytes", -size)
            if state == MediaState.WAITING:
                _move(transaction, media_id, MediaState.WAITING, MediaState.LOST, reason)
                write_hops(transaction, [(event_seq, "media_lost", {"kind": kind, "seq": number, "reason": reason})])
        transaction.db.execute(f"UPDATE media SET path = NULL WHERE id IN ({marked})", part)
    return paths


def files(transaction: Transaction, wishes: Sequence[tuple[MediaKind, bool, int]]) -> Sequence[list[MediaFile]]:
    """Files of a kind, the oldest first: those that still wait for the cloud, or the others. (kind, waiting, limit)"""
    results = []
    for kind, waiting, limit in wishes:
        rows = transaction.db.execute(
            "SELECT media.id, event.event_id, media.kind, media.state, media.path, media.bytes FROM "
            "media INDEXED BY media_file "
            "JOIN event ON event.seq = media.event_seq WHERE media.path IS NOT NULL AND media.kind = ? "
            "AND (media.state = 'waiting') = ? ORDER BY media.id LIMIT ?",
            (kind, int(waiting), limit),
        )
        results.append(
            [MediaFile(row[0], row[1], MediaKind(row[2]), MediaState(row[3]), row[4], row[5]) for row in rows]
        )
    return results


def known_paths(transaction: Transaction, groups: Sequence[Collection[str]]) -> Sequence[set[str]]:
    """Which of these files belong to a row; the others were left by a crash."""
    every = {
        path
        for (path,) in transaction.db.execute("SELECT path FROM media INDEXED BY media_file WHERE path IS NOT NULL")
    }
    return [every & set(paths) for paths in groups]


def _known(transaction: Transaction, ids: Sequence[int]) -> dict[int, Row]:
    found: dict[int, Row] = {}
    for part in chunks(ids):
        query = f"SELECT id, event_seq, kind, seq, reason, state FROM media WHERE id IN ({places(part)})"
        found.update((row[0], row) for row in transaction.db.execute(query, part))
    return found
