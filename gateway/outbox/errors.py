"""What the store raises. All but IllegalTransition (a bug of ours, `gateway.states`) is the world's fault.

StoreError          the store refuses: disk full, I/O error, read-only, locked
 +- StoreInUse      another process of ours works with it
 +- SchemaTooNew    it was written by a newer version
 +- StoreForeign    the file is something else
 +- StoreDamaged    the file cannot be read as a database any more
 +- StoreGone       the file was moved or removed while the gateway runs, or only a new process can use it again
"""

from __future__ import annotations


class StoreError(Exception):
    """The store refuses. What was asked for in this moment did not happen, none of it."""


class StoreInUse(StoreError):
    pass


class SchemaTooNew(StoreError):
    pass


class StoreForeign(StoreError):
    pass


class StoreDamaged(StoreError):
    pass


class StoreGone(StoreError):
    pass
