"""The bound on one packet: of a message that is too large only the beginning is kept while it is read.

MQTT has a word for the largest packet that a client takes (5.0, 3.1.2.11.4), but the broker throws a larger one away
without telling anybody. So we take it, keep its beginning as evidence, and hash the rest as it passes: a message of
the 256 MB that MQTT allows must not end the process, or it would come again and end it again, for ever.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, SupportsIndex

from gateway.sources.broker_window import OVERSIZE_KEPT, Cut

HEADER_BYTES: Final = 128 << 10  # a topic has up to 64 KiB; so much more for the properties of MQTT 5
KEPT_BYTES: Final = HEADER_BYTES + OVERSIZE_KEPT


class Beginning(bytearray):
    """Takes the bytes of a PUBLISH after its fixed header, as a bytearray would, and keeps the first KEPT_BYTES."""

    def __init__(self, *, qos: int, v5: bool) -> None:
        super().__init__()
        self._qos, self._v5 = qos, v5
        self._hash: Any = None
        self._beyond = 0  # bytes that were not kept

    def __iadd__(self, data: Any) -> Beginning:  # type: ignore[misc]
        room = KEPT_BYTES - len(self)
        if room > 0:
            self.extend(data[:room])
        if len(data) > room:
            if self._hash is None:
                self._hash = hashlib.sha256(self[self._payload_begins() :])
            self._hash.update(memoryview(data)[max(room, 0) :])
            self._beyond += len(data) - max(room, 0)
        return self

    def cut(self, kept: int) -> Cut:
        """Of the whole payload, `kept` bytes of which were kept."""
        if self._hash is None:
            self._hash = hashlib.sha256(self[self._payload_begins() :])
        return Cut(kept + self._beyond, self._hash.hexdigest())

    def _payload_begins(self) -> SupportsIndex:
        """MQTT 5.0, 3.3.2: topic, packet identifier, properties."""
        at = 2 + int.from_bytes(self[:2], "big") + (2 if self._qos else 0)
        if not self._v5:
            return at
        length = shift = 0
        for byte in self[at : at + 4]:  # MQTT 5.0, 1.5.5
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        return at + length
