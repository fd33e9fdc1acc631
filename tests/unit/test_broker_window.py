"""What waits for intake, and what the broker waits for: an acknowledgement that was written may never have arrived."""

from __future__ import annotations

from gateway.model import Message
from gateway.sources.broker_window import UNHEARD_MS, AckToken, Window

MAX = 1 << 20


def put(window: Window, mid: int, payload: bytes = b"on", *, dup: bool = False, qos: int = 1) -> None:
    window.put(mid, Message("a", payload, qos, False, dup, False, 0, 0), MAX)


async def again(window: Window, *, acknowledge_at: int | None = 0) -> list[bool]:
    """Takes everything that waits; acknowledges it, unless the connection breaks before."""
    taken = await window.take(100)
    if acknowledge_at is not None:
        for one in taken:
            window.done(one.token, acknowledge_at)
    return [one.again for one in taken]


async def test_what_was_acknowledged_and_comes_again_is_known() -> None:
    """By its packet id and its bytes, also over a connection that ended before it came again."""
    window = Window(10)
    put(window, 1)
    put(window, 2, b"off")
    assert await again(window) == [False, False]
    window.next_connection(5)
    window.next_connection(6)
    put(window, 1, dup=True)
    put(window, 2, b"off", dup=True)
    assert await again(window) == [True, True]
    window.next_connection(7)
    put(window, 2, b"off", dup=True)
    assert await again(window) == [True]


async def test_what_was_not_acknowledged_is_not_known() -> None:
    window = Window(10)
    put(window, 1)
    assert await again(window, acknowledge_at=None) == [False]
    window.next_connection(5)
    put(window, 1, dup=True)
    assert await again(window) == [False]


async def test_another_message_is_never_taken_for_it() -> None:
    """Other bytes, another packet id, without DUP, behind something new, of another session, or much later."""
    for case in ("bytes", "id", "dup", "behind", "session", "later"):
        window = Window(10)
        put(window, 1)
        assert await again(window) == [False]
        window.next_connection(UNHEARD_MS + 1 if case == "later" else 5)
        if case == "session":
            window.session_lost()
        if case == "behind":
            put(window, 9, b"new")
        put(window, 2 if case == "id" else 1, b"off" if case == "bytes" else b"on", dup=case != "dup")
        assert (await again(window))[-1] is False, case


async def test_what_is_remembered_is_bounded() -> None:
    window = Window(10)
    for mid in range(1, 65536):
        put(window, mid)
        assert await again(window) == [False]
    assert len(window._told) <= 2_000
    assert window.done(AckToken(window.generation, 7), 0) == 0, "and nothing is acknowledged twice"
