"""The one thread that writes, and what it writes together.

Everything that waits is one transaction: the operations of one kind are handled as a group with few statements, there
is one commit, and one call into the event loop resolves all callers. Promises: a caller sees a result only after the
commit; a failed commit fails all of its group and leaves nothing behind, and the next one is tried afresh: after an
error of the disk on a new connection (`reopening`), on a full disk once more without the reserve (`reserve`); damage
ends the thread, and the next start saves what it can (`salvage`). An operation that is at fault by itself fails alone;
cancelling a caller neither stops nor halves its operation. Lazy operations have no caller: they ride on the next
commit, or get one of their own after a second.
"""

# ruff: noqa: S608 - statements are put together from our own words; every value is a parameter

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from gateway.model import Clock
from gateway.outbox.database import is_about_room, store_error
from gateway.outbox.errors import StoreDamaged, StoreError, StoreGone
from gateway.outbox.holes import is_unreadable
from gateway.outbox.opening import Opened, mark_damaged
from gateway.outbox.reopening import Reopening
from gateway.outbox.reserve import Reserve

log = structlog.get_logger()

LAZY_SECONDS: Final = 1.0  # how long a note may wait for somebody else's flush
PROBE_SECONDS: Final = 1.0  # how often a store that refuses is tried, also when nobody asks for anything
UNREADABLE_SECONDS: Final = 10.0  # a page that cannot be read again after so long, on another connection, is lost
UNREADABLE_FORGOTTEN_SECONDS: Final = 600.0
LAZY_LIMIT: Final = 10_000  # notes that are kept while the store refuses; older ones are given up
GROUP_LIMIT: Final = 1_024  # operations in one commit: bounds how long the first of them waits

# After these the connection is not believed any more: what it could not write may look written.
_DISK_FAULTS: Final = ("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PROTOCOL")
# Errors of one operation, not of the store: a value that a CHECK refuses, a type that SQLite does not know.
_OWN_FAULTS: Final = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    sqlite3.DataError,
    sqlite3.NotSupportedError,
)


@dataclass
class Transaction:
    """What a handler works with."""

    db: sqlite3.Connection
    at: int  # wall ms
    ticks: int
    deltas: Counter[str] = field(default_factory=Counter)
    after: list[Callable[[], None]] = field(default_factory=list)

    def count(self, name: str, change: int = 1) -> None:
        """Changes a counter in this commit."""
        self.deltas[name] += change

    def after_commit(self, action: Callable[[], None]) -> None:
        """For what is remembered in memory only: it must not run ahead of the disk."""
        self.after.append(action)


# A handler gets a group of arguments and returns for each its result, or the exception to raise in its caller.
Handler = Callable[[Transaction, Sequence[Any]], Sequence[Any]]


@dataclass(eq=False)
class Operation:
    handler: Handler
    argument: Any
    future: asyncio.Future[Any] | None = None
    # Called in the loop with the result of a caller that has gone away meanwhile.
    abandoned: Callable[[Any], None] | None = None
    skip_if_cancelled: bool = False


class _OwnFault(Exception):
    """Something in this group is at fault by itself: it is tried again one by one."""


