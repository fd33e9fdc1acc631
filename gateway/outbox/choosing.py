"""Choosing which events are sent next.

Order: one event of a lane (camera) at a time; fresh alarms first, the oldest of them first; then the backlog, alarms
before troubles before arming, the oldest first; the backlog gets at least one in four while both wait. Arming and
alarms of a site keep to each other's time. Nothing that is deferred, held or in hand blocks others.

Cost: it looks at the heads of the queue by index, at most `HEAD_ROWS` each. Only if these are all of lanes that may
not go, it steps from lane to lane through the index. Both are independent of how many events wait.
"""

# ruff: noqa: S608 - statements are put together from our own words; every value is a parameter

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from gateway.model import EventStatus, EventType
from gateway.outbox.rows import NEVER, to_json
from gateway.outbox.writer import Transaction

FRESH_MS: Final = 10_000  # an alarm is fresh for this long after its receipt
HEAD_ROWS: Final = 64  # looked at before going from lane to lane
FRESH_IN_A_ROW: Final = 3  # then it is the backlog's turn
ALARM_WAITS_MS: Final = 30_000  # at most, for an older `armed` of its site
DISARM_WAITS_MS: Final = 10 * 60_000  # at most, for older alarms of its site

_CANDIDATE: Final = "seq, lane, location_id, event_type, event_status, event_at, received_ticks"
_UNSETTLED: Final = "state IN ('pending', 'sending')"
_READY: Final = "state = 'pending' AND ready = 1"

SENDING_LANES: Final = "SELECT lane FROM event INDEXED BY event_sending WHERE state = 'sending'"
# Without a look at `ready` in the condition, so that what is deferred among the fresh ones cannot make it long.
FRESH_HEAD: Final = (
    f"SELECT {_CANDIDATE}, ready FROM event INDEXED BY event_unsettled "
    f"WHERE {_UNSETTLED} AND rank = 0 AND received_ticks > ? ORDER BY received_ticks, seq LIMIT ?"
)
BACKLOG_ALARMS: Final = (
    f"SELECT {_CANDIDATE} FROM event INDEXED BY event_ready WHERE {_READY} AND rank = 0 AND seq < ? "
    "ORDER BY seq LIMIT ?"
)
# Received before the fresh ones and stored after them: what intake could not store at once.
BELATED_ALARMS: Final = (
    f"SELECT {_CANDIDATE} FROM event INDEXED BY event_ready WHERE {_READY} AND rank = 0 AND seq > ? "
    "ORDER BY seq LIMIT ?"
)
BACKLOG_REST: Final = (
    f"SELECT {_CANDIDATE} FROM event INDEXED BY event_ready WHERE {_READY} AND rank > 0 ORDER BY rank, seq LIMIT ?"
)
ARMING: Final = (
    "SELECT seq, location_id, event_status, event_at, received_ticks FROM event INDEXED BY event_arming "
    f"WHERE event_type = 'arming' AND {_UNSETTLED}"
)
OLDER_ALARM: Final = (
    "SELECT 1 FROM event INDEXED BY event_unsettled "
    f"WHERE {_UNSETTLED} AND rank = 0 AND location_id = ? AND (event_at, seq) < (?, ?) LIMIT 1"
)
# From lane to lane, and the first entry of each: only the index is read, however long a lane is.
_FIRST_OF_LANE: Final = (
    f"FROM event INDEXED BY event_ready_lane WHERE {_READY} AND lane = lanes.name ORDER BY rank, seq LIMIT 1"
)
LANE_HEADS: Final = (
    "WITH RECURSIVE lanes (name) AS ("
    f"SELECT (SELECT lane FROM event INDEXED BY event_ready_lane WHERE {_READY} ORDER BY lane LIMIT 1) UNION ALL "
    f"SELECT (SELECT lane FROM event INDEXED BY event_ready_lane WHERE {_READY} AND lane > lanes.name "
    "ORDER BY lane LIMIT 1) FROM lanes WHERE lanes.name IS NOT NULL) "
    f"SELECT name, (SELECT rank {_FIRST_OF_LANE}), (SELECT seq {_FIRST_OF_LANE}) FROM lanes WHERE name IS NOT NULL"
)
_OF_LANE: Final = f"SELECT seq FROM event INDEXED BY event_ready_lane WHERE {_READY} AND lane = free.lane AND rank"
# Where there are fresh ones: the oldest of them in each lane, and what else the lane has behind them.
LANE_REST: Final = (
    f"SELECT lane, ({_OF_LANE} = 0 AND seq >= :fresh ORDER BY seq LIMIT 1), ({_OF_LANE} = 1 ORDER BY seq LIMIT 1), "
    f"({_OF_LANE} = 2 ORDER BY seq LIMIT 1) FROM (SELECT value AS lane FROM json_each(:lanes)) AS free"
)
CANDIDATES: Final = f"SELECT {_CANDIDATE} FROM event WHERE seq IN (SELECT value FROM json_each(?))"


@dataclass(frozen=True, slots=True)
class Wish:
    """What the sender can take now. `held` lanes and locations wait for another reason than their own time."""

    limit: int
    busy_lanes: frozenset[str]
    held_lanes: frozenset[str]
    held_locations: frozenset[str]
    fresh_only: bool


class Candidate(NamedTuple):  # cheap to make: each claim looks at many
    seq: int
    lane: str
    location_id: str
    event_type: str
    event_status: str
    event_at: int
    received_ticks: int


