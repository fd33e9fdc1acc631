"""The practice cloud's doorkeeper: assertions, access tokens, API keys and the tokens inside callback addresses.

RFC 7521 and RFC 7523 (assertions), RFC 6749 section 5.2 (errors), Auth0 "Authenticate with Private Key JWT" (one
algorithm for each credential, `exp` at most 5 minutes ahead, `jti` required and used once, `aud` with its slash).
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard
from urllib.parse import urlsplit

import jwt

from gateway.simulator.terms import PRACTICE_KID, RegisteredKey, Terms, practice_private_key, public_half

JWT_BEARER: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ASYMMETRIC: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384"})
# Only signature and shape are PyJWT's here: times are judged below, by the simulator's own clock.
_SIGNATURE_ONLY: Final = {
    "verify_exp": False,
    "verify_iat": False,
    "verify_nbf": False,
    "verify_aud": False,
    "verify_iss": False,
    "verify_sub": False,
    "verify_jti": False,
}


class OAuthError(Exception):
    """RFC 6749, 5.2: what the token endpoint answers."""

    def __init__(self, status: int, error: str, description: str) -> None:
        super().__init__(f"{error}: {description}")
        self.status, self.error, self.description = status, error, description


def _invalid_client(description: str) -> OAuthError:
    return OAuthError(401, "invalid_client", description)


def _invalid_request(description: str) -> OAuthError:
    return OAuthError(400, "invalid_request", description)


@dataclass
class Doorkeeper:
    """Judges credentials by the terms; remembers used `jti` and the tokens that it gave out."""

    terms: Terms
    now: Callable[[], float]
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    _used: dict[str, float] = field(default_factory=dict)
    _generation: int = 0

    def __post_init__(self) -> None:
        keys = self.terms.keys or (RegisteredKey(public_half(practice_private_key()), "RS256", PRACTICE_KID),)
        self._keys = keys if self.terms.shared_secret is None and self.terms.auth == "assertion" else ()

    # Token requests

    def give_token(self, fields: Mapping[str, str], token_url: str) -> dict[str, Any]:
        """The answer to a token request. Raises OAuthError."""
        terms = self.terms
        if terms.auth == "api_key":
            raise OAuthError(403, "unauthorized_client", "This partner uses an API key")
        allowed = {"grant_type", "audience", "client_id", *terms.extra_token_fields}
        allowed |= {"client_assertion_type", "client_assertion"} if terms.auth == "assertion" else {"client_secret"}
        if terms.strict and (unknown := sorted(set(fields) - allowed)):
            raise _invalid_request(f"Unknown parameters: {', '.join(unknown)}")
        if fields.get("grant_type") != "client_credentials":
            raise OAuthError(400, "unsupported_grant_type", f"Unsupported grant type: {fields.get('grant_type')}")
        if "client_id" in fields and fields["client_id"] != terms.client_id:
            raise _invalid_client("Unknown client_id")
        if terms.auth == "assertion":
            self._judge_assertion(fields, token_url)
        elif "client_id" not in fields or not _same(fields.get("client_secret", ""), terms.client_secret):
            raise _invalid_client("client_id and client_secret do not fit")
        if not fields.get("audience"):
            raise _invalid_request("audience is missing")
        if fields["audience"] != terms.audience:
            raise OAuthError(403, "access_denied", f"Service not found: {fields['audience']}")
        for name, value in terms.extra_token_fields.items():
            if fields.get(name) != value:
                raise _invalid_request(f"{name} is missing or wrong")
        answer: dict[str, Any] = {"access_token": self._make_token(), "token_type": "Bearer"}
        if terms.expires_in is not None:
            answer["expires_in"] = terms.expires_in
        return answer

    def _judge_assertion(self, fields: Mapping[str, str], token_url: str) -> None:
        if fields.get("client_assertion_type") != JWT_BEARER:
            raise _invalid_request(f"client_assertion_type must be {JWT_BEARER}")
        assertion = fields.get("client_assertion", "")
        header, key, algorithm = self._key_for(assertion)
        try:
            claims = jwt.decode(assertion, key, algorithms=[algorithm], options=_SIGNATURE_ONLY)  # type: ignore[arg-type]
        except jwt.InvalidTokenError as problem:
            raise _invalid_client(f"The assertion's signature does not verify: {problem}") from None
        if header.get("typ", "JWT") != "JWT":
            raise _invalid_client("typ must be JWT")
        self._judge_claims(claims, token_url)

    def _key_for(self, assertion: str) -> tuple[Mapping[str, Any], Any, str]:
        try:
            header = jwt.get_unverified_header(assertion)
        except jwt.InvalidTokenError as problem:
            raise _invalid_client(f"The assertion is no JWT: {problem}") from None
        algorithm, kid = header.get("alg"), header.get("kid")
        if self.terms.shared_secret is not None:
            if algorithm != "HS256":
                raise _invalid_client(f"alg {algorithm} is not the registered HS256")
            return header, self.terms.shared_secret.encode(), "HS256"
        if algorithm not in ASYMMETRIC:
            raise _invalid_client(f"alg {algorithm} is not allowed")
        if kid is None and len(self._keys) > 1:
            raise _invalid_client("kid is missing, and more than one key is registered")
        for key in self._keys:
            if kid is None or kid == key.kid:
                if algorithm != key.algorithm:
                    raise _invalid_client(f"alg {algorithm} is not the registered {key.algorithm}")
                return header, key.pem, key.algorithm
        raise _invalid_client(f"kid {kid!r} is not registered")

    def _judge_claims(self, claims: Mapping[str, Any], token_url: str) -> None:
        terms, now = self.terms, self.now()
        for name in ("iss", "sub"):
            if claims.get(name) != terms.client_id:
                raise _invalid_client(f"{name} must be the client id")
        parts = urlsplit(token_url)
        audience = terms.assertion_audience or f"{parts.scheme}://{parts.netloc}/"
        if claims.get("aud") != audience:
            raise _invalid_client(f"aud must be {audience}")
        expires, issued = claims.get("exp"), claims.get("iat")
        if not _is_time(expires):
            raise _invalid_client("exp is missing or no number")
        if expires <= now - terms.leeway_seconds:
            raise _invalid_client("The assertion has expired; is the clock right?")
        if expires > now + terms.assertion_seconds + terms.leeway_seconds:
            raise _invalid_client(f"exp is more than {terms.assertion_seconds} s ahead; is the clock right?")
        if issued is not None and (not _is_time(issued) or issued > now + terms.leeway_seconds):
            raise _invalid_client("iat lies in the future; is the clock right?")
        if "nbf" in claims and (not _is_time(claims["nbf"]) or claims["nbf"] > now + terms.leeway_seconds):
            raise _invalid_client("nbf lies in the future; is the clock right?")
        jti = claims.get("jti")
        if not isinstance(jti, str) or not jti:
            raise _invalid_client("jti is missing")
        self._used = {used: until for used, until in self._used.items() if until + terms.leeway_seconds >= now}
        if jti in self._used:
            raise _invalid_client("jti was used before")
        self._used[jti] = float(expires)

    def _make_token(self) -> str:
        now = int(self.now())
        claims = {
            "sub": f"{self.terms.client_id}@clients",
            "aud": self.terms.audience,
            "iat": now,
            # A fraction of a second would be lost in whole seconds, and short lives are what tests ask for.
            "exp": self.now() + (3600 if self.terms.expires_in is None else self.terms.expires_in),
            "jti": secrets.token_hex(8),
            "gen": self._generation,
        }
        return jwt.encode(claims, self._secret, algorithm="HS256")

    def revoke(self) -> None:
        """No token that was given out so far is good any more."""
        self._generation += 1

    # Requests with credentials

    def refusal(self, authorization: list[str], api_key: list[str]) -> str | None:
        """Why the credentials of an API request do not do; None when they do."""
        terms = self.terms
        if terms.event_header in ("bearer", "both"):
            if len(authorization) != 1 or not authorization[0].startswith("Bearer "):
                return "Authorization: Bearer is missing or of another shape"
            if problem := self._bearer_problem(authorization[0].removeprefix("Bearer ")):
                return problem
        elif terms.strict and authorization:
            return "Authorization is given, but X-API-KEY is agreed"
        if terms.event_header in ("x-api-key", "both"):
            if len(api_key) != 1 or not _same(api_key[0], terms.api_key):
                return "X-API-KEY is missing or wrong"
        elif terms.strict and api_key:
            return "X-API-KEY is given, but Authorization: Bearer is agreed"
        return None

    def _bearer_problem(self, token: str) -> str | None:
        if self.terms.auth == "api_key":
            return None if _same(token, self.terms.api_key) else "the API key is wrong"
        claims = self._own(token)
        if claims is None or "gen" not in claims:
            return "the access token is not ours"
        if claims["gen"] != self._generation:
            return "the access token was revoked"
        return "the access token has expired" if claims["exp"] <= self.now() else None

    # Callback addresses

    def make_callback_token(self, event: str, kind: str, seq: int, expires: float) -> str:
        claims = {"event": event, "type": kind, "seq": seq, "exp": int(expires)}
        return jwt.encode(claims, self._secret, algorithm="HS256")

    def callback_refusal(self, token: str, event: str, kind: str, seq: int) -> str | None:
        claims = self._own(token)
        if claims is None or (claims.get("event"), claims.get("type"), claims.get("seq")) != (event, kind, seq):
            return "access_token is not for this upload"
        return "access_token has expired" if claims["exp"] <= self.now() else None

    def _own(self, token: str) -> dict[str, Any] | None:
        try:
            claims: dict[str, Any] = jwt.decode(token, self._secret, algorithms=["HS256"], options=_SIGNATURE_ONLY)  # type: ignore[arg-type]
        except jwt.InvalidTokenError:
            return None
        return claims


def _is_time(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
