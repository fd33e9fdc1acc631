"""Times of rows that were received while the machine's clock was wrong, once the right time is known.

Ticks never lie within one life of the gateway: what was received then is dated exactly. Of earlier lives it is not
known how long nobody ran; their rows are touched only where they tell an impossible time, and get the latest possible.
What waited in the broker while nobody ran has another longest time then, too. What the cloud may have seen stays as it
was sent. `judge_again` is a rule of the sources and comes in as an argument.
"""

# ruff: noqa: S608 - statements are put together from our own words; every value is a parameter

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.model import EARLIEST_AT, bound_age
from gateway.outbox.claims import write_hops
from gateway.outbox.rows import Row, to_json
from gateway.outbox.writer import Transaction
from gateway.states import EventState

CORRECTED_ROWS: Final = 500  # in one commit
AGREE_MS: Final = 30_000
# A trouble is stored when its delay is over, but tells the receipt of the message that began it.
TROUBLE_DELAY_MS: Final = 60 * 60_000

JudgeAgain = Callable[[int, int, int, Mapping[str, Any], int | None], int]
"""event_at, received_at, the right received_at, details, age_unknown_ms -> the right event_at"""

_WRONG: Final = (
    "received_ticks >= :first AND ((received_ticks >= :since AND abs(:base + received_ticks - received_at) > "
    f"iif(event_type = 'trouble', {AGREE_MS + TROUBLE_DELAY_MS}, {AGREE_MS})) OR "
    f"(received_ticks < :life AND received_ticks >= :suspect AND (received_at < {EARLIEST_AT} "
    f"OR (:sure AND received_at > :base + received_ticks + {AGREE_MS}))))"
)
_COLUMNS: Final = "seq, state, fixed, event_at, received_at, received_ticks, details, age_unknown_ms, away_since_at"
UNSETTLED: Final = (
    f"SELECT {_COLUMNS} FROM event INDEXED BY event_unsettled WHERE state IN ('pending', 'sending') "
    f"AND rank IN (0, 1, 2) AND {_WRONG} LIMIT {CORRECTED_ROWS}"
)
FOR_PEOPLE: Final = (
    f"SELECT {_COLUMNS} FROM event INDEXED BY event_for_people WHERE state IN ('dead', 'unmapped', 'unreadable', "
    f"'discarded') AND state IN ('dead', 'unmapped', 'unreadable') AND {_WRONG} LIMIT {CORRECTED_ROWS}"
)


@dataclass(frozen=True, slots=True)
class Correction:
    base: int  # wall time less ticks, as it should be
    since_ticks: int  # in this life the clock has not been known to be right since then
    life_ticks: int  # when this life began
    suspect_ticks: int  # earlier lives are looked at from here on; not before `life_ticks`: not at all
    judge_again: JudgeAgain
    sure: bool  # somebody vouches for `base`; else it is only better than 1970, and may itself lie behind
    adopt: Callable[[int], None]  # called in the writing thread, with the commit: the clock goes on from `base`


def correct(transaction: Transaction, corrections: Sequence[Correction]) -> Sequence[int]:
    return [_correct(transaction, correction) for correction in corrections]


def _correct(transaction: Transaction, correction: Correction) -> int:
    """Returns how many rows were corrected; CORRECTED_ROWS: there may be more."""
    db = transaction.db
    wanted = {"base": correction.base, "since": correction.since_ticks, "life": correction.life_ticks}
    wanted |= {"sure": int(correction.sure), "suspect": correction.suspect_ticks}
    wanted["first"] = min(correction.since_ticks, correction.suspect_ticks)  # by index, whatever waits from before
    rows = db.execute(UNSETTLED, wanted).fetchall()
    if len(rows) < CORRECTED_ROWS:
        rows += db.execute(FOR_PEOPLE, wanted).fetchall()[: CORRECTED_ROWS - len(rows)]
    for row in rows:
        _correct_row(transaction, row, correction)
    # What was heard "in the future" would make whatever waits in the broker look new.
    now = correction.base + transaction.ticks
    for column in ("last_message_at", "last_event_at") if correction.sure else ():
        db.execute(f"UPDATE camera_seen SET {column} = :now WHERE {column} > :now + {AGREE_MS}", {"now": now})
    if len(rows) < CORRECTED_ROWS:
        transaction.after_commit(lambda: correction.adopt(correction.base))
    return len(rows)


def _correct_row(transaction: Transaction, row: Row, correction: Correction) -> None:
    seq, state, fixed, event_at, received_at, received_ticks, details, age_unknown_ms, away_since_at = row
    right = correction.base + received_ticks
    by = right - received_at
    db = transaction.db
    db.execute(
        "UPDATE event SET received_at = ?, stored_at = stored_at + ?, acknowledged_at = acknowledged_at + ? "
        "WHERE seq = ?",
        (right, by, by, seq),
    )
    if away_since_at is not None:
        db.execute("UPDATE event SET age_unknown_ms = ? WHERE seq = ?", (bound_age(right, away_since_at), seq))
    hop = {"by_ms": by, "received_at": received_at}
    if state != EventState.SENDING and not fixed:  # nobody outside has seen its bytes
        event_right = correction.judge_again(event_at, received_at, right, json.loads(details), age_unknown_ms)
        db.execute(
            "UPDATE event SET event_at = ?, body = NULL, idempotency_key = NULL, sent_at = NULL, signalled = NULL "
            "WHERE seq = ?",
            (event_right, seq),
        )
        _correct_media(transaction, seq, event_right - event_at, by)
        hop["event_at"] = event_at
    write_hops(transaction, [(seq, "clock_corrected", hop)])


def _correct_media(transaction: Transaction, seq: int, event_by: int, received_by: int) -> None:
    """The window moves with the event, and the offset of the equipment's clock was measured by ours."""
    found = transaction.db.execute(
        "SELECT id, recipe FROM media WHERE event_seq = ? AND state = 'waiting' AND path IS NULL", (seq,)
    ).fetchall()
    for media_id, text in found:
        recipe = json.loads(text)
        if "clock_offset_ms" in recipe:
            offset = recipe.pop("clock_offset_ms") + received_by
            if abs(offset) > AGREE_MS:
                recipe["clock_offset_ms"] = offset
        transaction.db.execute(
            "UPDATE media SET from_at = from_at + ?, to_at = to_at + ?, recipe = ? WHERE id = ?",
            (event_by, event_by, to_json(recipe), media_id),
        )
