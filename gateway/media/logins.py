"""How each kind of recorder wants to be logged in to: where to, with which words, and what shows the login afterwards.

Without a session, or after its end, a recorder answers 401 to everything; then `gateway.media.recorder` logs in.

Follows the Frigate documentation, "Authentication" (a cookie); the ZoneMinder documentation, "API", "Login process"
(a token that goes with each question; API 1.0 sets a cookie); and `hjdhjd/unifi-protect`, `src/protect-api.ts` (a
cookie; a local account of the console, for an account of the cloud asks for a second factor). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Login:
    path: str
    user: str
    """The recorder's word for the user name."""
    password: str
    lacking: str
    """What a user may lack whose login is good, and who is refused all the same."""
    as_form: bool = False
    """A form; else JSON."""
    token: str | None = None
    """The key of the answer whose value every further question carries as `token`. None: a cookie is all."""


FRIGATE: Final = Login("/api/login", "user", "password", "the role viewer")
ZONEMINDER: Final = Login(
    "/api/host/login.json",
    "user",
    "pass",
    'the right to view events, or "API Enabled"',
    as_form=True,
    token="access_token",  # noqa: S106  a word of the API
)
UNIFI: Final = Login("/api/auth/login", "username", "password", "the right to view Protect")
