"""What people read: counts, lists and the story of one event, from a connection that cannot write.

Works beside a running gateway (readers of a WAL never wait for the writer, nor it for them) and without one. Nothing
here changes the file, and nothing shows a secret: addresses of slots are never read.
"""

# ruff: noqa: S608 - statements are put together from our own words; every value is a parameter

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.model import iso_utc
from gateway.outbox.database import read_only, reading
from gateway.outbox.rows import NEVER
from gateway.states import EventState, MediaState

_LISTED: Final = (
    "event_id",
    "state",
    "event_type",
    "event_status",
    "camera",
    "camera_id",
    "event_at",
    "received_at",
    "age_unknown_ms",
    "delivered_at",
    "attempts",
    "chekt_event_id",
    "reason",
    "kind",
    "source",
    "source_camera",
    "location_id",
    "recorder_id",
    "signal",
    "signalled",
    "unclear",
    "http_status",
    "response_id",
    "follows",
    "topic",
    "acknowledged_at",
    "raw_bytes",
    "raw_sha256",
)
_FOR_HOPS: Final = (
    "seq",
    "received_ticks",
    "stored_at",
    "stored_ticks",
    "acknowledged_ticks",
    "attempt_at",
    "attempt_ticks",
)
_PAGE_ROWS: Final = 500
_TIMES: Final = ("event_at", "received_at", "delivered_at", "acknowledged_at")


@dataclass(frozen=True, slots=True)
class CameraSeen:
    name: str
    last_message_at: int | None
    last_event_at: int | None


@dataclass(frozen=True, slots=True)
class Overview:
    """The state on disk at one moment."""

    events: Mapping[str, int]  # state -> count
    uploads: Mapping[str, int]  # state -> count
    counters: Mapping[str, int]  # all of them: messages by their end, rows ever written, rows pruned by state
    media_bytes: int
    oldest_undelivered_at: int | None  # receipt of the oldest event that still goes to the cloud
    oldest_alarm_at: int | None  # the same among alarms
    dead_unseen: int  # dead events that nobody has looked at
    newest_unreadable_at: int | None  # receipt of the newest message that could not be understood
    cameras: tuple[CameraSeen, ...]


@dataclass(frozen=True, slots=True)
class Filter:
    state: EventState | None = None
    camera: str | None = None
    since_at: int | None = None  # received at or after
    limit: int | None = None


