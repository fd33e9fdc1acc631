"""Websocket frames, byte by byte: what is handed out, what is answered, what ends the connection, what is kept."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sources.paho_frames import Frames

CONTINUED, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


class Bare(Frames):
    """After the handshake."""

    def _do_handshake(self, extra_headers: Any) -> None:
        self.connected = True


class Narrow:
    """A line that takes so many bytes at once, and so many in all until it is drained."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sent = bytearray()

    def send(self, data: bytes) -> int:
        if not self.room:
            raise BlockingIOError
        taken = min(self.room, len(data))
        self.room -= taken
        self.sent += data[:taken]
        return taken


def frame(payload: bytes, kind: int = BINARY, *, last: bool = True, mask: int = 0) -> bytes:
    head = bytes([last << 7 | kind])
    if len(payload) < 126:
        return head + bytes([mask | len(payload)]) + payload
    if len(payload) < 1 << 16:
        return head + bytes([mask | 126]) + struct.pack("!H", len(payload)) + payload
    return head + bytes([mask | 127]) + struct.pack("!Q", len(payload)) + payload


def unmasked(sent: bytes) -> list[tuple[int, bytes]]:
    """Our own short frames: kind and payload."""
    found = []
    while sent:
        assert sent[1] & 0x80, "ours must be masked"
        size = sent[1] & 0x7F
        mask, payload = sent[2:6], sent[6 : 6 + size]
        found.append((sent[0] & 0x0F, bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))))
        sent = sent[6 + size :]
    return found


@pytest.fixture
def line() -> Iterator[tuple[Bare, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield Bare(ours, "broker", 80, False, "/mqtt", None), theirs


def read_all(frames: Frames, size: int = 65536) -> bytes:
    got = b""
    while True:
        try:
            data = frames.recv(size)
        except BlockingIOError:
            return got
        if not data:
            raise EOFError(got)
        got += data


@given(
    st.lists(st.tuples(st.binary(max_size=300), st.sampled_from([BINARY, CONTINUED, PING, PONG])), max_size=6),
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.integers(1, 200),
)
def test_however_it_is_cut_the_payloads_come_out_whole(
    parts: list[tuple[bytes, int]], cuts: list[int], size: int
) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        frames = Bare(ours, "broker", 80, False, "/mqtt", None)
        parts = [(payload[:125] if kind in (PING, PONG) else payload, kind) for payload, kind in parts]
        stream = b"".join(frame(payload, kind) for payload, kind in parts)
        got, at, step = b"", 0, 0
        while at < len(stream):
            cut = cuts[step % len(cuts)]
            theirs.sendall(stream[at : at + cut])
            at, step = at + cut, step + 1
            got += read_all(frames, size)
        assert got == b"".join(payload for payload, kind in parts if kind in (BINARY, CONTINUED))
        pings = [(PONG, payload) for payload, kind in parts if kind == PING]
        if pings:
            theirs.setblocking(False)
            assert unmasked(theirs.recv(65536)) == pings


@pytest.mark.parametrize("size", [125, 126, 65_535, 65_536, 300_000])
def test_each_form_of_the_length(line: tuple[Bare, socket.socket], size: int) -> None:
    frames, theirs = line
    stream, got = frame(b"x" * size) + frame(b"end"), b""
    while stream:
        stream = stream[theirs.send(stream[:50_000]) :]
        got += read_all(frames)
    assert got == b"x" * size + b"end"


def test_of_a_frame_that_is_still_arriving_nothing_is_kept(line: tuple[Bare, socket.socket]) -> None:
    frames, theirs = line
    theirs.send(bytes([0x82, 127]) + struct.pack("!Q", 1 << 40))
    for _ in range(50):
        theirs.send(b"x" * 20_000)
        assert read_all(frames) == b"x" * 20_000
        assert len(frames._readbuffer) + len(frames._head) == 0


@pytest.mark.parametrize(
    "bad",
    [frame(b"hello", TEXT), frame(b"abcd", mask=0x80), frame(b"x" * 126, PING), frame(b"", 0x3), frame(b"", 0xB)],
    ids=["text", "masked", "a long ping", "an unknown kind", "an unknown control"],
)
def test_what_no_broker_may_send_ends_the_connection(line: tuple[Bare, socket.socket], bad: bytes) -> None:
    frames, theirs = line
    theirs.send(bad)
    with pytest.raises(ValueError, match="a websocket frame that begins with"):
        read_all(frames)


def test_a_close_is_answered_and_is_the_end(line: tuple[Bare, socket.socket]) -> None:
    frames, theirs = line
    theirs.send(frame(b"last") + frame(b"\x03\xe8", CLOSE) + frame(b"never read"))
    with pytest.raises(EOFError) as end:
        read_all(frames)
    assert end.value.args == (b"last",)
    assert not frames.connected
    assert unmasked(theirs.recv(100)) == [(CLOSE, b"\x03\xe8")]


@pytest.mark.parametrize("stream", [b"", frame(b"abc")[:1], frame(b"abc")[:3], frame(b"x" * 200)[:3]])
def test_a_line_that_breaks_is_the_end(line: tuple[Bare, socket.socket], stream: bytes) -> None:
    frames, theirs = line
    theirs.send(stream)
    theirs.close()
    with pytest.raises(EOFError):
        read_all(frames)
    assert not frames.connected


def test_a_packet_goes_out_whole_or_not_at_all() -> None:
    """paho forgets one of which a part has gone out."""
    narrow = Narrow(5)
    frames = Bare(narrow, "broker", 80, False, "/mqtt", None)
    assert frames.send(b"first") == 5
    with pytest.raises(BlockingIOError):
        frames.send(b"second")
    frames._answer(frames._create_frame(PONG, bytearray(b"p")))  # a ping of the broker's in between
    with pytest.raises(BlockingIOError):
        frames.send(b"second")
    narrow.room = 8
    with pytest.raises(BlockingIOError):
        frames.send(b"second")
    narrow.room = 1000
    assert frames.send(b"second") == 6
    assert unmasked(bytes(narrow.sent)) == [(BINARY, b"first"), (PONG, b"p"), (BINARY, b"second")]
