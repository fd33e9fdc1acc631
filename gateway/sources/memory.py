"""What the conditions remember between messages: open alarms and troubles, ended ids, hold-off, clocks.

A mapping from key to an entry that JSON can hold. Whoever keeps it commits every change together with the rows that
caused it, so memory and outbox never disagree. An entry may have a `due`, in ticks; `Memory` finds those without
looking at all entries, and never holds more than `LIMIT` for long. Pure.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from typing import Any, Final

Entry = Mapping[str, Any]
Changes = dict[str, Entry | None]  # None deletes

# A day of a busy site has some thousands of ids (`dedupe_window`); each entry is about 400 bytes.
LIMIT: Final = 20_000


class Memory(Mapping[str, Entry]):
    """All entries, with an index of what is due."""

    def __init__(self, entries: Mapping[str, Entry] | None = None) -> None:
        self._entries: dict[str, Entry] = {}
        self._due: list[tuple[int, str]] = []  # may hold stale pairs; each is checked against the entry when met
        self.apply(entries or {})

    def __getitem__(self, key: str) -> Entry:
        return self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str, default: Any = None) -> Any:
        return self._entries.get(key, default)

    def apply(self, changes: Mapping[str, Entry | None]) -> Changes:
        """Takes the changes over; returns what undoes them (`apply` it if the commit fails)."""
        before: Changes = {}
        for key, entry in changes.items():
            before[key] = self._entries.get(key)
            if entry is None:
                self._entries.pop(key, None)
                continue
            self._entries[key] = entry
            if entry.get("due") is not None:
                heapq.heappush(self._due, (entry["due"], key))
        if len(self._due) > 4 * len(self._entries) + 1000:
            self._due = [(e["due"], key) for key, e in self._entries.items() if e.get("due") is not None]
            heapq.heapify(self._due)
        return before

    def next_due(self) -> int | None:
        """Ticks of the earliest entry that wants attention."""
        while self._due:
            due, key = self._due[0]
            entry = self._entries.get(key)
            if entry is not None and entry.get("due") == due:
                return due
            heapq.heappop(self._due)
        return None

    def due_keys(self, now_ticks: int) -> list[str]:
        """Everything that is due, earliest first. Nothing is forgotten by asking."""
        found: dict[str, int] = {}
        rest: list[tuple[int, str]] = []
        while self._due and self._due[0][0] <= now_ticks:
            due, key = heapq.heappop(self._due)
            entry = self._entries.get(key)
            if entry is not None and entry.get("due") == due and key not in found:
                found[key] = due
                rest.append((due, key))
        for pair in rest:
            heapq.heappush(self._due, pair)
        return list(found)

    def excess(self) -> list[str]:
        """What to forget first if there is too much: ended ids and hold-offs, those that end soonest."""
        over = len(self._entries) - LIMIT
        if over <= 0:
            return []
        spare = [(e["due"], key) for key, e in self._entries.items() if e["what"] in ("ended", "held", "twin")]
        return [key for _, key in heapq.nsmallest(over, spare)]
