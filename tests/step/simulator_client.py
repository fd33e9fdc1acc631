"""A partner as the documents describe one, written without the gateway's code: what the simulator is tested with."""

from __future__ import annotations

import functools
import json
import time
import uuid
from typing import Any

import aiohttp
import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from yarl import URL

from gateway.simulator.cloud import Cloud

JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
GOOD_EVENT: dict[str, Any] = {
    "version": "1.0",
    "location_id": "Z6RSOG",
    "recorder_id": "Z6RANV",
    "camera_id": "2fe519b4-2438-4aa1-b051-87cf22bb",
    "event_id": "1763603245534315",
    "event_type": "alarm",
    "event_status": "active",
    "event_time": "2025-11-20T01:46:25.534Z",
    "sent_at": "2025-11-20T01:46:28.534Z",
    "should_signal_to_monitoring_center": True,
    "upload_snapshot_count": 1,
    "upload_short_mp4": False,
    "upload_event_mp4": True,
    "payload": {},
}
JPEG = b"\xff\xd8\xff\xe0" + b"practice" * 2000 + b"\xff\xd9"
MP4 = b"\x00\x00\x00\x14ftypisom\x00\x00\x02\x00isom" + b"practice" * 20000


@functools.cache  # tens of milliseconds each
def _parsed(pem: bytes) -> RSAPrivateKey:
    key = load_pem_private_key(pem, None)
    assert isinstance(key, RSAPrivateKey)
    return key


class Answer:
    """An HTTP answer, read to its end."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def said(self) -> Any:
        return json.loads(self.body)


class Partner:
    """Speaks to a practice cloud by the documents; every part of a request can be spoilt."""

    def __init__(self, cloud: Cloud, http: aiohttp.ClientSession) -> None:
        self.cloud, self.http = cloud, http
        self.token = ""

    async def request(self, method: str, url: str, **extra: Any) -> Answer:
        async with self.http.request(method, URL(url, encoded=True), **extra) as response:
            return Answer(response.status, response.headers, await response.read())

    def claims(self, **changed: Any) -> dict[str, Any]:
        now = int(time.time())
        claims = {
            "iss": self.cloud.terms.client_id,
            "sub": self.cloud.terms.client_id,
            "aud": self.cloud.url + "/",
            "iat": now,
            "exp": now + 60,
            "jti": str(uuid.uuid4()),
        } | changed
        return {name: value for name, value in claims.items() if value is not None}

    def assertion(
        self, key: bytes | str | None = None, algorithm: str = "RS256", kid: str | None = "practice-key", **changed: Any
    ) -> str:
        headers = {} if kid is None else {"kid": kid}
        secret = key or _parsed(self.cloud.practice_key)
        return jwt.encode(self.claims(**changed), secret, algorithm=algorithm, headers=headers)

    async def ask_token(self, assertion: str | None = None, **changed: Any) -> Answer:
        fields = {
            "grant_type": "client_credentials",
            "client_assertion_type": JWT_BEARER,
            "client_assertion": assertion or self.assertion(),
            "audience": self.cloud.terms.audience,
        } | changed
        fields = {name: value for name, value in fields.items() if value is not None}
        return await self.request("POST", self.cloud.token_url, data=fields)

    async def sign_in(self) -> None:
        answer = await self.ask_token()
        assert answer.status == 200, answer.body
        self.token = answer.said["access_token"]

    async def post(self, said: Any = None, *, headers: dict[str, str] | None = None, **changed: Any) -> Answer:
        body = json.dumps((GOOD_EVENT if said is None else said) | changed).encode()
        return await self.post_bytes(body, headers=headers)

    async def post_bytes(self, body: Any, *, headers: dict[str, str] | None = None) -> Answer:
        if not self.token and self.cloud.terms.auth != "api_key":
            await self.sign_in()
        given = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"} | (headers or {})
        given = {name: value for name, value in given.items() if value}
        return await self.request("POST", self.cloud.url + "/partner/v1/events", data=body, headers=given)

    async def put(self, url: str, body: Any = JPEG, **headers: str) -> Answer:
        given = {"Content-Type": "image/jpeg"} | {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.request("PUT", url, data=body, headers=given)

    async def confirm(self, url: str, **extra: Any) -> Answer:
        return await self.request("PUT", url, **extra)
