"""Recorders that remember what they said: how each kind is asked for what nobody heard, one file each.

Only where a message over MQTT and the recorder's own list name the same alarm in the same way; docs/families.md says of
each family why, or why not.
"""

from __future__ import annotations

from datetime import tzinfo

from gateway.sources.histories.frigate import Frigate
from gateway.sources.histories.shape import History
from gateway.sources.histories.unifi import UnifiProtect
from gateway.sources.histories.zoneminder import ZoneMinder


def can_be_asked(family: str, dialect: str | None) -> bool:
    return family in ("frigate", "zoneminder") or (family, dialect) == ("unifi", "pakerfeldt")


def make_history(family: str, dialect: str | None, *, topic_prefix: str, zone: tzinfo) -> History:
    """For what `can_be_asked`. `zone`: of the recorder, for lists in local time."""
    match family:
        case "frigate":
            return Frigate(dialect=dialect or "", topic_prefix=topic_prefix)
        case "zoneminder":
            return ZoneMinder(topic_prefix=topic_prefix, zone=zone)
        case "unifi":
            return UnifiProtect(topic_prefix=topic_prefix)
    raise ValueError(f"{family} has no list of what it said")
