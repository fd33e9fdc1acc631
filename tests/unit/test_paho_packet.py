"""Of a packet that is too large only its beginning is kept, and all of it is hashed."""

from __future__ import annotations

import hashlib
from typing import Literal

import pytest

from gateway.sources.paho_packet import KEPT_BYTES, Beginning

PAYLOAD = bytes(range(256)) * 2000


def packet(qos: int, v5: bool, properties: bytes, payload: bytes) -> bytes:
    length = (
        bytes([len(properties)])
        if len(properties) < 128
        else bytes([len(properties) & 127 | 128, len(properties) >> 7])
    )
    return b"\x00\x03a/b" + (b"\x00\x07" if qos else b"") + (length + properties if v5 else b"") + payload


@pytest.mark.parametrize("piece", [1_000, 65_536, 10_000_000])
@pytest.mark.parametrize(
    ("qos", "v5", "properties"), [(0, False, b""), (1, True, b""), (1, True, b"x" * 300), (2, False, b"")]
)
@pytest.mark.parametrize("payload", [PAYLOAD, b"short"])
def test_size_and_hash_are_those_of_the_whole_payload(
    piece: int, qos: Literal[0, 1, 2], v5: bool, properties: bytes, payload: bytes
) -> None:
    whole = packet(qos, v5, properties, payload)
    kept: bytearray = Beginning(qos=qos, v5=v5)
    for at in range(0, len(whole), piece):
        kept += whole[at : at + piece]
    assert isinstance(kept, Beginning)
    assert bytes(kept) == whole[:KEPT_BYTES]
    header = len(whole) - len(payload)
    cut = kept.cut(len(kept) - header)
    assert (cut.size, cut.sha256) == (len(payload), hashlib.sha256(payload).hexdigest())
