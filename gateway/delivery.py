"""Step 3: rows to the cloud. Claims what may go, posts it, and settles what the answer means.

Promises: one request in flight for a camera; a row is settled exactly once for each claim; an unexpected exception
inside one row defers that row and no other; a deferred or held row never blocks another. What an answer means is read
in `chekt/wire.py`, what follows for the row in `retry.py`, what follows for all rows in `gate.py`: nothing of that
here.
"""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

import structlog

from gateway.bell import Bell
from gateway.chekt import wire
from gateway.chekt.client import Client
from gateway.chekt.token import TokenRefused, TokenSource, TokenUnreachable
from gateway.gate import Allowance, Gate
from gateway.host.repeated import Repeated
from gateway.model import ClaimedEvent, Clock, Event
from gateway.notice import Notice
from gateway.retry import Answer, Policy, Step, Verdict, next_step
from gateway.states import EventState

log = structlog.get_logger()

BUSY_LOOK_MS: Final = 250  # how often what has become due is looked for while requests are in hand
IDLE_SECONDS: Final = 5.0  # the table is looked at this often, also when nobody rang
EXPIRY_SECONDS: Final = 60.0
STORE_RETRY_SECONDS: Final = 1.0
PAUSES: Final = "sender_pauses"  # the store's meta: when the sender was paused, which does not count for give_up_after


class Outbox(Protocol):
    """What delivery needs of the store."""

    clock: Clock

    async def claim(
        self, limit: int, *, busy_lanes: frozenset[str], held: Collection[str], fresh_only: bool
    ) -> list[ClaimedEvent]: ...
    async def settle(self, seq: int, step: Step, *, answer: Mapping[str, Any]) -> None: ...
    async def next_due(self) -> int | None: ...
    async def wake(self, *, held: Collection[str]) -> int: ...
    async def expire(self, before_ticks: int) -> int: ...
    async def set_meta(self, key: str, value: str | None) -> None: ...


