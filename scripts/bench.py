"""What `scripts/bench` runs: each number beside the bare library's for the same work, in the same run.

F, the floor of one event: an MQTT hop, a durable commit and a POST, each alone and paced at 100 a second.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import aiohttp
import bench_rules
from aiohttp import web
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.fakes.frigate import encode, review  # noqa: E402
from tests.fakes.mosquitto import Mosquitto, free_port  # noqa: E402

CAMERAS: Final = 32
PARALLEL: Final = 8
BARE_IMPORTS: Final = (
    "import aiohttp, asyncio, cryptography, jwt, paho.mqtt.client, pydantic_settings, sqlite3, structlog"
)
CONFIG: Final = """
[site]
location_id = "BENCH"
recorder_id = "R"
timezone = "UTC"
[cloud]
url = "{cloud}"
token_url = "{cloud}/oauth/token"
audience = "bench"
client_id = "bench"
client_secret_file = "secret"
auth = "client_secret"
[broker]
url = "{broker}"
[outbox]
path = "{folder}/outbox.db"
[delivery]
stale_after = "off"
drain_jitter = "0ms"
parallel = {parallel}
[defaults]
snapshots = 0
hold_off = "off"
[sources.nvr]
family = "frigate"
"""


# A cloud that only counts, in a process of its own


def serve(port: int) -> None:
    """Answers every event as accepted; `/arrivals` tells when each came (event_time -> monotonic seconds)."""
    arrivals: dict[str, float] = {}
    answer = {"status": "accepted", "event_id": "e", "id": "r", "uploads": None}

    async def event(request: web.Request) -> web.Response:
        arrivals[json.loads(await request.read())["event_time"]] = time.monotonic()
        return web.json_response(answer | {"event_id": f"eve-{len(arrivals)}"}, status=201)

    async def token(_: web.Request) -> web.Response:
        return web.json_response({"access_token": "t", "token_type": "Bearer", "expires_in": 3600})

    async def tell(_: web.Request) -> web.Response:
        told = dict(arrivals)
        arrivals.clear()
        return web.json_response(told)

    async def count(_: web.Request) -> web.Response:
        return web.json_response(len(arrivals))

    app = web.Application()
    app.router.add_post("/partner/v1/events", event)
    app.router.add_post("/oauth/token", token)
    app.router.add_get("/arrivals", tell)
    app.router.add_get("/count", count)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


@contextmanager
def child(*arguments: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=out, stderr=out, cwd=ROOT, env={**os.environ, **environment}
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


async def until(fact: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        await asyncio.sleep(0.01)


class Broker:
    """A publisher, and subscribers as bare as paho lets them be."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.client = self._client("bench-publisher")
        self.client.max_inflight_messages_set(500)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def _client(self, name: str, **options: Any) -> Client:
        return Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTProtocolVersion.MQTTv5, **options)

    def publish(self, payload: bytes, topic: str = "frigate/reviews") -> None:
        self.client.publish(topic, payload, qos=1)

    @contextmanager
    def listening(
        self, topic: str, on_message: Callable[[Client, MQTTMessage], None], **options: Any
    ) -> Iterator[None]:
        ready = threading.Event()
        client = self._client(f"bench-{topic.replace('/', '-')}", **options)

        def on_connect(*_: Any) -> None:
            client.subscribe(topic, qos=1)

        client.on_connect = on_connect
        client.on_subscribe = lambda *_: ready.set()
        client.on_message = lambda own, _, message: on_message(own, message)
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        ready.wait(10)
        try:
            yield
        finally:
            client.disconnect()
            client.loop_stop()


# The floor


async def paced(count: int, per_second: float, work: Callable[[int], Any]) -> None:
    began = time.monotonic()
    for number in range(count):
        await asyncio.sleep(max(0.0, began + number / per_second - time.monotonic()))
        done = work(number)
        if asyncio.iscoroutine(done):
            await done


async def hop(broker: Broker, count: int) -> float:
    sent: dict[bytes, float] = {}
    took: list[float] = []
    with broker.listening("bench/hop", lambda _, m: took.append(time.monotonic() - sent[bytes(m.payload)])):

        def publish(number: int) -> None:
            payload = str(number).encode().ljust(600)
            sent[payload] = time.monotonic()
            broker.publish(payload, "bench/hop")

        await paced(count, 100, publish)
        await until(lambda: len(took) == count, "the hops")
    return statistics.median(took)


async def commit(folder: Path, count: int) -> float:
    db = sqlite3.connect(folder / "floor.db", isolation_level=None)
    db.executescript(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t (id INTEGER PRIMARY KEY, b BLOB)"
    )
    took = []

    def insert(_: int) -> None:
        began = time.monotonic()
        db.execute("INSERT INTO t (b) VALUES (?)", (b"x" * 600,))
        took.append(time.monotonic() - began)

    await paced(count, 100, insert)
    db.close()
    return statistics.median(took)


def body(number: int) -> bytes:
    return json.dumps({"event_time": str(number), "payload": {}, "filling": "x" * 500}).encode()


