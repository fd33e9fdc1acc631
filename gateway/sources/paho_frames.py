"""Websocket frames as they come: of a frame that is still arriving, nothing is kept here.

paho keeps each frame whole and copies its beginning anew for each piece, so that one of the 256 MB that MQTT allows
would take as much memory and hold up the event loop for minutes. Refusing such a frame is no way out: the broker would
send it again, for ever. Sources: RFC 6455, 5; MQTT 5.0, 6.0 (frames are binary, and packets may cross their borders).
"""

from __future__ import annotations

import contextlib
import ssl
from typing import Any, Final

from paho.mqtt import client as paho

_LARGEST_CONTROL: Final = 125  # RFC 6455, 5.5


class Frames(paho._WebsocketWrapper):
    """The handshake is paho's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._head = bytearray()  # of the frame that has just begun
        self._left = 0  # bytes of this frame's payload that have not been handed out
        super().__init__(*args, **kwargs)

    def _recv_impl(self, length: int) -> bytes:
        """Raises BlockingIOError (or what TLS has for it) while there is nothing; b"" is the end of the connection."""
        try:
            while not self._left:
                if not self._begin_frame():
                    return self._ended()
            data: bytes = self._socket.recv(min(length, self._left))
        except ConnectionError:
            return self._ended()
        self._left -= len(data)
        return data or self._ended()

    def _begin_frame(self) -> bool:
        """Reads the head of the next frame, and the whole of one that is ours to answer. False: the end."""
        head = self._head
        if not self._fill(2):
            return False
        opcode, length = head[0] & 0x0F, head[1]
        if opcode in (self.OPCODE_BINARY, self.OPCODE_CONTINUATION) and length <= 127:
            if length >= 126:
                if not self._fill(4 if length == 126 else 10):
                    return False
                length = int.from_bytes(head[2:], "big")
            self._left = length
            head.clear()
            return True
        if opcode not in (self.OPCODE_PING, self.OPCODE_PONG, self.OPCODE_CONNCLOSE) or length > _LARGEST_CONTROL:
            # Masked ones, for another: only ours may be (RFC 6455, 5.1).
            raise ValueError(f"a websocket frame that begins with {head.hex()}")
        if not self._fill(2 + length):
            return False
        payload = head[2:]
        head.clear()
        if opcode == self.OPCODE_PING:
            self._answer(self._create_frame(self.OPCODE_PONG, payload))
        elif opcode == self.OPCODE_CONNCLOSE:
            self._answer(self._create_frame(self.OPCODE_CONNCLOSE, payload))
        return opcode != self.OPCODE_CONNCLOSE

    def _fill(self, size: int) -> bool:
        """The head has so many bytes. What has come stays there if the rest has not."""
        while len(self._head) < size:
            data = self._socket.recv(size - len(self._head))
            if not data:
                return False
            self._head += data
        return True

    def _send_impl(self, data: bytes | bytearray) -> int:
        """All of it or nothing: paho forgets a packet of which only a part has gone out. What the line does not take
        at once goes before the next packet or ping."""
        self._flush()
        if self._sendbuffer:
            raise BlockingIOError
        self._answer(self._create_frame(self.OPCODE_BINARY, bytearray(data)))
        return len(data)

    def _answer(self, frame: bytearray) -> None:
        self._sendbuffer += frame
        self._flush()

    def _flush(self) -> None:
        if self._sendbuffer:
            with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                del self._sendbuffer[: self._socket.send(self._sendbuffer)]

    def _ended(self) -> bytes:
        self.connected = False
        return b""
