"""The times that equipment writes -> wall milliseconds, and which of two clocks to believe. Pure.

Milliseconds are cut off, never rounded, so that an event is never dated after what was sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from functools import partial
from typing import Any, Final, NamedTuple

# CHeKT Event API v0.8 suggests the time of receipt when the source's clock is off by more than 5 minutes (Q20).
SKEW_LIMIT_MS: Final = 5 * 60 * 1000

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ZERO: Final = Decimal(0)
_LATEST_MS: Final = 4_102_444_800_000  # 2100-01-01; a unix time in milliseconds read as seconds lies far beyond


def time_reader(formats: Sequence[str], zone: tzinfo) -> Callable[[Any], int | None]:
    """A reader of what is written in one of the formats; the first that fits decides. `zone` is for local times.

    `unix` (seconds), `unix_ms`, `iso8601`, `iso8601_utc` (UTC where it names no zone), or a pattern of strptime. The
    reader says None for what is no time between 1970 and 2100.
    """
    readers = [_reader(name, zone) for name in formats]
    if len(readers) == 1:
        return readers[0]

    def read(value: Any) -> int | None:
        return next((at for reader in readers if (at := reader(value)) is not None), None)

    return read


def _reader(name: str, zone: tzinfo) -> Callable[[Any], int | None]:
    if name == "unix":
        return partial(_unix, 1000, Decimal(_LATEST_MS // 1000))
    if name == "unix_ms":
        return partial(_unix, 1, Decimal(_LATEST_MS))
    if name in ("iso8601", "iso8601_utc"):
        return partial(_written, datetime.fromisoformat, zone if name == "iso8601" else UTC)
    return partial(_written, lambda text: datetime.strptime(text, name), zone)  # noqa: DTZ007, the zone is given there


def _unix(factor: int, latest: Decimal, value: Any) -> int | None:
    if type(value) is str:
        # Some publishers quote their numbers. Plain digits only: no exponents, signs or underscores.
        whole, _, fraction = value.partition(".")
        if not (0 < len(whole) <= 15 and len(fraction) <= 20 and (whole + fraction).isdecimal() and value.isascii()):
            return None
        value = Decimal(value)
    elif type(value) is not Decimal and type(value) is not int:
        return None
    return int(value * factor) or None if _ZERO < value < latest else None


# Longer than any time. Nanoseconds (Go, Java) are read, cut to microseconds; `2024-01-22T11:47:0500:00` of some
# Hikvision firmware has lost the sign of its offset and is no time: the receipt counts, the text is kept.
_MAX_LENGTH: Final = 48


def _written(parse: Callable[[str], datetime], zone: tzinfo, value: Any) -> int | None:
    if type(value) is not str or len(value) > _MAX_LENGTH:
        return None
    try:
        read = parse(value.strip())
        if read.tzinfo is None:
            read = read.replace(tzinfo=zone)
        at = (read - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError, re.error):
        return None
    return at if 0 < at < _LATEST_MS else None


class Judged(NamedTuple):
    """When an event happened, and what is known about that."""

    event_at: int
    shift: int  # what was added to the equipment's time; its other times take the same
    device_time: int | None  # the equipment's own time where it was not believed
    offset: int | None  # of the equipment's clock, where this message tells it: to remember
    age_unknown_ms: int | None


def judge_time(
    event_at: int | None,
    sent_at: int | None,
    *,
    received_at: int,
    waited_ms: int | None,
    offset: int | None,
) -> Judged:
    """Which clock to believe.

    Live (`waited_ms` None): an equipment time further than the limit from the receipt, on either side, is replaced by
    the receipt. That covers a wrong clock, and also an alarm that grew out of something older: a review that becomes
    an alert after ten minutes is an alarm of now, and its pictures are those of now. `sent_at`, the equipment's
    clock when it sent this, tells the offset of that clock, which corrects messages that waited in the broker: of
    those the receipt says nothing, except that nothing happens after it. Without an offset their age is unknown,
    at most `waited_ms`.
    """
    if waited_ms is None:
        learnt = None
        if sent_at is not None:
            off = received_at - sent_at
            learnt = 0 if abs(off) <= SKEW_LIMIT_MS else off
        if event_at is None:
            return Judged(received_at, 0, None, learnt, None)
        off = received_at - event_at
        if abs(off) <= SKEW_LIMIT_MS:
            return Judged(event_at, 0, None, learnt, None)
        return Judged(received_at, off, event_at, learnt, None)
    if event_at is None:
        return Judged(received_at, 0, None, None, waited_ms)
    shift = offset or 0
    if event_at + shift > received_at + SKEW_LIMIT_MS:
        return Judged(received_at, received_at - event_at, event_at, None, waited_ms)
    return Judged(event_at + shift, shift, event_at if shift else None, None, waited_ms if offset is None else None)


_of_row: Final = time_reader(["iso8601"], UTC)


def judge_again(
    event_at: int, received_at: int, right_at: int, details: Mapping[str, Any], age_unknown_ms: int | None
) -> int:
    """When it happened, now that its receipt was at `right_at` and not at `received_at`: our own clock was wrong.

    The equipment's own time is believed as `judge_time` would have, had our clock been right; what was reckoned from
    our clock moves with it.
    """
    device_time = _of_row(details.get("device_time"))
    if device_time is None and event_at == received_at:
        return right_at
    believed = event_at if device_time is None else device_time
    if abs(believed - right_at) <= SKEW_LIMIT_MS or (age_unknown_ms is not None and 0 < believed <= right_at):
        return believed
    return event_at + right_at - received_at