class Writer:
    def __init__(self, opened: Opened, clock: Clock, path: Path, reserve: Reserve) -> None:
        self._opened = opened
        self._db = opened.db
        self._clock = clock
        self._path = path
        self._reserve = reserve
        self._reopening: Reopening | None = None  # after an error of the disk, until there is a new connection
        self._unreadable_since = -math.inf
        self._over = False  # the file cannot be used any more in this life
        self._identity = _identity(path)
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[Operation | None] = queue.SimpleQueue()
        self._lazy: list[Operation] = []
        self._lazy_due = math.inf
        self._probe_due = math.inf
        self._closed = self._loop.create_future()
        self._stopping = False
        self.refusal: str | None = None  # what the store said at the last commit, if it refused
        self.commits = 0  # transactions that changed something, since the start
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """False once the thread has ended, whether it was told to or failed."""
        return self._thread.is_alive()

    def submit(
        self,
        handler: Handler,
        argument: Any = None,
        *,
        abandoned: Callable[[Any], None] | None = None,
        skip_if_cancelled: bool = False,
    ) -> asyncio.Future[Any]:
        if self._stopping:
            raise StoreError(self.refusal or "the outbox is closed")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._queue.put(Operation(handler, argument, future, abandoned, skip_if_cancelled))
        return future

    def submit_lazily(self, handler: Handler, argument: Any) -> None:
        if not self._stopping:
            self._queue.put(Operation(handler, argument))

    async def close(self) -> None:
        """Commits what waits, then closes. May be called twice."""
        if not self._stopping:
            # Twice: what is given back by callers that were cancelled meanwhile comes behind the first round.
            with contextlib.suppress(StoreError):
                await asyncio.shield(self.submit(_nothing))
            self._stopping = True
            self._queue.put(None)
        await asyncio.shield(self._closed)
        self._thread.join()

    # What follows runs in the thread.

    def _run(self) -> None:
        operations: list[Operation] = []
        try:
            stop = False
            while not (stop or self._over):
                operations, stop = self._collect()
                now = time.monotonic()
                if any(operation.future is not None for operation in operations) or stop or now >= self._lazy_due:
                    self._lazy_due = math.inf
                    self._commit(operations, always=stop)
                else:
                    self._lazy = operations
                    if self.refusal is not None and now >= self._probe_due:
                        self._commit([], always=True)
        except BaseException:
            # A bug of ours. Nobody may wait for ever: what is asked from now on is refused, the watchdog does the rest.
            log.exception("outbox_thread_failed")
            self._stopping = True
            self.refusal = "the outbox has stopped because of an error inside the gateway; restart it"
            self._call(_resolve, [(operation, StoreError(self.refusal)) for operation in operations])
        with contextlib.suppress(StoreError):  # what could not be flushed must not be found by the next start
            self._renew()
        with contextlib.suppress(sqlite3.Error, OSError):  # a disk that is gone must not keep us from ending
            self._opened.close()
        self._call(self._end, None)

    def _end(self, _: None) -> None:
        """In the loop: whoever still waits is told."""
        while not self._queue.empty():
            left = self._queue.get_nowait()
            if left is not None and left.future is not None and not left.future.done():
                left.future.set_exception(StoreError(self.refusal or "the outbox is closed"))
        if not self._closed.done():
            self._closed.set_result(None)

    def _collect(self) -> tuple[list[Operation], bool]:
        """Waits for something to do; returns everything that waits, in its order, and whether to stop after it."""
        operations, self._lazy = self._lazy, []
        stop, taken = False, 0
        until = min(self._lazy_due, math.inf if self.refusal is None else self._probe_due)
        timeout = None if until == math.inf else max(0.0, until - time.monotonic())
        try:
            operation = self._queue.get(timeout=timeout)
            while True:
                if operation is None:
                    stop = True
                elif operation.future is None:
                    self._lazy_due = min(self._lazy_due, time.monotonic() + LAZY_SECONDS)
                    operations.append(operation)
                elif not (operation.skip_if_cancelled and operation.future.cancelled()):
                    operations.append(operation)
                taken += 1
                if stop or taken >= GROUP_LIMIT:
                    break
                operation = self._queue.get_nowait()
        except queue.Empty:
            pass
        return operations, stop

    def _commit(self, operations: list[Operation], *, always: bool) -> None:
        try:
            outcomes = self._transact(operations, always=always)
        except (sqlite3.Error, StoreError) as error:
            refused = error if isinstance(error, StoreError) else store_error(error, self._path)
            if self._is_lost(error):
                refused = StoreDamaged(f"the outbox {self._path} is damaged: {error}")
            if isinstance(refused, StoreDamaged):
                # Nothing that is read from it can be believed. The next start looks at all of it.
                log.error("store_damaged", why=str(refused), remedy="the gateway ends; its next start saves the rows")
                mark_damaged(self._opened.lock)
            if isinstance(refused, StoreDamaged | StoreGone):
                self._over = self._stopping = True
            self.refusal = str(refused)
            outcomes = [(operation, type(refused)(str(refused))) for operation in operations]
            kept = [operation for operation in operations if operation.future is None]
            self._lazy = kept[-LAZY_LIMIT:]
            self._probe_due = time.monotonic() + PROBE_SECONDS
            if kept:
                self._lazy_due = self._probe_due
        else:
            for operation, outcome in outcomes:
                if operation.future is None and isinstance(outcome, Exception):
                    log.error("outbox_note_failed", error=str(outcome), operation=operation.handler.__name__)
        self._call(_resolve, outcomes)

    def _is_lost(self, error: Exception) -> bool:
        """Whether something could not be read, and again some time later: no whim of the disk."""
        if not (is_unreadable(error) or is_unreadable(error.__cause__)):
            return False
        now = time.monotonic()
        if now - self._unreadable_since > UNREADABLE_FORGOTTEN_SECONDS:
            self._unreadable_since = now
        return now - self._unreadable_since >= UNREADABLE_SECONDS

    def _transact(self, operations: list[Operation], *, always: bool) -> list[tuple[Operation, Any]]:
        """Raises what the store refuses with; then nothing has happened, and the next try may be made."""
        while True:
            self._renew()
            try:
                try:
                    return self._attempt(operations, alone=False, always=always)
                except _OwnFault:
                    return self._attempt(operations, alone=True, always=always)
            except sqlite3.Error as error:
                self._roll_back()
                name = getattr(error, "sqlite_errorname", "")
                if name.startswith(_DISK_FAULTS):
                    self._reopening = Reopening(self._opened, self._path)
                if is_about_room(error) and self._reserve.release():
                    log.warning("reserve_released", why=str(store_error(error, self._path)))
                    continue
                raise

    def _renew(self) -> None:
        """A connection that is not doubtful."""
        if self._reopening is not None:
            self._opened = self._reopening.go_on()
            self._db, self._reopening = self._opened.db, None
            log.info("store_reopened")

    def _attempt(self, operations: list[Operation], *, alone: bool, always: bool) -> list[tuple[Operation, Any]]:
        """One transaction. Raises sqlite3.Error if the store refuses, _OwnFault if one operation is at fault."""
        if _identity(self._path) != self._identity:
            # Still open, it would take every row, and all of them would be gone with this process.
            raise StoreGone(
                f"the outbox {self._path} was moved or removed while the gateway runs; it ends and begins anew"
            )
        transaction = Transaction(self._db, self._clock.wall_ms(), self._clock.ticks_ms())
        before = self._db.total_changes
        outcomes: list[tuple[Operation, Any]] = []
        self._db.execute("BEGIN IMMEDIATE")
        for handler, group in _by_kind(operations, alone):
            if alone:
                outcomes.append((group[0], self._try_alone(transaction, group[0])))
                continue
            try:
                results = handler(transaction, [operation.argument for operation in group])
            except Exception as error:
                if _is_refusal(error):
                    raise
                self._roll_back()
                raise _OwnFault from error
            outcomes += zip(group, results, strict=True)
        if always or self._db.total_changes != before or any(transaction.deltas.values()):
            _write_counters(transaction)
        wrote = self._db.total_changes != before
        self._db.execute("COMMIT")
        if wrote:
            self.commits += 1
            self.refusal = None
        for action in transaction.after:
            action()
        return outcomes

    def _try_alone(self, transaction: Transaction, operation: Operation) -> Any:
        deltas, after = transaction.deltas.copy(), list(transaction.after)
        self._db.execute("SAVEPOINT alone")
        try:
            (result,) = operation.handler(transaction, [operation.argument])
        except Exception as error:
            if _is_refusal(error):
                raise
            self._db.execute("ROLLBACK TO alone")
            transaction.deltas, transaction.after = deltas, after
            result = error
        self._db.execute("RELEASE alone")
        return result

    def _roll_back(self) -> None:
        # A full disk may have ended the transaction already (sqlite.org/lang_transaction.html).
        with contextlib.suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _call(self, function: Callable[[Any], None], argument: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(function, argument)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"the outbox {path} cannot be looked at: {error}") from error
    return facts.st_dev, facts.st_ino


