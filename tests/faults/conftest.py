"""The same site as in the system tests."""

from tests.system.conftest import premises

__all__ = ["premises"]