async def post(http: aiohttp.ClientSession, url: str, number: int) -> None:
    headers = {"Authorization": "Bearer t", "Content-Type": "application/json"}
    async with http.post(f"{url}/partner/v1/events", data=body(number), headers=headers) as answer:
        await answer.read()


async def posts(http: aiohttp.ClientSession, url: str, count: int) -> float:
    took = []

    async def one(number: int) -> None:
        began = time.monotonic()
        await post(http, url, number)
        took.append(time.monotonic() - began)

    await paced(count, 100, one)
    return statistics.median(took)


async def bare_rate(http: aiohttp.ClientSession, url: str, count: int) -> tuple[float, float]:
    """POSTs a second, and CPU seconds of this process for each."""
    numbers = iter(range(count))

    async def sender() -> None:
        for number in numbers:
            await post(http, url, number)

    began, cpu = time.monotonic(), time.process_time()
    await asyncio.gather(*(sender() for _ in range(PARALLEL)))
    return count / (time.monotonic() - began), (time.process_time() - cpu) / count


async def bare_intake(broker: Broker, folder: Path, count: int) -> float:
    """Messages a second of a bare client that acknowledges after a group commit."""
    waiting: queue.SimpleQueue[tuple[Client, MQTTMessage]] = queue.SimpleQueue()
    db = sqlite3.connect(folder / "bare.db", isolation_level=None, check_same_thread=False)
    db.executescript(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t (id INTEGER PRIMARY KEY, b BLOB)"
    )
    done = [0]

    def write() -> None:
        while done[0] < count:
            group = [waiting.get()]
            while not waiting.empty():
                group.append(waiting.get())
            db.execute("BEGIN")
            db.executemany("INSERT INTO t (b) VALUES (?)", [(bytes(message.payload),) for _, message in group])
            db.execute("COMMIT")
            for client, message in group:
                client.ack(message.mid, message.qos)
            done[0] += len(group)

    writer = threading.Thread(target=write, daemon=True)
    with broker.listening("bench/intake", lambda client, message: waiting.put((client, message)), manual_ack=True):
        writer.start()
        payloads = [encode(review("cam0")) for _ in range(count)]
        began = time.monotonic()
        for payload in payloads:
            broker.publish(payload, "bench/intake")
        await until(lambda: done[0] >= count, "the bare intake")
        rate = count / (time.monotonic() - began)
    writer.join()
    db.close()
    return rate


# The gateway


class Gateway:
    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.folder, self.process = folder, process

    @property
    def received(self) -> int:
        db = sqlite3.connect(f"file:{self.folder}/outbox.db?mode=ro", uri=True)
        try:
            row = db.execute("SELECT value FROM counter WHERE name = 'received'").fetchone()
            return row[0] if row else 0
        finally:
            db.close()

    @property
    def cpu(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def megabytes(self) -> float:
        return resident(Path(f"/proc/{self.process.pid}/status").read_text())


def resident(status: str) -> float:
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))


@contextmanager
def gateway(folder: Path, cloud: str, broker: str) -> Iterator[Gateway]:
    folder.mkdir()
    (folder / "secret").write_text("s" * 40)
    (folder / "secret").chmod(0o600)
    cameras = "".join(f'[cameras.cam{n}]\ncamera_id = "c{n}"\n' for n in range(CAMERAS))
    text = CONFIG.format(cloud=cloud, broker=broker, folder=folder, parallel=PARALLEL) + cameras
    (folder / "gateway.toml").write_text(text)
    config = str(folder / "gateway.toml")
    with child("-m", "gateway", "run", "--config", config, log=folder / "log", NO_COLOR="1") as process:
        yield Gateway(folder, process)


def messages(count: int) -> dict[int, bytes]:
    """event_time as the cloud will see it -> message. Each its own millisecond, so that they can be told apart."""
    first = int(time.time() * 1000) - count
    made = {}
    for number in range(count):
        at = first + number
        made[at] = encode(review(f"cam{number % CAMERAS}", start=at / 1000))
    return made


def key_of(event_time: str) -> int:
    return round(datetime.fromisoformat(event_time).timestamp() * 1000)


async def arrivals(http: aiohttp.ClientSession, cloud: str, count: int) -> dict[int, float]:
    deadline = time.monotonic() + 60
    while True:
        async with http.get(f"{cloud}/count") as answer:
            if await answer.json() >= count or time.monotonic() > deadline:
                break
        await asyncio.sleep(0.05)
    async with http.get(f"{cloud}/arrivals") as answer:
        return {key_of(when): at for when, at in (await answer.json()).items() if not when.isdecimal()}


async def latency(
    http: aiohttp.ClientSession, cloud: str, broker: Broker, count: int, per_second: float
) -> tuple[float, float]:
    """Median and 99th percentile, publish -> the cloud holds the POST."""
    made = messages(count)
    sent: dict[int, float] = {}
    pairs = list(made.items())

    def publish(number: int) -> None:
        key, payload = pairs[number]
        sent[key] = time.monotonic()
        broker.publish(payload)

    await paced(count, per_second, publish)
    came = await arrivals(http, cloud, count)
    took = sorted(came[key] - at for key, at in sent.items())
    return statistics.median(took), took[int(len(took) * 0.99) - 1]