def _is_refusal(error: Exception) -> bool:
    """The store's, not the operation's. SQLITE_ERROR: a statement wrong in itself (sqlite.org/rescode.html)."""
    if not isinstance(error, sqlite3.Error) or isinstance(error, _OWN_FAULTS):
        return False
    return getattr(error, "sqlite_errorname", "") != "SQLITE_ERROR"


def _by_kind(operations: list[Operation], alone: bool) -> list[tuple[Handler, list[Operation]]]:
    if alone:
        return [(operation.handler, [operation]) for operation in operations]
    groups: dict[Handler, list[Operation]] = {}
    for operation in operations:
        groups.setdefault(operation.handler, []).append(operation)
    return list(groups.items())


def _write_counters(transaction: Transaction) -> None:
    """In every commit: the counters that changed, and the time, from which the clock of the next start goes on."""
    transaction.db.execute(
        "INSERT INTO meta (key, value) VALUES ('ticks', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (str(transaction.ticks),),
    )
    changed = [(name, change) for name, change in transaction.deltas.items() if change]
    if changed:
        transaction.db.execute(
            "INSERT INTO counter (name, value) VALUES "
            + ",".join(["(?,?)"] * len(changed))
            + " ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            [value for pair in changed for value in pair],
        )


def _nothing(transaction: Transaction, arguments: Sequence[None]) -> Sequence[None]:
    return arguments


def _resolve(outcomes: list[tuple[Operation, Any]]) -> None:
    for operation, outcome in outcomes:
        future = operation.future
        if future is None:
            continue
        if future.done():
            if operation.abandoned is not None and not isinstance(outcome, Exception):
                operation.abandoned(outcome)
        elif isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
