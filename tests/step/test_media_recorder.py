"""The promises of `gateway.media.recorder`: logins of every kind, lists, what answers mean; real HTTP on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from gateway.media import recorder as module
from gateway.media.logins import UNIFI, ZONEMINDER
from gateway.media.recorder import Forbidden, NotThere, Recorder, Refused, Unanswered, Unreachable
from tests.fakes.clock import FakeClock
from tests.fakes.remembering import PASSWORD, USER, UnifiConsole, ZoneMinderServer

ZM_PATH = "/api/events/index/AlarmFrames%20%3E=:1.json?sort=StartTime&direction=desc&limit=100&page=1"
UNIFI_PATH = "/proxy/protect/api/events?start=0&end=1&types=smartDetectZone&orderDirection=DESC&limit=1"
LOGINS = {ZoneMinderServer: (ZONEMINDER, ZM_PATH), UnifiConsole: (UNIFI, UNIFI_PATH)}

Server = ZoneMinderServer | UnifiConsole
Make = Callable[..., Recorder]


@pytest.fixture(params=LOGINS, ids=lambda kind: kind.__name__)
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    server: Server = request.param()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def make(server: Server) -> AsyncIterator[Make]:
    made: list[Recorder] = []

    def make(password: str | None = PASSWORD, clock: FakeClock | None = None) -> Recorder:
        login, _ = LOGINS[type(server)]
        made.append(
            Recorder(
                server.url,
                clock=clock or FakeClock(),
                login=login,
                username=None if password is None else USER,
                make_password=None if password is None else lambda: password,
            )
        )
        return made[-1]

    yield make
    for one in made:
        await one.close()


def path(server: Server) -> str:
    return LOGINS[type(server)][1]


async def test_one_login_serves_all_that_wait_and_is_renewed_once_it_has_ended(server: Server, make: Make) -> None:
    client = make()
    answers = await asyncio.gather(*(client.read(path(server)) for _ in range(5)))
    assert len(set(answers)) == 1
    assert server.logins == 1
    server.forget_sessions()
    assert await client.read(path(server)) == answers[0]
    assert server.logins == 2


async def test_a_recorder_without_login_needs_none(server: Server, make: Make) -> None:
    server.login_wanted = False
    await make(password=None).read(path(server))
    assert server.logins == 0


async def test_a_login_that_nobody_configured_is_said(server: Server, make: Make) -> None:
    with pytest.raises(Refused, match="set username and password_file"):
        await make(password=None).read(path(server))


async def test_a_refused_login_is_not_repeated_at_once_and_tells_no_secret(server: Server, make: Make) -> None:
    clock = FakeClock()
    client = make(password="wrong & secret", clock=clock)
    for _ in range(3):
        with pytest.raises(Refused, match="refused the login") as raised:
            await client.read(path(server))
        assert "wrong" not in str(raised.value)
    assert server.logins == 1
    clock.advance(61)
    with pytest.raises(Refused):
        await client.read(path(server))
    assert server.logins == 2


async def test_a_login_that_may_not_see_the_list_is_said(server: Server, make: Make) -> None:
    client = make()
    server.answers += [(401, b""), (401, b"")]
    with pytest.raises(Refused, match="its own login: the user may lack"):
        await client.read(path(server))
    server.answers.append((403, b""))
    with pytest.raises(Forbidden, match=r"list of events \(403\): the user may lack"):
        await client.read(path(server))


@pytest.mark.parametrize(
    ("status", "error"), [(302, NotThere), (404, NotThere), (500, Unanswered), (429, Unanswered), (503, Unanswered)]
)
async def test_other_answers_mean_what_they_mean(
    status: int, error: type[Exception], server: Server, make: Make
) -> None:
    server.answers.append((status, b"<html>not here</html>"))
    with pytest.raises(error, match=str(status)) as raised:
        await make().read(path(server))
    assert ("url of its source" in str(raised.value)) is (error is NotThere)


async def test_an_answer_that_is_too_large_is_not_read(
    server: Server, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIST_LIMIT", 1000)
    server.answers.append((200, b"x" * 1001))
    with pytest.raises(NotThere, match="larger than 1000 bytes"):
        await make().read(path(server))


async def test_a_recorder_that_is_away_is_unreachable(server: Server, make: Make) -> None:
    await server.stop()
    with pytest.raises(Unreachable):
        await make().read(path(server))


async def test_no_reason_holds_a_token(make: Make, server: Server) -> None:
    """ZoneMinder's goes into the address of each question."""
    client = make()
    await client.read(path(server))
    server.answers.append((404, b""))
    with pytest.raises(NotThere) as raised:
        await client.read(path(server))
    assert "a.0" not in repr(raised.value.__cause__) + str(raised.value)
    await server.stop()
    with pytest.raises(Unreachable) as gone:
        await client.read(path(server))
    assert "a.0" not in str(gone.value)