class Delivery:
    def __init__(
        self,
        *,
        store: Outbox,
        client: Client,
        tokens: TokenSource,
        gate: Gate,
        policy: Policy,
        cloud_url: str,
        jitter: Callable[[], float],
        bell: Bell,
        delivered: Callable[[], None],
        refused: tuple[type[Exception], ...],
        may_compose: Callable[[], bool] = lambda: True,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """`may_compose`: whether the time is known, which a request tells; whoever learns it rings.
        `delivered`: called when upload slots have come; `refused`: what the store raises when it cannot commit."""
        self._store = store
        self._client = client
        self._tokens = tokens
        self.gate = gate
        self._policy = policy
        self._cloud_url = cloud_url
        self._jitter = jitter
        self._bell = bell
        self._delivered = delivered
        self._refused = refused
        self._may_compose = may_compose
        self._beat = beat
        self._store_refuses = Repeated("delivery_waits_for_the_store", "delivery_goes_on")
        self._in_hand: dict[asyncio.Task[None], str] = {}  # task -> lane
        self._expired_at: int | None = None
        self._saved_pauses: str | None = None

    # The loop

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; then finishes the requests in hand. Whoever stops us decides how long that may take."""
        try:
            async with asyncio.TaskGroup() as group:
                while not stop.is_set():
                    self._beat()
                    try:
                        await self._give_up_on_the_oldest()
                        rest = await self._start(group)
                        self._store_refuses.over(self._store.clock.ticks_ms())
                    except self._refused as fault:
                        self._store_refuses.again(self._store.clock.ticks_ms(), reason=str(fault))
                        rest = STORE_RETRY_SECONDS
                    await self._bell.wait(stop, rest)
        finally:
            for task in self._in_hand:
                task.cancel()

    async def run_once(self) -> bool:
        """Claims what may go now and waits until it is settled. Whether there was anything."""
        async with asyncio.TaskGroup() as group:
            await self._start(group)
            return bool(self._in_hand)

    async def _start(self, group: asyncio.TaskGroup) -> float:
        """Claims and starts what may go now; how many seconds until there may be more without a ring."""
        while True:
            now = self._store.clock.ticks_ms()
            if not self._may_compose():
                return IDLE_SECONDS
            allowed = self.gate.allowance(now)
            if allowed.limit <= 0:
                return self._seconds_until(allowed.next_change, now)
            claimed = await self._store.claim(
                allowed.limit,
                busy_lanes=frozenset(self._in_hand.values()),
                held=allowed.held,
                fresh_only=allowed.fresh_only,
            )
            for each in claimed:
                self.gate.sent(each.event, self._store.clock.ticks_ms())
                task = group.create_task(self._contain(each), name=f"deliver {each.event.event_id}")
                self._in_hand[task] = each.event.lane
                task.add_done_callback(self._out_of_hand)
            if len(claimed) < allowed.limit:
                return await self._rest(allowed, now)

    def _out_of_hand(self, task: asyncio.Task[None]) -> None:
        self._in_hand.pop(task, None)
        self._bell.ring()

    async def _rest(self, allowed: Allowance, now: int) -> float:
        # While something is in hand, its end rings; asking the store each time would cost every event a hop more.
        due = now + BUSY_LOOK_MS if self._in_hand else await self._store.next_due()
        moments = [moment for moment in (due, allowed.next_change) if moment is not None and moment > now]
        return self._seconds_until(min(moments, default=None), now)

    @staticmethod
    def _seconds_until(moment: int | None, now: int) -> float:
        return IDLE_SECONDS if moment is None else min(max((moment - now) / 1000, 0.001), IDLE_SECONDS)

    async def _give_up_on_the_oldest(self) -> None:
        now = self._store.clock.ticks_ms()
        if self._expired_at is not None and now - self._expired_at < EXPIRY_SECONDS * 1000:
            return
        self._expired_at = now
        pauses = json.dumps(self.gate.pauses.as_of(now))
        if pauses != self._saved_pauses:
            await self._store.set_meta(PAUSES, pauses)
            self._saved_pauses = pauses
        expired = await self._store.expire(self.gate.give_up_before(now))
        if expired:
            log.error("events_expired", count=expired, remedy="see `chekt-gateway events --state dead`")

    # One row

    async def _contain(self, claimed: ClaimedEvent) -> None:
        """One row from claim to settlement. Whatever goes wrong inside is this row's fault alone."""
        event = claimed.event
        try:
            answer = await self._attempt(claimed)
        except asyncio.CancelledError:
            # The row stays `sending`; `recover()` brings it back with the same bytes.
            self.gate.forget(event.event_id)
            raise
        except Exception as fault:
            log.exception("delivery_failed_inside", event_id=event.event_id, camera=event.camera)
            where = traceback.extract_tb(fault.__traceback__)[-1]
            answer = wire.own_fault(f"{type(fault).__name__} in {where.name}: {fault}", written=True)
        try:
            await self._settle(claimed, answer)
        except Exception as fault:
            # What the answer said cannot be written: that, too, is this row's fault alone. A second one is ours.
            log.exception("delivery_failed_inside", event_id=event.event_id, camera=event.camera)
            where = traceback.extract_tb(fault.__traceback__)[-1]
            await self._settle(
                claimed, wire.own_fault(f"{type(fault).__name__} in {where.name}: {fault}", written=True)
            )

    async def _attempt(self, claimed: ClaimedEvent) -> Answer:
        """The POST, and one repeat with a new token where the first was refused."""
        token = await self._token()
        if isinstance(token, Answer):
            return token
        answer = await self._post(claimed, token)
        if answer.verdict is Verdict.UNAUTHORISED and self._tokens.renewable:
            # RFC 6750, 3.1: revoked or expired. By identity: a stale 401 must not throw away a fresh token.
            self._tokens.invalidate(token)
            second = await self._token()
            if isinstance(second, Answer):
                return replace(second, written=True)  # the 401 has shown the bytes to the cloud: they stay
            answer = replace(await self._post(claimed, second), written=True)
        return answer

    async def _token(self) -> str | Answer:
        try:
            return await self._tokens.get()
        except TokenRefused as fault:
            return wire.no_token(refused=True, text=str(fault), retry_after_ms=fault.retry_in_ms)
        except TokenUnreachable as fault:
            return wire.no_token(refused=False, text=str(fault), retry_after_ms=fault.retry_in_ms)

    async def _post(self, claimed: ClaimedEvent, token: str) -> Answer:
        reply = await self._client.post_event(claimed.body, claimed.idempotency_key, token)
        clock = self._store.clock
        return wire.read_answer(reply, ticks=clock.ticks_ms(), wall=clock.wall_ms(), cloud_url=self._cloud_url)

    async def _settle(self, claimed: ClaimedEvent, answer: Answer) -> None:
        event = claimed.event
        now = self._store.clock.ticks_ms()
        outcome = self.gate.answered(event, answer, ticks=now, jitter=self._jitter())
        step = next_step(
            event,
            answer,
            ticks=now,
            jitter=self._jitter(),
            policy=self._policy,
            first_use=claimed.first_use,
            another_accepted=self.gate.another_accepted(event),
        )
        # The place is free: what is claimed next shares the commit of this settlement. The lane is busy until then.
        self._bell.ring()
        # A refused commit must not lose the answer: the row is in the cloud, and would go there a second time.
        refusals = Repeated("settlement_waits_for_the_store", "settlement_goes_on")
        while True:
            try:
                await self._store.settle(event.seq, step, answer=_for_the_ledger(answer))
                break
            except self._refused as fault:
                refusals.again(self._store.clock.ticks_ms(), event_id=event.event_id, reason=str(fault))
                await asyncio.sleep(STORE_RETRY_SECONDS)
        refusals.over(self._store.clock.ticks_ms(), event_id=event.event_id)
        for notice in outcome.notices:
            _say(notice)
        self._say_outcome(event, step, answer, now)
        if step.slots:
            self._delivered()
        if outcome.wake:
            await self._wake(now)

    async def _wake(self, now: int) -> None:
        try:
            await self._store.wake(held=self.gate.allowance(now).held)
        except self._refused as fault:  # each of them becomes due by itself, a little later
            self._store_refuses.again(now, reason=str(fault))
        self._bell.ring()

    def _say_outcome(self, event: Event, step: Step, answer: Answer, now: int) -> None:
        facts = {
            "event_id": event.event_id,
            "camera": event.camera,
            "state": str(step.target),
            "attempt": event.attempts,
            "verdict": str(answer.verdict),
            "http_status": answer.http_status,
            "waited_seconds": round((now - event.received_ticks) / 1000, 3),
        }
        for warning in answer.warnings:
            log.warning("answer_was_odd", event_id=event.event_id, warning=warning)
        match step.target:
            case EventState.DELIVERED:
                log.info("event_delivered", chekt_event_id=step.chekt_event_id, response_id=step.response_id, **facts)
            case EventState.DISCARDED:
                log.info("event_discarded", reason=step.reason, **facts)
            case EventState.DEAD:
                remedy = "see `chekt-gateway trace`, then `chekt-gateway retry`, each with its event_id"
                log.error("event_dead", reason=step.reason, remedy=remedy, **facts)
            case _:
                # Said at WARNING once for an outage by the gate; each row's own deferral is detail.
                log.debug("event_deferred", reason=step.reason, next_in_ms=step.next_in_ms, **facts)


def _for_the_ledger(answer: Answer) -> dict[str, Any]:
    """What `trace` shows of an attempt: no slots, which are secrets."""
    return {
        "verdict": str(answer.verdict),
        "http_status": answer.http_status,
        "text": answer.text,
        "elapsed_ms": answer.elapsed_ms,
        "response_id": answer.response_id,
    }


def _say(notice: Notice) -> None:
    getattr(log, notice.level)(notice.name, **notice.fields)
