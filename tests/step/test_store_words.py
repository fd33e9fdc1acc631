"""The schema says the same words as the code, explains every column, and its indexes are those that the queries use."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from gateway.model import EventStatus, EventType, MediaKind, lane_of
from gateway.outbox import choosing, claims, pictures
from gateway.outbox.database import schema_text
from gateway.outbox.opening import open_database
from gateway.outbox.rows import NEVER
from gateway.states import EventState, MediaState
from tests.step.outbox_kit import open_outbox


def words(table: str, column: str) -> set[str]:
    """Those of `CHECK (column IN ('…', '…'))`."""
    text = schema_text()
    body = text[text.index(f"CREATE TABLE {table} (") :]
    body = body[: body.index(") STRICT")]
    match = re.search(rf"CHECK \({column} IN \(([^)]*)\)\)", body)
    assert match, f"{table}.{column} has no list of words"
    return set(re.findall(r"'([^']+)'", match[1]))


@pytest.mark.parametrize(
    ("table", "column", "enum"),
    [
        ("event", "state", EventState),
        ("event", "event_type", EventType),
        ("event", "event_status", EventStatus),
        ("media", "state", MediaState),
        ("media", "kind", MediaKind),
    ],
)
def test_the_words_of_the_schema_are_those_of_the_code(table: str, column: str, enum: Any) -> None:
    assert words(table, column) == {member.value for member in enum}


def test_never_is_the_same_in_schema_and_code() -> None:
    assert f"next_at = {NEVER} OR" in schema_text()


def test_every_column_has_its_sentence() -> None:
    """In the schema itself, where it is defined."""
    silent = []
    for table in re.findall(r"CREATE TABLE \w+ \(.*?\n\) STRICT", schema_text(), re.DOTALL):
        for line in table.splitlines()[1:-1]:
            column = re.match(r"    ([a-z_0-9]+)\s+(INTEGER|TEXT|BLOB)", line)
            if column and not re.search(r"--\s+\S+ \S+|-- which|-- what|-- when", line):
                silent.append(f"{table.split()[2]}.{column[1]}")
    assert silent == []


def test_every_table_is_strict() -> None:
    assert schema_text().count("CREATE TABLE") == schema_text().count(") STRICT") == 8


async def test_the_schema_makes_the_same_lanes_as_the_code(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        arming = {"event_type": EventType.ARMING}
        await outbox.add(outbox.alarm("a", "c1"), outbox.alarm("b", camera_id=None, **arming))
        assert outbox.look("SELECT lane FROM event ORDER BY seq") == [lane_of("L", "c1"), lane_of("L", None)]
        for claimed in await outbox.store.claim(2):
            assert claimed.event.lane == lane_of("L", claimed.event.camera_id)


# What the schema refuses, whoever asks

BASE: dict[str, Any] = {
    "event_id": "x", "state": "pending", "ready": 1, "next_at": 0, "event_type": "alarm", "event_status": "active",
    "location_id": "L", "camera_id": "c", "source": "nvr", "state_key": "", "kind": "", "topic": "", "signal": 1,
    "details": "{}", "event_at": 0, "received_at": 0, "received_ticks": 0, "stored_at": 0, "waits_since_ticks": 0,
    "stored_ticks": 0,
}  # fmt: skip
SENT = {"body": b"x", "idempotency_key": "k", "sent_at": 0, "attempt_ticks": 0, "attempt_at": 0}
SENDING = {"state": "sending", "ready": 0, "next_at": NEVER, **SENT}
CLOSED = {"ready": 0, "next_at": NEVER, "closed_ticks": 0}


def insert(tmp_path: Path, changes: dict[str, Any]) -> None:
    opened = open_database(tmp_path / "outbox.db")
    row = BASE | changes
    statement = f"INSERT INTO event ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"  # noqa: S608 - our own names
    try:
        opened.db.execute(statement, list(row.values()))
    finally:
        opened.close()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        SENDING,
        {"state": "delivered", "delivered_at": 1, **CLOSED},
        {"state": "unreadable", "reason": "no JSON", "raw": b"\xff", "raw_bytes": 1, "camera_id": None, **CLOSED},
        {"state": "unmapped", "ready": 0, "next_at": NEVER, "reason": "not configured", "camera_id": None},
        {"event_type": "arming", "camera_id": None},
    ],
    ids=lambda changes: changes.get("state", "pending"),
)
def test_the_schema_takes_what_is_right(tmp_path: Path, changes: dict[str, Any]) -> None:
    insert(tmp_path, changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "lost"},
        {"event_type": "test"},
        {"event_status": "open"},
        {"event_id": ""},
        {"event_id": "x" * 65},
        {"camera_id": None},
        {"details": "no json"},
        {"signal": 2},
        {**SENDING, "body": None, "idempotency_key": None, "sent_at": None},
        {**SENDING, "sent_at": None},
        {**SENDING, "ready": 1},
        {**SENDING, "next_at": 5},
        {"state": "delivered", **CLOSED},
        {"delivered_at": 1},
        {"state": "delivered", "delivered_at": 1, "ready": 0, "next_at": NEVER},
        {"state": "dead", "ready": 0, "next_at": NEVER},
        {"raw": b"\xff"},
        {"fixed": 1},
        {"received_at": "yesterday"},
    ],
    ids=str,
)
def test_the_schema_refuses_what_cannot_be(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        insert(tmp_path, changes)


# Plans: cost must not depend on how much waits


def plan(tmp_path: Path, query: str) -> list[str]:
    opened = open_database(tmp_path / "outbox.db")
    try:
        marks: Any = dict.fromkeys(re.findall(r":([a-z]+)", query), 1) or [1] * query.count("?")
        return [row[3] for row in opened.db.execute(f"EXPLAIN QUERY PLAN {query}", marks)]
    finally:
        opened.close()


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (claims.PROMOTE, "event_deferred"),
        (choosing.SENDING_LANES, "event_sending"),
        (choosing.FRESH_HEAD, "event_unsettled"),
        (choosing.BACKLOG_ALARMS, "event_ready"),
        (choosing.BELATED_ALARMS, "event_ready"),
        (choosing.BACKLOG_REST, "event_ready"),
        (choosing.ARMING, "event_arming"),
        (choosing.LANE_HEADS, "event_ready_lane"),
        (choosing.LANE_REST, "event_ready_lane"),
        (pictures.TO_FETCH, "media_to_fetch"),
        (pictures.TO_PUT, "media_to_put"),
        (pictures.TO_CONFIRM, "media_to_confirm"),
        (pictures.CLOSING, "media_slot"),
    ],
)
def test_what_is_asked_often_goes_by_a_partial_index(tmp_path: Path, query: str, index: str) -> None:
    steps = plan(tmp_path, query)
    assert any(re.search(rf"USING (COVERING )?INDEX {index}\b", step) for step in steps), steps
    assert not [step for step in steps if "TEMP B-TREE" in step], "sorting costs as much as there is"
    whole = [step for step in steps if re.match(r"SCAN (event|media)\b(?! USING)", step)]
    assert whole == [], "no query may walk over a whole table"
