"""Publishing a number of messages and waiting until the broker has taken them; for `broker_probe.py` only."""

from __future__ import annotations

import asyncio
from typing import Final

from gateway.sources.broker_target import Target
from gateway.sources.paho_dial import connect, new_client

TAKEN_SECONDS: Final = 20.0


async def publish_all(target: Target, v5: bool, topic: str, count: int) -> int:
    """How many the broker has taken (QoS 1). Raises OSError."""
    return await asyncio.to_thread(_publish_all, target, v5, topic, count)


def _publish_all(target: Target, v5: bool, topic: str, count: int) -> int:
    client = new_client(target, v5)
    try:
        connect(client, target, v5)
        client.loop_start()
        sent = [client.publish(topic, f"{number}".encode(), qos=1) for number in range(count)]
        for one in sent:
            try:
                one.wait_for_publish(TAKEN_SECONDS)
            except (RuntimeError, ValueError):
                break
            if not one.is_published():
                break
        client.disconnect()
        return sum(one.is_published() for one in sent)
    finally:
        client.loop_stop()
        client.close_sockets()
