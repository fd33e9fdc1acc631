"""Faults of the cloud against the real process: what `status` says, and that it heals without a restart."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.simulator.faults import CutOff, DropBeforeAnswer, Html, RefuseCredentials, Status
from tests.fakes.frigate import encode, review
from tests.fakes.publisher import Publisher
from tests.fakes.waiting import until
from tests.system.conftest import CAMERAS, Premises

WAITS_S = 200.0  # the longest first wait for refused credentials is a minute, its jitter and the token's included


async def publish(premises: Premises, count: int, offset: int = 0) -> None:
    async with Publisher(premises.broker.port) as publisher:
        for number in range(offset, offset + count):
            message = review(CAMERAS[number % len(CAMERAS)], objects=(f"kind{number}",))
            publisher.publish("frigate/reviews", encode(message))
        await until(lambda: stored(premises) >= offset + count, timeout=30)


def stored(premises: Premises) -> int:
    rows = premises.gateway.rows("SELECT count(*) FROM event")
    return int(rows[0][0]) if rows else 0


def states(premises: Premises) -> dict[str, int]:
    return dict(premises.gateway.rows("SELECT state, count(*) FROM event GROUP BY state"))


async def said(premises: Premises, words: str) -> dict[str, Any]:
    """`status`, once it says this."""
    status: dict[str, Any] = {"reasons": "nobody was asked"}
    for _ in range(100):
        status = await premises.gateway.status()
        if words in " ".join(status["reasons"]):
            return status
    raise AssertionError(status["reasons"])


async def end(premises: Premises, alarms: int) -> None:
    assert states(premises) == {"delivered": alarms}
    assert premises.cloud.duplicates == 0
    assert len({event.event_id for event in premises.cloud.events}) == alarms
    assert await premises.gateway.stop() == 0
    premises.gateway.check_conservation()


@pytest.mark.timeout(300)
async def test_a_portal_in_front_of_everything(premises: Premises) -> None:
    premises.cloud.always("token", Html(200))
    premises.cloud.always("event", Html(200))
    await premises.gateway.start()
    await premises.gateway.subscribed()
    await publish(premises, 9)
    await said(premises, "the cloud does not answer")
    premises.cloud.clear("token")  # half a portal: tokens come through, events do not
    await said(premises, "somebody other than CHeKT")
    assert states(premises).get("delivered", 0) == 0
    premises.cloud.clear()
    await premises.cloud.wait_for(events=9, timeout=WAITS_S)
    await until(lambda: states(premises) == {"delivered": 9}, timeout=30)
    await end(premises, 9)


@pytest.mark.timeout(300)
async def test_a_revoked_key_is_critical_and_mended_without_a_restart(premises: Premises) -> None:
    premises.cloud.always("token", RefuseCredentials())
    await premises.gateway.start()
    await premises.gateway.subscribed()
    await publish(premises, 6)
    status = await said(premises, "refuses our credentials")
    assert status["state"] == "critical"
    premises.cloud.clear()
    await premises.cloud.wait_for(events=6, timeout=WAITS_S)
    await until(lambda: states(premises) == {"delivered": 6}, timeout=30)
    # `token_requests` are those that were looked at; a refusal by the script is not among them.
    assert 2 <= sum(request.kind == "token" for request in premises.cloud.requests) <= 8
    await end(premises, 6)


@pytest.mark.timeout(300)
async def test_answers_are_lost_while_the_process_is_killed(premises: Premises) -> None:
    """Every third answer does not arrive, and the process is killed three times."""
    faults = (DropBeforeAnswer(), CutOff(), Status(504))
    for number, fault in enumerate(faults):
        premises.cloud.always("event", fault, rate=0.15, seed=number)
    alarms = 0
    for life in range(3):
        await premises.gateway.start()
        await premises.gateway.subscribed()
        await publish(premises, 60, offset=60 * life)
        alarms += 60
        await premises.gateway.kill()
    premises.cloud.clear()
    await premises.gateway.start()
    await until(lambda: states(premises) == {"delivered": alarms}, timeout=120)
    await end(premises, alarms)