def choose(transaction: Transaction, wish: Wish, in_a_row: int) -> tuple[list[int], int]:
    """Returns the seqs in the order in which they shall go, and how many fresh ones have now gone in a row."""
    db = transaction.db
    head = max(HEAD_ROWS, 2 * wish.limit)
    in_hand = {row[0] for row in db.execute(SENDING_LANES)}
    blocked = in_hand | wish.busy_lanes | wish.held_lanes
    waits = _arming_rule(transaction)

    def may_go(candidates: Iterable[Candidate]) -> list[Candidate]:
        return [
            c for c in candidates if c.lane not in blocked and c.location_id not in wish.held_locations and not waits(c)
        ]

    since = transaction.ticks - FRESH_MS
    fresh_rows = db.execute(FRESH_HEAD, (since, head)).fetchall()
    fresh = [Candidate._make(row[:-1]) for row in fresh_rows if row[-1]]
    first_fresh = min((row[0] for row in fresh_rows), default=NEVER)
    backlog: list[Candidate] = []
    truncated = len(fresh_rows) == head
    if not wish.fresh_only:
        backlog = list(map(Candidate._make, db.execute(BACKLOG_ALARMS, (first_fresh, head))))
        if len(backlog) == head:
            truncated = True
        else:
            if fresh_rows:
                belated = map(Candidate._make, db.execute(BELATED_ALARMS, (first_fresh, head)))
                backlog += [candidate for candidate in belated if candidate.received_ticks <= since]
            rest = list(map(Candidate._make, db.execute(BACKLOG_REST, (head,))))
            truncated = truncated or len(rest) == head
            backlog += rest
    chosen, turns = merge(may_go(fresh), may_go(backlog), wish.limit, in_a_row)
    if len(chosen) == wish.limit or not truncated:
        return chosen, turns
    # The heads belong to few lanes, or to such as may not go: look at the head of every other lane.
    closed = tuple(f"{location}/" for location in wish.held_locations)
    fresh, backlog = _lane_heads(
        transaction, first_fresh, lambda lane: lane not in blocked and not lane.startswith(closed), head
    )
    return merge(may_go(fresh), [] if wish.fresh_only else may_go(backlog), wish.limit, in_a_row)


def _lane_heads(
    transaction: Transaction, first_fresh: int, is_free: Callable[[str], bool], most: int
) -> tuple[list[Candidate], list[Candidate]]:
    """The fresh ones and the backlog, each with at most one of a lane, in their order."""
    db = transaction.db
    free = {lane: (rank, seq) for lane, rank, seq in db.execute(LANE_HEADS) if is_free(lane)}
    backlog = [head for head in free.values() if head[0] > 0 or head[1] < first_fresh]
    fresh: list[int] = []
    if first_fresh < NEVER:
        for lane, alarm, trouble, arming in db.execute(LANE_REST, {"lanes": to_json(list(free)), "fresh": first_fresh}):
            if alarm is not None:
                fresh.append(alarm)
                if alarm == free[lane][1]:  # no older alarm: what else waits there is its backlog
                    backlog += [head for head in ((1, trouble), (2, arming)) if head[1] is not None][:1]
    wanted = [*sorted(fresh)[:most], *(seq for _, seq in sorted(backlog)[:most])]
    found = {row[0]: Candidate._make(row) for row in db.execute(CANDIDATES, (to_json(wanted),))}
    oldest_first = sorted((found[seq] for seq in fresh if seq in found), key=lambda c: (c.received_ticks, c.seq))
    return oldest_first, [found[seq] for _, seq in sorted(backlog) if seq in found]


def merge(fresh: Sequence[Candidate], backlog: Sequence[Candidate], limit: int, in_a_row: int) -> tuple[list[int], int]:
    """Both in their order; never two of a lane; one in four from the backlog while both wait."""
    taken: set[str] = set()
    chosen: list[int] = []
    streams = {"fresh": iter(fresh), "backlog": iter(backlog)}
    while len(chosen) < limit:
        order = ("backlog", "fresh") if in_a_row >= FRESH_IN_A_ROW else ("fresh", "backlog")
        for name in order:
            candidate = _next(streams[name], taken)
            if candidate is not None:
                chosen.append(candidate.seq)
                taken.add(candidate.lane)
                in_a_row = in_a_row + 1 if name == "fresh" else 0
                break
        else:
            break
    return chosen, in_a_row


def _next(stream: Iterator[Candidate], taken: Collection[str]) -> Candidate | None:
    return next((candidate for candidate in stream if candidate.lane not in taken), None)


def _arming_rule(transaction: Transaction) -> Callable[[Candidate], bool]:
    """Where the arming of a site is on its way: who has to wait for whom.

    Earlier is the same for all: by time, then by receipt. Else several of one millisecond could wait for each other.
    """
    rows = transaction.db.execute(ARMING).fetchall()
    if not rows:
        return lambda candidate: False
    ticks = transaction.ticks

    def waits(candidate: Candidate) -> bool:
        age = ticks - candidate.received_ticks
        if candidate.event_type == EventType.TROUBLE:
            return False
        if candidate.event_type == EventType.ALARM:
            return age < ALARM_WAITS_MS and any(
                location == candidate.location_id
                and status == EventStatus.ACTIVE
                and (at, seq) < (candidate.event_at, candidate.seq)
                for seq, location, status, at, _ in rows
            )
        if age >= DISARM_WAITS_MS:
            return False
        earlier = any(
            location == candidate.location_id and (at, seq) < (candidate.event_at, candidate.seq)
            for seq, location, _, at, _ in rows
        )
        if earlier or candidate.event_status == EventStatus.ACTIVE:
            return earlier
        older = (candidate.location_id, candidate.event_at, candidate.seq)
        alarm = transaction.db.execute(OLDER_ALARM, older).fetchone()
        return alarm is not None

    return waits
