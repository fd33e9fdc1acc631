"""What may go wrong on request: faults as values, and the book that says which one comes next.

A fault is for one kind of request: "event" (the POST), "token", "put" (storage) or "callback". `script` is used up one
entry a request; an entry may be one fault, several at once, or None for a request that goes well. Standing faults apply
to every request until cleared, and may be confined to one camera. Every fault can be written in JSON, for the
simulator that runs as its own process.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

KINDS: Final = ("event", "token", "put", "callback")


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong with one request."""


@dataclass(frozen=True)
class Status(Fault):
    """An error answer. Without `body` it has the shape that this kind of request documents; nothing is accepted."""

    status: int
    retry_after: str | None = None
    body: str | None = None
    content_type: str = "application/json"


@dataclass(frozen=True)
class Html(Fault):
    """A captive portal or an edge proxy: a page instead of the API; nothing is accepted."""

    status: int = 200


@dataclass(frozen=True)
class RefuseCredentials(Fault):
    """The credentials were revoked: 401 (storage: 403)."""


@dataclass(frozen=True)
class Drop(Fault):
    """The connection is closed before the request was looked at; nothing is accepted."""


@dataclass(frozen=True)
class DropBeforeAnswer(Fault):
    """Accepted, and then the connection is closed without an answer."""


@dataclass(frozen=True)
class CutOff(Fault):
    """Accepted; the answer breaks off after half of its body."""


@dataclass(frozen=True)
class Delay(Fault):
    """Waits `seconds` before the request is looked at; with `after` between accepting and answering."""

    seconds: float
    after: bool = False


@dataclass(frozen=True)
class Trickle(Fault):
    """The answer comes in drops over `seconds`."""

    seconds: float = 2.0
    drops: int = 8


@dataclass(frozen=True)
class Stall(Fault):
    """Storage reads the body up to this share of it, and then neither reads nor answers."""

    at: float = 0.9
    seconds: float = 120.0


@dataclass(frozen=True)
class Discard(Fault):
    """The event is taken and discarded (CHeKT Event API v0.8, `status`)."""

    reason: str = "Event discarded: device is disarmed"


@dataclass(frozen=True)
class ExpireSlots(Fault):
    """The slots of this answer live only so long; 0 is over at once."""

    seconds: int = 0


@dataclass(frozen=True)
class Slots(Fault):
    """Other slots than asked for; None leaves a kind as asked. The document's own example offers more than asked."""

    snapshots: int | None = None
    short: bool | None = None
    event: bool | None = None


@dataclass(frozen=True)
class NoUploads(Fault):
    """`uploads` is null, `{}` or absent."""

    shape: str = "null"  # null, empty, absent


@dataclass(frozen=True)
class StorageError(Fault):
    """An error of S3 with its XML body."""

    status: int = 503
    code: str = "SlowDown"
    message: str = "Please reduce your request rate."


WORDS: Final[Mapping[str, type[Fault]]] = {
    "status": Status,
    "html": Html,
    "refuse_credentials": RefuseCredentials,
    "drop": Drop,
    "drop_before_answer": DropBeforeAnswer,
    "cut_off": CutOff,
    "delay": Delay,
    "trickle": Trickle,
    "stall": Stall,
    "discard": Discard,
    "expire_slots": ExpireSlots,
    "slots": Slots,
    "no_uploads": NoUploads,
    "storage_error": StorageError,
}

Entry = Fault | Sequence[Fault] | None


def fault_from_json(said: Any) -> Fault:
    """`{"fault": "status", "status": 503}` -> Status(503). Raises ValueError with what is allowed."""
    if not isinstance(said, Mapping) or not isinstance(said.get("fault"), str):
        raise ValueError(f'a fault is {{"fault": WORD, …}}; words: {", ".join(WORDS)}')
    made = WORDS.get(said["fault"])
    if made is None:
        raise ValueError(f"unknown fault {said['fault']!r}; known: {', '.join(WORDS)}")
    known = {f.name for f in fields(made)}
    arguments = {name: value for name, value in said.items() if name != "fault"}
    if unknown := sorted(set(arguments) - known):
        allowed = ", ".join(sorted(known)) or "nothing"
        raise ValueError(f"{said['fault']} does not know {', '.join(unknown)}; known: {allowed}")
    try:
        return made(**arguments)
    except TypeError as problem:
        raise ValueError(f"{said['fault']}: {problem}") from None


def entry_from_json(said: Any) -> Entry:
    """One entry of a script: a fault, a list of faults, or null."""
    if said is None:
        return None
    if isinstance(said, list):
        return tuple(fault_from_json(one) for one in said)
    return fault_from_json(said)


@dataclass
class _Standing:
    faults: tuple[Fault, ...]
    camera_id: str | None
    rate: float
    dice: random.Random


@dataclass
class FaultBook:
    """Which faults the next request of each kind meets."""

    _scripts: dict[str, deque[tuple[Fault, ...]]] = field(default_factory=lambda: {kind: deque() for kind in KINDS})
    _standing: dict[str, list[_Standing]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def script(self, entries: Iterable[Entry], on: str = "event") -> None:
        """Appends entries, each for one request of this kind."""
        self._scripts[_kind(on)].extend(_several(entry) for entry in entries)

    def always(self, on: str, fault: Entry, *, camera_id: str | None = None, rate: float = 1.0, seed: int = 0) -> None:
        """Applies to every request of this kind (of this camera; with this probability) until `clear`."""
        dice = random.Random(seed)  # noqa: S311  chance that can be repeated is the point
        self._standing[_kind(on)].append(_Standing(_several(fault), camera_id, rate, dice))

    def clear(self, on: str | None = None) -> None:
        """Forgets scripts and standing faults, of one kind or of all."""
        for kind in KINDS if on is None else (_kind(on),):
            self._scripts[kind].clear()
            self._standing[kind].clear()

    def waiting(self) -> dict[str, int]:
        """How many entries of each script are not used up."""
        return {kind: len(script) for kind, script in self._scripts.items() if script}

    def take(self, kind: str, camera_id: str | None = None) -> tuple[Fault, ...]:
        """The faults of this request; uses up one entry of the script."""
        script = self._scripts[kind]
        faults = script.popleft() if script else ()
        for standing in self._standing[kind]:
            if standing.camera_id in (None, camera_id) and standing.dice.random() < standing.rate:
                faults += standing.faults
        return faults


def _kind(on: str) -> str:
    if on not in KINDS:
        raise ValueError(f"no requests of the kind {on!r}; kinds: {', '.join(KINDS)}")
    return on


def _several(entry: Entry) -> tuple[Fault, ...]:
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, Fault) else tuple(entry)