async def sustained(
    http: aiohttp.ClientSession, cloud: str, broker: Broker, one: Gateway, count: int
) -> tuple[float, float]:
    made = messages(count)
    cpu, began = one.cpu, time.monotonic()
    for payload in made.values():
        broker.publish(payload)
    came = await arrivals(http, cloud, count)
    if len(came) < count:
        raise TimeoutError(f"{count - len(came)} events did not arrive")
    return count / (max(came.values()) - began), (one.cpu - cpu) / count


# All of it


def say(what: str, value: str, target: str = "") -> None:
    print(f"{what:<58} {value:>22}   {target}", flush=True)


def bare_imports() -> tuple[float, float]:
    """Seconds and megabytes."""
    began = time.monotonic()
    script = f"{BARE_IMPORTS}\nprint(open('/proc/self/status').read())"
    status = subprocess.check_output([sys.executable, "-c", script], text=True)
    return time.monotonic() - began, resident(status)


async def measure(folder: Path, bare_start: float, bare_memory: float, *, scale: int) -> None:
    port = free_port()
    cloud = f"http://127.0.0.1:{port}"
    (folder / "broker").mkdir()
    lines = ["max_inflight_messages 500", "max_inflight_bytes 0"]
    async with Mosquitto(folder / "broker", config=lines) as mosquitto, aiohttp.ClientSession() as http:
        broker = Broker(mosquitto.port)
        with child(__file__, "--serve", str(port), log=folder / "cloud.log"):
            await until(lambda: _listens(port), "the cloud")
            parts = [await hop(broker, 100 * scale), await commit(folder, 100 * scale)]
            parts.append(await posts(http, cloud, 100 * scale))
            floor = sum(parts)
            say(
                "F = MQTT hop + commit + POST",
                " + ".join(f"{1e3 * part:.2f}" for part in parts) + f" = {1e3 * floor:.2f} ms",
            )
            bare, bare_cpu = await bare_rate(http, cloud, 1_000 * scale)
            await arrivals(http, cloud, 0)
            began = time.monotonic()
            with gateway(folder / "a", cloud, mosquitto.url) as one:
                log = folder / "a" / "log"
                await until(lambda: "mqtt_connected" in log.read_text(), "the gateway's connection")
                start, memory = time.monotonic() - began, one.megabytes
                await latency(http, cloud, broker, 20, 20)  # the token, the connections
                for pace, count in ((10, 30 * scale), (100, 300 * scale)):
                    median, slow = await latency(http, cloud, broker, count, pace)
                    say(f"publish -> cloud, {pace}/s: median", f"{median / floor:.2f} F", "<= 1.5 F")
                    say(f"publish -> cloud, {pace}/s: 99th percentile", f"{slow / floor:.2f} F", "<= 3 F")
                rate, cpu = await sustained(http, cloud, broker, one, 1_000 * scale)
                say(
                    f"sustained ({rate:.0f}/s) : bare POST rate ({bare:.0f}/s)", f"{100 * rate / bare:.0f} %", ">= 75 %"
                )
                say(f"CPU of an event ({1e6 * cpu:.0f} us) : of a bare POST", f"{cpu / bare_cpu:.1f}", "<= 1.5")
                idle = one.cpu
                await asyncio.sleep(5)
                say("idle CPU", f"{100 * (one.cpu - idle) / 5:.1f} %", "<= 0.5 %")
        bare = await bare_intake(broker, folder, 2_000 * scale)
        with gateway(folder / "b", cloud, mosquitto.url) as one:  # nobody is there any more
            log = folder / "b" / "log"
            await until(lambda: "mqtt_connected" in log.read_text(), "the gateway's connection")
            count = 2_000 * scale
            made = messages(count)
            began = time.monotonic()
            for payload in made.values():
                broker.publish(payload)
            await until(lambda: one.received >= count, "intake")
            rate = count / (time.monotonic() - began)
            say(f"intake alone ({rate:.0f}/s) : bare client ({bare:.0f}/s)", f"{100 * rate / bare:.0f} %", ">= 50 %")
        broker.client.disconnect()
        broker.client.loop_stop()
    for cost in bench_rules.costs():
        value = f"{cost.ratio:.1f} ({cost.without_decoding:.1f} beside decoding)"
        say(f"rules : json.loads, {cost.what}", value, "<= 4")
    say("memory above the bare imports", f"{memory - bare_memory:.1f} MB", "<= 25 MB")
    say("start until connected, above the bare imports", f"{start - bare_start:.2f} s", "<= 0.5 s")


def _listens(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--serve"]:
        serve(int(arguments[1]))
        return 0
    if set(arguments) - {"--quick"}:
        print("usage: scripts/bench [--quick]", file=sys.stderr)
        return 64
    with tempfile.TemporaryDirectory(prefix="chekt-bench-") as folder:
        asyncio.run(measure(Path(folder), *bare_imports(), scale=1 if "--quick" in arguments else 3))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
