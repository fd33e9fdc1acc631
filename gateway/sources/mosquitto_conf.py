"""What a Mosquitto's configuration would lose of what it keeps for us, and the line that mends it. Pure.

Follows mosquitto.conf(5) and what was measured with 2.0.11 to 2.1.2: the newest messages beyond the limits are dropped,
though their publisher has been told that they arrived; without persistence, or between two saves, a broker that dies
forgets sessions and queues. Files of `include_dir` are read as if they stood in its place, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

ENOUGH_MESSAGES: Final = 10_000  # an alarm a second for close to three hours
GOOD_MESSAGES: Final = 200_000
GOOD_AUTOSAVE_SECONDS: Final = 60
GOOD_INFLIGHT: Final = 200

_DEFAULTS: Final = {  # as in mosquitto.conf(5)
    "persistence": "false",
    "autosave_interval": "1800",
    "autosave_on_changes": "false",
    "max_queued_messages": "1000",
    "max_queued_bytes": "0",
    "max_inflight_messages": "20",
    "message_size_limit": "0",
}
_INCLUDES: Final = 10  # files within files


class Unreadable(Exception):
    """A file of the configuration cannot be read; `str()` says which and why."""


@dataclass(frozen=True, slots=True)
class Setting:
    value: str
    where: str  # file:line


@dataclass(frozen=True, slots=True)
class Weakness:
    """What would be lost, and what to write instead. `fatal`: alarms that were promised are lost."""

    fatal: bool
    sentence: str
    line: str


def read_settings(
    path: str, read: Callable[[str], str], list_folder: Callable[[str], Sequence[str]], depth: int = 0
) -> dict[str, Setting]:
    """The last value of each setting. `list_folder` gives full names. Raises Unreadable."""
    settings: dict[str, Setting] = {}
    for number, line in enumerate(read(path).splitlines(), 1):
        name, _, value = line.strip().partition(" ")
        value = value.strip()
        if not name or name.startswith("#"):
            continue
        if name == "include_dir":
            if depth >= _INCLUDES:
                raise Unreadable(f"{path}:{number}: include_dir includes itself")
            for file in sorted(file for file in list_folder(value) if file.endswith(".conf")):
                settings |= read_settings(file, read, list_folder, depth + 1)
            continue
        key = f"listener {value}" if name == "listener" else name  # the one that there may be several of
        settings[key] = Setting(value, f"{path}:{number}")
    return settings


def ports(settings: dict[str, Setting]) -> frozenset[int]:
    """Where a broker with these settings listens."""
    named = [one.value.split()[0] for key, one in settings.items() if key == "port" or key.startswith("listener ")]
    return frozenset(int(port) for port in named if port.isdecimal()) or frozenset({1883})


def weaknesses(settings: dict[str, Setting]) -> list[Weakness]:
    """What a broker with these settings would lose."""

    def of(name: str) -> tuple[str, str]:
        known = settings.get(name)
        return (known.value, known.where) if known else (_DEFAULTS[name], "the default")

    def number(name: str) -> tuple[int, str]:
        value, where = of(name)
        first = value.split()[0] if value else ""  # mosquitto reads the first word and leaves the rest of the line
        return (int(first) if first.isdecimal() else 0), where

    found = []
    value, where = of("persistence")
    if value.lower() != "true":
        found.append(
            Weakness(
                True,
                f"persistence is {value} ({where}): a restart of the broker loses our session and all that waits in it",
                "persistence true",
            )
        )
    else:
        seconds, where = number("autosave_interval")
        unit = "changes" if of("autosave_on_changes")[0].lower() == "true" else "seconds"
        if not seconds or seconds > GOOD_AUTOSAVE_SECONDS:
            how = f"saves every {seconds} {unit}" if seconds else "saves only when it stops"
            found.append(
                Weakness(False, f"the broker {how} ({where}): a power cut loses what came since", "autosave_interval 5")
            )
    messages, where = number("max_queued_messages")
    if 0 < messages < ENOUGH_MESSAGES:
        found.append(
            Weakness(
                True,
                f"max_queued_messages is {messages} ({where}): of a longer queue the newest alarms are dropped, "
                "without a word to the camera",
                f"max_queued_messages {GOOD_MESSAGES}",
            )
        )
    size, where = number("max_queued_bytes")
    if size:
        found.append(
            Weakness(
                size < ENOUGH_MESSAGES * 500,
                f"max_queued_bytes is {size} ({where}): of a longer queue the newest alarms are dropped",
                "max_queued_bytes 0",
            )
        )
    inflight, where = number("max_inflight_messages")
    if 0 < inflight < GOOD_INFLIGHT:
        found.append(
            Weakness(
                False,
                f"max_inflight_messages is {inflight} ({where}): of a device with more QoS 2 messages "
                "under way some are dropped",
                f"max_inflight_messages {GOOD_INFLIGHT}",
            )
        )
    expiry = settings.get("persistent_client_expiration")
    if expiry is not None and expiry.value.endswith(("h", "d")):
        found.append(
            Weakness(
                True,
                f"persistent_client_expiration is {expiry.value} ({expiry.where}): after an absence of that length our "
                "session and all that waits in it are thrown away",
                "persistent_client_expiration 2m",
            )
        )
    limit, where = number("message_size_limit")
    if 0 < limit < 65_536:
        found.append(
            Weakness(
                False,
                f"message_size_limit is {limit} ({where}): larger alarms are dropped",
                "message_size_limit 0",
            )
        )
    return found


def upgrades_qos(settings: dict[str, Setting]) -> bool:
    """Whether what is published with QoS 0 is kept for us all the same."""
    return any(
        (known := settings.get(name)) is not None and known.value.lower() == "true"
        for name in ("upgrade_outgoing_qos", "queue_qos0_messages")
    )