class Ledger:
    """A view of the outbox. Use as a context manager; every method is one consistent look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = read_only(path)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def overview(self) -> Overview:
        with reading(self._db, self._path):
            counters: dict[str, int] = dict(self._db.execute("SELECT name, value FROM counter"))
            oldest = {rank: self._oldest_at(rank) for rank in (0, 1, 2)}
            cameras = self._db.execute(
                "SELECT name, last_message_at, last_event_at FROM camera_seen ORDER BY name"
            ).fetchall()
            (unseen,) = self._db.execute(
                "SELECT count(*) FROM event INDEXED BY event_for_people WHERE state IN "
                "('dead', 'unmapped', 'unreadable', 'discarded') AND state = 'dead' AND looked_at IS NULL"
            ).fetchone()
            unreadable = self._db.execute(
                "SELECT received_at FROM event INDEXED BY event_for_people WHERE state IN "
                "('dead', 'unmapped', 'unreadable', 'discarded') AND state = 'unreadable' ORDER BY seq DESC LIMIT 1"
            ).fetchone()
        known = [at for at in oldest.values() if at is not None]
        return Overview(
            events={state.value: counters.get(f"state_{state}", 0) for state in EventState},
            uploads={state.value: counters.get(f"media_{state}", 0) for state in MediaState},
            counters=counters,
            media_bytes=counters.get("media_bytes", 0),
            oldest_undelivered_at=min(known, default=None),
            oldest_alarm_at=oldest[0],
            dead_unseen=unseen,
            newest_unreadable_at=None if unreadable is None else unreadable[0],
            cameras=tuple(CameraSeen(*row) for row in cameras),
        )

    def _oldest_at(self, rank: int) -> int | None:
        """By our own clock, which does not jump; a restore that waits for its beginning is no debt of its own."""
        row = self._db.execute(
            "SELECT received_at FROM event INDEXED BY event_unsettled WHERE state IN ('pending', "
            "'sending') AND rank = ? "
            "AND NOT (state = 'pending' AND next_at = ?) ORDER BY received_ticks LIMIT 1",
            (rank, NEVER),
        ).fetchone()
        return None if row is None else row[0]

    def events(self, wanted: Filter) -> Iterator[dict[str, Any]]:
        """The newest first. Times as people write them, UTC."""
        for row in self._select(wanted, newest_first=True):
            yield _public(row)

    def export(self, since_at: int) -> Iterator[dict[str, Any]]:
        """The oldest first, each with its hops."""
        for row in self._select(Filter(since_at=since_at), newest_first=False):
            with reading(self._db, self._path):
                hops = self._hops(row)
            yield _public(row) | {"hops": hops}

    def _select(self, wanted: Filter, *, newest_first: bool) -> Iterator[dict[str, Any]]:
        conditions: list[str] = []
        values: list[Any] = []
        if wanted.state is not None:
            if wanted.state in (EventState.DEAD, EventState.UNMAPPED, EventState.UNREADABLE, EventState.DISCARDED):
                conditions.append("state IN ('dead', 'unmapped', 'unreadable', 'discarded')")  # as the index says it
            conditions.append("state = ?")
            values.append(wanted.state.value)
        if wanted.camera is not None:
            conditions.append("? IN (camera, source_camera, camera_id)")
            values.append(wanted.camera)
        if wanted.since_at is not None:
            conditions.append("received_at >= ?")
            values.append(wanted.since_at)
        names = [*_FOR_HOPS, *_LISTED]
        conditions.append("seq < ?" if newest_first else "seq > ?")
        query = (
            f"SELECT {', '.join(names)} FROM event WHERE {' AND '.join(conditions)} "
            f"ORDER BY seq {'DESC' if newest_first else 'ASC'} LIMIT ?"
        )
        # In pages: a look that lasts as long as somebody reads a pipe would keep the journal from being carried over.
        last, left = (NEVER, wanted.limit) if newest_first else (0, wanted.limit)
        while left is None or left > 0:
            size = _PAGE_ROWS if left is None else min(left, _PAGE_ROWS)
            with reading(self._db, self._path):
                rows = self._db.execute(query, [*values, last, size]).fetchall()
            yield from (dict(zip(names, row, strict=True)) for row in rows)
            if len(rows) < size:
                return
            last = rows[-1][0]
            left = None if left is None else left - len(rows)

    def trace(self, event_id: str) -> dict[str, Any] | None:
        """Everything that happened to one event: its row, its pictures, and each hop with both times."""
        names = [*_FOR_HOPS, "details", *_LISTED]
        with reading(self._db, self._path):
            row = self._db.execute(f"SELECT {', '.join(names)} FROM event WHERE event_id = ?", (event_id,)).fetchone()
            if row is None:
                return None
            event = dict(zip(names, row, strict=True))
            hops = self._hops(event)
            media = [
                dict(
                    zip(("kind", "seq", "state", "bytes", "sha256", "on_disk", "has_slot", "reason"), one, strict=True)
                )
                for one in self._db.execute(
                    "SELECT kind, seq, state, bytes, sha256, path IS NOT NULL, put_url IS NOT NULL, reason "
                    "FROM media WHERE event_seq = ? ORDER BY id",
                    (event["seq"],),
                )
            ]
        for one in media:
            one["on_disk"], one["has_slot"] = bool(one["on_disk"]), bool(one["has_slot"])
        return _public(event) | {"details": json.loads(event["details"]), "media": media, "hops": hops}

    def _hops(self, event: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Receipt, commit and acknowledgement stand in the row, the rest in the ledger; ordered by our own clock."""
        topic = {"topic": event["topic"]} if event["topic"] else {}
        hops = [_hop("received", event["received_at"], event["received_ticks"], topic)]
        hops.append(_hop("stored", event["stored_at"], event["stored_ticks"], {}))
        if event["acknowledged_at"] is not None:
            hops.append(_hop("acknowledged", event["acknowledged_at"], event["acknowledged_ticks"], {}))
        query = "SELECT at, ticks, what, detail FROM hop WHERE event_seq = ? ORDER BY id"
        for at, ticks, what, detail in self._db.execute(query, (event["seq"],)):
            hops += _spread(at, ticks, what, json.loads(detail))
        if event["state"] == EventState.SENDING:
            hops.append(
                _hop("attempt_started", event["attempt_at"], event["attempt_ticks"], {"attempt": event["attempts"]})
            )
        hops.sort(key=lambda hop: hop["ticks"])
        return hops


def _spread(at: int, ticks: int, what: str, detail: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """A row about an attempt tells its start, the cloud's answer and what we made of it."""
    if what not in ("attempt", "recovered"):
        return [_hop(what, at, ticks, detail)]
    number = {"attempt": detail.pop("attempt", None)}
    hops = [_hop("attempt_started", detail.pop("started_at", at), detail.pop("started_ticks", ticks), number)]
    answer = detail.pop("answer", None)
    if answer is not None:
        hops.append(_hop("answered", at, ticks, number | answer))
    if what == "recovered":
        return [*hops, _hop("recovered", at, ticks, number | detail)]
    return [*hops, _hop("settled", at, ticks, number | detail)]


def _hop(what: str, at: int, ticks: int, detail: Mapping[str, Any]) -> dict[str, Any]:
    return {"what": what, "at": iso_utc(at), "ticks": ticks, "detail": dict(detail)}


def _public(row: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: row[name] for name in _LISTED}
    for name in _TIMES:
        shown[name] = None if row[name] is None else iso_utc(row[name])
    shown["event_time"] = shown.pop("event_at")
    shown["signal"] = bool(shown["signal"])
    shown["signalled"] = None if shown["signalled"] is None else bool(shown["signalled"])
    return shown
