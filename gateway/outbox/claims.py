"""Choosing: which events are sent next, and fixing their bytes in the same commit.

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
from typing import Any, Final, NamedTuple

import structlog

from gateway.model import ClaimedEvent, Event, EventStatus, EventType, MediaKind, MediaOnDisk
from gateway.outbox.rows import EVENT_COLUMNS, NEVER, Compose, Row, chunks, event_of, flat, marks, places, to_json
from gateway.outbox.writer import Transaction
from gateway.states import EventState, require_event

log = structlog.get_logger()

FRESH_MS: Final = 10_000  # an alarm is fresh for this long after its receipt
HEAD_ROWS: Final = 64  # looked at before going from lane to lane
PROMOTED_ROWS: Final = 256  # deferred events that become due in one claim; more of them follow in the next
FRESH_IN_A_ROW: Final = 3  # then it is the backlog's turn
ALARM_WAITS_MS: Final = 30_000  # at most, for an older `armed` of its site
DISARM_WAITS_MS: Final = 10 * 60_000  # at most, for older alarms of its site
COMPOSE_RETRY_MS: Final = 60_000  # after an error of our own while composing
COMPOSE_FAULTS_TO_DIE: Final = 5
COMPOSE_FAULTS_SPAN_MS: Final = 60 * 60_000

_CANDIDATE: Final = "seq, lane, location_id, event_type, event_status, event_at, received_ticks"
_UNSETTLED: Final = "state IN ('pending', 'sending')"
_READY: Final = "state = 'pending' AND ready = 1"

PROMOTE: Final = (
    "UPDATE event SET ready = 1 WHERE seq IN (SELECT seq FROM event INDEXED BY event_deferred "
    "WHERE state = 'pending' AND ready = 0 AND next_at <= ? ORDER BY next_at LIMIT ?)"
)
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
BACKLOG_REST: Final = (
    f"SELECT {_CANDIDATE} FROM event INDEXED BY event_ready WHERE {_READY} AND rank > 0 ORDER BY rank, seq LIMIT ?"
)
ARMING: Final = (
    "SELECT seq, location_id, event_status, event_at, received_ticks FROM event INDEXED BY event_arming "
    f"WHERE event_type = 'arming' AND {_UNSETTLED}"
)
OLDER_ALARM: Final = (
    "SELECT 1 FROM event INDEXED BY event_unsettled "
    f"WHERE {_UNSETTLED} AND rank = 0 AND location_id = ? AND event_at < ? LIMIT 1"
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
    """Where the arming of a site is on its way: who has to wait for whom."""
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
                location == candidate.location_id and status == EventStatus.ACTIVE and at <= candidate.event_at
                for _, location, status, at, _ in rows
            )
        if age >= DISARM_WAITS_MS:
            return False
        earlier = any(
            location == candidate.location_id and (at, seq) < (candidate.event_at, candidate.seq)
            for seq, location, _, at, _ in rows
        )
        if earlier or candidate.event_status == EventStatus.ACTIVE:
            return earlier
        alarm = transaction.db.execute(OLDER_ALARM, (candidate.location_id, candidate.event_at)).fetchone()
        return alarm is not None

    return waits


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
        event = event_of((*row[:2], EventState.SENDING, *row[3:20], row[20] + 1, *row[21:27]))
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
