"""`chekt-gateway simulator` and `demo` as a person runs them: processes of their own, ended by signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest

from gateway.chekt.client import Client
from gateway.chekt.keys import read_secrets
from gateway.chekt.token import TokenSource
from gateway.config import Settings
from gateway.host.clock import SystemClock
from gateway.simulator.broker import NoBroker, find_broker
from gateway.simulator.children import package_environment
from gateway.simulator.terms import public_half
from gateway.sources.known import known_families
from tests.fakes.waiting import until
from tests.step.simulator_client import GOOD_EVENT, JWT_BEARER


@contextlib.asynccontextmanager
async def command(*words: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=package_environment() | environment,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


def children_of(parent: int) -> list[int]:
    """proc(5), `stat`: the fourth word is the parent; the second may hold spaces, but ends with a bracket."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if path.read_text().rpartition(")")[2].split()[1] == str(parent):
                found.append(int(path.parent.name))
    return found


def is_alive(process: int) -> bool:
    """Neither gone nor a zombie that nobody has asked after yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def introduction(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    async with asyncio.timeout(20):
        said: dict[str, Any] = json.loads(await process.stdout.readline())
    return said


async def token_status(said: dict[str, Any], key: bytes) -> int:
    claims = {"iss": said["client_id"], "sub": said["client_id"], "aud": said["url"] + "/", "jti": os.urandom(8).hex()}
    claims["exp"] = int(time.time()) + 60
    assertion = jwt.encode(claims, key, algorithm="RS256", headers={"kid": said["key_id"]})
    form = {
        "grant_type": "client_credentials",
        "client_assertion_type": JWT_BEARER,
        "client_assertion": assertion,
        "audience": said["audience"],
    }
    async with aiohttp.ClientSession() as http, http.post(said["token_url"], data=form) as response:
        return response.status


async def test_the_simulator_introduces_itself_and_ends_on_a_signal(tmp_path: Path) -> None:
    key_file = tmp_path / "key.pem"
    async with command("simulator", "--port", "0", "--json", "--key", str(key_file), TMPDIR=str(tmp_path)) as process:
        said = await introduction(process)
        assert said["private_key_file"] == str(key_file)
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        assert f'url = "{said["url"]}"' in said["configuration"]
        assert await token_status(said, key_file.read_bytes()) == 200
        async with aiohttp.ClientSession() as http, http.get(said["page"]) as response:
            assert response.status == 200
        process.send_signal(signal.SIGTERM)
        _, talk = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 0
        assert b"POST /oauth/token -> 200" in talk


@pytest.mark.slow
async def test_a_key_is_used_again_and_never_overwritten(tmp_path: Path) -> None:
    key_file, public_file = tmp_path / "key.pem", tmp_path / "public.pem"
    async with command("simulator", "--port", "0", "--json", "--key", str(key_file), TMPDIR=str(tmp_path)) as process:
        await introduction(process)
    before = key_file.read_bytes()
    public_file.write_bytes(public_half(before))
    own = ["--public-key", str(public_file), "--key-id", "mine"]
    for words, key_id in ((["--key", str(key_file)], "practice-key"), (own, "mine")):
        async with command("simulator", "--port", "0", "--json", *words, TMPDIR=str(tmp_path)) as process:
            said = await introduction(process)
            assert said["key_id"] == key_id
            assert await token_status(said, before) == 200
    assert key_file.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["--algorithm", "HS256"],
        ["--auth", "client_secret", "--event-header", "both"],
        ["--auth", "api_key"],
        ["--event-header", "x-api-key"],
    ],
    ids=" ".join,
)
async def test_what_it_prints_is_all_that_a_gateway_needs(tmp_path: Path, words: list[str]) -> None:
    """Whatever was agreed: `check` has nothing to say of [cloud], and the cloud takes an event."""
    options = ["--secret", str(tmp_path / "secret"), "--api-key", str(tmp_path / "api-key"), *words]
    async with command("simulator", "--port", "0", "--json", *options, TMPDIR=str(tmp_path)) as process:
        said = await introduction(process)
        for name in ("secret", "api-key"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        file = tmp_path / "gateway.toml"
        file.write_text(said["configuration"])
        loaded = Settings.load_with_warnings(file, {}, known=known_families(), now=datetime.now(UTC))
        assert [str(warning) for warning in loaded.warnings if "cloud." in str(warning)] == []
        secrets = read_secrets(loaded.settings.cloud)
        async with Client(loaded.settings.cloud, version="test", api_key=secrets.api_key) as client:
            tokens = TokenSource(loaded.settings.cloud, secrets, client.post_form, SystemClock())
            reply = await client.post_event(json.dumps(GOOD_EVENT).encode(), GOOD_EVENT["event_id"], await tokens.get())
            await tokens.close()
        assert reply.status == 201, reply


@pytest.mark.slow
async def test_a_secret_that_is_too_short_to_sign_with_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("short")
    options = ["--port", "0", "--algorithm", "HS256", "--secret", str(secret)]
    async with command("simulator", *options, TMPDIR=str(tmp_path)) as process:
        _, talk = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert b"at least 32 bytes" in talk and b"Traceback" not in talk


async def test_a_key_that_is_none_is_said_plainly(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("no key")
    async with command("simulator", "--port", "0", "--public-key", str(path), TMPDIR=str(tmp_path)) as process:
        _, talk = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 1
        assert b"the key or secret cannot be used" in talk
        assert b"Traceback" not in talk


@pytest.mark.slow
@pytest.mark.needs("mosquitto")
async def test_the_demo_confirms_everything_and_ends(tmp_path: Path) -> None:
    async with command("demo", "--once", TMPDIR=str(tmp_path)) as process:
        out, talk = await asyncio.wait_for(process.communicate(), 55)
        assert process.returncode == 0, talk.decode()
    assert b"all 3 alarms and 4 pictures and clips are confirmed, none doubled" in out
    assert b"event clip confirmed" in out
    assert b"its page: http://127.0.0.1:" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
async def test_the_demo_runs_with_the_broker_of_the_demo_extra(tmp_path: Path) -> None:
    pytest.importorskip("amqtt", reason="the demo extra is not installed")
    async with command("demo", "--once", "--broker", "amqtt", TMPDIR=str(tmp_path)) as process:
        out, talk = await asyncio.wait_for(process.communicate(), 55)
        assert process.returncode == 0, talk.decode()
    assert b"amqtt on 127.0.0.1" in out


def test_a_machine_without_a_broker_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(NoBroker, match=r"apt install mosquitto.*chekt-gateway\[demo\]"):
        find_broker()


@pytest.mark.slow
@pytest.mark.needs("mosquitto")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_demo_ends_its_children_on_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    async with command("demo", TMPDIR=str(tmp_path)) as process:
        assert process.stdout is not None
        async with asyncio.timeout(50):
            while b"at the cloud" not in await process.stdout.readline():
                pass
        children = children_of(process.pid)
        assert len(children) == 2
        process.send_signal(number)
        await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0
        assert [child for child in children if Path(f"/proc/{child}").exists()] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.needs("mosquitto", "setpriv")
async def test_a_demo_that_is_killed_leaves_no_children(tmp_path: Path) -> None:
    async with command("demo", TMPDIR=str(tmp_path)) as process:
        assert process.stdout is not None
        async with asyncio.timeout(50):
            while b"at the cloud" not in await process.stdout.readline():
                pass
        children = children_of(process.pid)
        assert len(children) == 2
        process.kill()
        await until(lambda: not any(is_alive(child) for child in children), timeout=30, what="the end of its children")
