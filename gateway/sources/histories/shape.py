"""What is asked of a recorder that remembers its alarms, and what its answers become: messages that it would have sent.

Promises: what was heard and what is read here come to one and the same event, because all of which an event's identity
is made is written as the recorder writes it over MQTT. Pure.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from gateway.sources.decode import Undecodable, decode_json


class NotAList(Exception):
    """The recorder's answer is not what its API promises; `str()` is the reason."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """One message about one alarm. `stage` is whatever a later message about the same alarm would differ in."""

    id: str
    started: Decimal
    stage: Hashable
    topic: str
    payload: bytes

    @property
    def key(self) -> tuple[str, Hashable]:
        return self.id, self.stage


@dataclass(frozen=True, slots=True)
class Page:
    items: tuple[Remembered, ...]
    earlier: str | None = None
    """What to ask next for the rest; None: this was all."""


class History(Protocol):
    """How to ask one kind of recorder. Times are unix seconds of the recorder's clock."""

    def questions(self, after: float, until: float) -> list[str]:
        """Paths to ask for everything from `after` to `until`; the answers may overlap, and may tell more."""

    def read(self, body: bytes, after: float) -> Page:
        """The answer to a question. Raises NotAList."""

    def presence(self, topic: str, payload: bytes) -> bool | None:
        """Whether this message of the recorder says that it came (True) or went (False); None: it speaks of others."""


def read_json(body: bytes) -> Any:
    """Raises NotAList."""
    try:
        return decode_json(body)
    except Undecodable as error:
        raise NotAList(
            f"the recorder's list: {error}; is the url of its source that of this kind of recorder?"
        ) from None


def as_list(said: Any) -> list[Any]:
    """Raises NotAList."""
    if not isinstance(said, list):
        raise NotAList("the recorder answered with something else than a list")
    return said


def in_order(items: Sequence[Remembered]) -> list[Remembered]:
    """As they happened, each once; of one alarm, in the order in which they were read."""
    return sorted({item.key: item for item in items}.values(), key=lambda item: (item.started, item.id))
